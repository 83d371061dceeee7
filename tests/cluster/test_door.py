"""One address for several replicas: answers as one server gives them, limits over all, nothing lost."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.api import house
from softprompt.cluster.door import Ask, Door, LostError
from softprompt.cluster.replica import Asked, Begun, Part, Replica, ServeSettings
from softprompt.errors import ResourceError
from softprompt.serving import api
from softprompt.serving.keys import Key

WRITE = {"model": "free", "prompt": "some words", "max_tokens": 8, "temperature": 0}


class Ring:
    """Keys by their secret."""

    def __init__(self, **limits: Any) -> None:
        one = {"sha256": "0" * 64, "created": datetime.now(UTC), "name": "x", **limits}
        self._keys = {
            "all": Key(id="a", prompts=("*",), **one),
            "one": Key(id="b", prompts=("topics",), **one),
        }

    def find(self, secret: str) -> Key | None:
        return self._keys.get(secret)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base on disk and a library for it."""
    made = tmp_path_factory.mktemp("cluster")
    house.base().model.save_pretrained(made / "base")
    house.tokenizer().save_pretrained(made / "base")
    house.fill(made / "prompts")
    return made


def replicas(folder: Path, *, keyed: bool) -> Iterator[list[Replica]]:
    settings = ServeSettings(
        str(folder / "prompts"), {"model": str(folder / "base")}, {"pack": False}, "tiny-chat", keyed=keyed
    )
    made = [Replica(settings), Replica(settings)]
    yield made
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[list[Replica]]:
    yield from replicas(folder, keyed=False)


@pytest.fixture(scope="module")
def keyed_pair(folder: Path) -> Iterator[list[Replica]]:
    yield from replicas(folder, keyed=True)


def in_turn(pair: list[Replica]) -> Ask:
    """One replica after the other."""
    count = iter(range(10**6))

    def ask(asked: Asked) -> AsyncIterator[Part]:
        return pair[next(count) % len(pair)](asked)

    return ask


def client(url: str, secret: str = "") -> httpx.Client:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return httpx.Client(base_url=url, timeout=60, headers=headers)


# As one server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", WRITE),
        ("/v1/completions", WRITE | {"prompt": ["a", "b"], "n": 2, "seed": 1, "temperature": 1.0}),
        ("/v1/classify", {"model": "topics", "input": "goal"}),
        ("/v1/completions", WRITE | {"model": "nobody"}),
        ("/v1/completions", WRITE | {"max_tokens": -1}),
    ],
)
def test_an_answer_is_that_of_one_server(
    path: str, body: dict[str, Any], pair: list[Replica], folder: Path
) -> None:
    def plain(answer: httpx.Response) -> tuple[int, Any]:
        said = answer.json()
        return answer.status_code, {k: v for k, v in said.items() if k not in ("id", "created")}

    with house.running(Door(in_turn(pair))) as url, client(url) as http:
        through = [http.post(path, json=body) for _ in range(2)]
    with house.running(pair[0]._app) as url, client(url) as http:
        alone = http.post(path, json=body)
    assert [plain(one) for one in through] == [plain(alone)] * 2
    assert {name for name in alone.headers if name != "date"} <= set(through[0].headers)


def test_a_stream_comes_as_it_is_written(pair: list[Replica]) -> None:
    with (
        house.running(Door(in_turn(pair))) as url,
        client(url) as http,
        http.stream("POST", "/v1/completions", json=WRITE | {"stream": True}) as answer,
    ):
        lines = [line for line in answer.iter_lines() if line]
        whole = http.post("/v1/completions", json=WRITE).json()["choices"][0]["text"]
    assert lines[-1] == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines[:-1]]
    assert len(parts) > 1
    assert "".join(parts) == whole


def test_without_keys_only_this_machine_is_served(pair: list[Replica]) -> None:
    with house.running(Door(in_turn(pair))) as url, client(url) as http:
        assert http.post("/v1/completions", json=WRITE, headers={"Host": "evil.example"}).status_code == 403
        assert http.get("/health").json()["status"] == "ok"
        assert "topics" in {model["id"] for model in http.get("/v1/models").json()["data"]}


# Keys and limits --------------------------------------------------------------------------------------


def test_limits_count_over_all_replicas(keyed_pair: list[Replica]) -> None:
    door = Door(in_turn(keyed_pair), keys=Ring(requests_per_minute=3))
    with house.running(door) as url, client(url, "all") as http:
        found = [http.post("/v1/completions", json=WRITE).status_code for _ in range(5)]
    assert found == [200, 200, 200, 429, 429]


EVERY_WAY = [
    ("/v1/completions", WRITE),
    ("/v1/chat/completions", {"model": "free", "messages": [{"role": "user", "content": "x"}]}),
    ("/v1/responses", {"model": "free", "input": "x", "max_output_tokens": 2}),
    ("/v1/classify", {"model": "topics", "input": "x"}),
    ("/tokenize", {"model": "free", "prompt": "x"}),
    ("/detokenize", {"model": "free", "tokens": [1]}),
]


