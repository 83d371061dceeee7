"""One key's flood over HTTP: another key's small request is answered all the same, and quotas hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.api import house
from serving.shop import until
from softprompt.library.prompt import Prompt
from softprompt.serving.engine import Engine
from softprompt.serving.keys import KeyFile, add_key

Server = tuple[httpx.Client, dict[str, str]]


@pytest.fixture(scope="module")
def narrow(
    library: Path, prompts: dict[str, Prompt], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of four rows, and the secrets of three keys."""
    path = tmp_path_factory.mktemp("fair") / "keys.toml"
    secrets = {name: add_key(path, name)[1] for name in ("flood", "quiet")}
    secrets["boss"] = add_key(path, "boss", admin=True)[1]
    secrets["poor"] = add_key(path, "poor", tokens_per_minute=40)[1]
    with (
        Engine(house.base(), library, pack=False, rows=4, queue=300) as engine,
        house.client(engine, keys=KeyFile(path)) as http,
    ):
        yield http, secrets


def ask(server: Server, name: str, **body: Any) -> httpx.Response:
    http, secrets = server
    headers = {"authorization": f"Bearer {secrets[name]}"}
    asked = {"model": "free", "prompt": "x", "max_tokens": 1, "temperature": 0, **body}
    return http.post("/v1/completions", json=asked, headers=headers)


def test_requests_for_128_answers_leave_another_key_its_one_token(narrow: Server) -> None:
    quiet = min(_seconds(narrow) for _ in range(5))
    statuses: list[int] = []
    flooding = [
        threading.Thread(
            target=lambda: statuses.append(
                ask(narrow, "flood", n=128, max_tokens=60, ignore_eos=True).status_code
            )
        )
        for _ in range(3)
    ]
    for one in flooding:
        one.start()
    time.sleep(0.5)
    try:
        beside = sorted(_seconds(narrow) for _ in range(9))
        assert any(one.is_alive() for one in flooding), "the flood was over too soon to tell"
        assert beside[4] < max(40 * quiet, 1.0), (quiet, beside)
    finally:
        for one in flooding:
            one.join(120)
    assert 200 in statuses
    assert set(statuses) <= {200, 429}, "what is beyond the queue's share is told so"


def _seconds(server: Server) -> float:
    begun = time.monotonic()
    assert ask(server, "quiet").status_code == 200
    return time.monotonic() - begun


def test_chats_without_a_limit_leave_room_and_the_gauge_tells_what_they_fill(narrow: Server) -> None:
    http, secrets = narrow
    boss = {"authorization": f"Bearer {secrets['boss']}"}

    def used() -> float:
        lines = http.get("/metrics", headers=boss).text.splitlines()
        (line,) = [line for line in lines if line.startswith("vllm:kv_cache_usage_perc{")]
        return float(line.rpartition(" ")[2])

    def chat() -> None:
        body = {"model": "brought", "messages": [{"role": "user", "content": "x"}], "ignore_eos": True}
        statuses.append(http.post("/v1/chat/completions", json=body, headers=boss).status_code)

    statuses, seen = list[int](), list[float]()
    chats = [threading.Thread(target=chat) for _ in range(8)]
    for one in chats:
        one.start()
    while any(one.is_alive() for one in chats):
        assert ask(narrow, "quiet").status_code == 200
        seen.append(used())
    assert statuses == [200] * 8
    assert 0 < max(seen) < 0.2, "four rows of 512 positions, of two gigabytes"
    until(lambda: used() == 0)


def test_tokens_a_minute_are_counted_and_waited_for(narrow: Server) -> None:
    first = ask(narrow, "poor", max_tokens=60, ignore_eos=True)
    assert first.json()["usage"]["total_tokens"] > 60
    second = ask(narrow, "poor")
    assert second.status_code == 429
    assert second.json()["error"]["code"] == "tokens_per_minute"
    assert int(second.headers["retry-after"]) > 20