@pytest.mark.parametrize(("path", "body"), EVERY_WAY)
def test_whatever_one_server_counts_the_door_counts(
    path: str, body: dict[str, Any], keyed_pair: list[Replica]
) -> None:
    door = Door(in_turn(keyed_pair), keys=Ring(requests_per_minute=1))
    with house.running(door) as url, client(url, "all") as http:
        found = [http.post(path, json=body).status_code for _ in range(2)]
    assert found[1] == 429


def test_no_other_path_is_counted_by_one_server() -> None:
    """A path that lets requests in and is not in the list above would be without limits here."""
    found = set()
    for file in Path(api.__file__).parent.glob("*.py"):
        source = file.read_text()
        if "with visiting(" in source:
            found |= set(re.findall(r'@router\.post\("([^"]+)"', source))
    assert found == {path for path, _ in EVERY_WAY}


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_count_over_all_replicas(stream: bool, keyed_pair: list[Replica]) -> None:
    door = Door(in_turn(keyed_pair), keys=Ring(tokens_per_minute=9))
    with house.running(door) as url, client(url, "all") as http:
        found = [http.post("/v1/completions", json=WRITE | {"stream": stream}) for _ in range(3)]
    assert [one.status_code for one in found] == [200, 429, 429]
    assert found[1].json()["error"]["code"] == "tokens_per_minute"


def test_a_key_sees_its_own_prompts_only(keyed_pair: list[Replica]) -> None:
    door = Door(in_turn(keyed_pair), keys=Ring())
    with house.running(door) as url:
        with client(url, "one") as http:
            assert http.post("/v1/completions", json=WRITE).status_code == 404
            assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["topics"]
            assert http.post("/v1/classify", json={"model": "topics", "input": "x"}).status_code == 200
        with client(url, "wrong") as http:
            assert http.post("/v1/completions", json=WRITE).status_code == 401
        with client(url, "all") as http:
            assert http.post("/v1/completions", json=WRITE).status_code == 200


# Replicas that die ------------------------------------------------------------------------------------


def test_a_request_whose_replica_dies_is_sent_again(pair: list[Replica]) -> None:
    """Before it answered, and in the middle of an answer the client has not heard of."""
    tries: list[str] = []

    async def ask(asked: Asked) -> AsyncIterator[Part]:
        tries.append(asked.name)
        if len(tries) == 1:
            raise LostError("it died")
        async for part in pair[0](asked):
            yield part
            if len(tries) == 2 and isinstance(part, Begun):
                raise LostError("it died")

    door = Door(ask)
    with house.running(door) as url, client(url) as http:
        answer = http.post("/v1/completions", json=WRITE)
    assert answer.status_code == 200
    assert tries == ["free"] * 3
    assert door.counts == {"sent again": 2, "answered": 1}


def test_a_stream_that_has_begun_is_cut_and_not_begun_again(pair: list[Replica]) -> None:
    tries: list[str] = []

    async def ask(asked: Asked) -> AsyncIterator[Part]:
        tries.append(asked.name)
        async for part in pair[0](asked):
            yield part
            if not isinstance(part, Begun):
                raise LostError("it died")

    def read(http: httpx.Client) -> None:
        with http.stream("POST", "/v1/completions", json=WRITE | {"stream": True}) as answer:
            list(answer.iter_lines())

    with (
        house.running(Door(ask)) as url,
        client(url) as http,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        read(http)
    assert tries == ["free"]


def test_where_no_replica_answers_the_client_is_told(pair: list[Replica]) -> None:
    async def ask(asked: Asked) -> AsyncIterator[Part]:
        raise LostError("it died")
        yield b""

    door = Door(ask, tries=2)
    with house.running(door) as url, client(url) as http:
        answer = http.post("/v1/completions", json=WRITE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "lost")
    assert answer.headers["retry-after"] == "5"


def test_a_client_that_leaves_has_its_request_called_off(pair: list[Replica]) -> None:
    engine = pair[0]._engine
    with house.running(Door(in_turn(pair[:1]))) as url, client(url) as http:
        long = WRITE | {"max_tokens": 100, "prompt": ["x"] * 64, "n": 2, "stream": True}
        with http.stream("POST", "/v1/completions", json=long) as answer:
            next(answer.iter_lines())
        until = time.monotonic() + 20
        while engine.state().running or engine.state().waiting:
            assert time.monotonic() < until
            time.sleep(0.02)


# A replica --------------------------------------------------------------------------------------------


def test_a_replica_tells_what_it_holds_and_how_it_is(pair: list[Replica], folder: Path) -> None:
    async def answered() -> list[Part]:
        scope = {"method": "POST", "path": "/v1/classify", "query_string": b"", "http_version": "1.1"}
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        body = json.dumps({"model": "topics", "input": "x"}).encode()
        return [part async for part in pair[0](Asked("topics", {**scope, "headers": headers}, body))]

    head, *_ = asyncio.run(answered())
    assert isinstance(head, Begun)
    assert head.status == 200
    assert dict(head.headers)[b"x-softprompt-replica"].endswith(b"; loads=%d" % pair[0].loads)
    held = pair[0].record_routing_stats()["held"]
    assert held["topics"] > 0
    assert "tiny-chat" not in held
    pair[0].check_health()
    gone = Replica(ServeSettings(str(folder / "prompts"), {"model": str(folder / "base")}, {"pack": False}))
    gone.close()
    with pytest.raises(ResourceError, match="has stopped"):
        gone.check_health()
