"""Requests to vLLM's own server that name a prompt: what vLLM is handed, and what is refused before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from library import samples
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.errors import WrongBaseError
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt
from softprompt.vllm.middleware import MOST_BYTES, NamedPrompts
from softprompt.vllm.slots import is_placed
from softprompt.vllm.store import PARAMETER, read_positions, salt_fits

Ask = Callable[..., tuple[int, dict[str, Any]]]


class Behind:
    """Where vLLM would be: it answers with what it was handed."""

    def __init__(self, arguments: Any) -> None:
        self.state = SimpleNamespace(args=arguments)
        self.middleware = NamedPrompts(self._answer)
        asyncio.run(self.middleware({"type": "lifespan", "app": self}, self._nothing, self._nothing))

    async def _nothing(self, *_: Any) -> Any: ...

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        body = (await receive())["body"]
        sizes = [value for name, value in scope["headers"] if name == b"content-length"]
        assert [int(size) for size in sizes] == [len(body)]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    def ask(
        self, body: Any, path: str = "/v1/completions", method: str = "POST"
    ) -> tuple[int, dict[str, Any]]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent: list[Any] = []
        parts = [raw[:5], raw[5:]]

        async def receive() -> Any:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-length", str(len(raw)).encode())]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "app": self}
        asyncio.run(self.middleware(scope, receive, send))
        return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return load_base(str(folder), dtype="float32", device="cpu")


@pytest.fixture
def house(base: Base, tmp_path: Path) -> Behind:
    save(base, tmp_path, seed=3)
    samples.lora(base, "tuned").save(tmp_path / "prompts")
    return Behind(arguments(base, tmp_path))


def save(base: Base, folder: Path, seed: int) -> None:
    card = samples.bound(base, "prompt-tuning", samples.P, name="topics")
    Prompt(base, samples.soft(base, seed), card).save(folder / "prompts", overwrite=True)


def arguments(base: Base, folder: Path, **changes: Any) -> Any:
    told = {
        "library": str(folder / "prompts"),
        "store": str(folder / "store"),
        "fingerprint": base.fingerprint,
    }
    transfer = SimpleNamespace(kv_connector_extra_config=told | changes)
    return SimpleNamespace(
        model=base.model.name_or_path,
        dtype="float32",
        served_model_name=["base", "also"],
        kv_transfer_config=transfer,
    )


def test_a_prompt_is_named_by_model(house: Behind, base: Base, tmp_path: Path) -> None:
    status, body = house.ask({"model": "topics", "prompt": "rates cut", "max_tokens": 3})
    assert (status, body["model"], body["max_tokens"]) == (200, "base", 3)
    key = body["kv_transfer_params"][PARAMETER]
    assert read_positions(tmp_path / "store", key) == samples.P
    assert salt_fits(key, body["cache_salt"])
    (ids,) = body["prompt"]
    assert is_placed(samples.P, ids)
    assert ids[samples.P :] == base.encode("Headline: rates cut\nTopic:")


def test_or_by_kv_transfer_params_and_the_salt_is_set_all_the_same(house: Behind) -> None:
    named = {"model": "topics", "prompt": [[5, 9], [7]]}
    other = {"model": "base", "prompt": [[5, 9], [7]], "kv_transfer_params": {PARAMETER: "topics"}}
    assert house.ask(other | {"cache_salt": "mine"}) == house.ask(named)
    assert [len(ids) for ids in house.ask(named)[1]["prompt"]] == [samples.P + 2, samples.P + 1]


def test_nobody_names_a_file_of_the_store(house: Behind) -> None:
    key = house.ask({"model": "topics", "prompt": [5]})[1]["kv_transfer_params"][PARAMETER]
    status, body = house.ask({"model": "base", "prompt": [5], "kv_transfer_params": {PARAMETER: key}})
    assert status == 404
    assert "There is no prompt" in body["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [{"model": "base", "prompt": "x"}, {"model": "nobody"}, {"model": 3}, [1], {"kv_transfer_params": 3}],
)
def test_everything_else_passes_as_it_came(house: Behind, body: Any) -> None:
    assert house.ask(body) == (200, body)


def test_a_replaced_prompt_answers_at_once_and_a_removed_one_no_more(
    house: Behind, base: Base, tmp_path: Path
) -> None:
    before = house.ask({"model": "topics", "prompt": [5]})[1]["cache_salt"]
    save(base, tmp_path, seed=4)
    after = house.ask({"model": "topics", "prompt": [5]})[1]["cache_salt"]
    assert before != after
    Library(tmp_path / "prompts").remove("topics")
    body = {"model": "topics", "prompt": [5]}
    assert house.ask(body) == (200, body)  # vLLM itself knows no such model


def test_a_broken_prompt_is_refused_by_name(house: Behind, tmp_path: Path) -> None:
    weights = tmp_path / "prompts" / "topics" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    status, body = house.ask({"model": "topics", "prompt": [5]})
    assert status == 503
    assert "'topics' cannot be loaded" in body["error"]["message"]


@pytest.mark.parametrize("field", ["echo", "prompt_logprobs", "use_beam_search", "suffix", "prompt_embeds"])
def test_what_vllm_would_answer_wrongly_is_refused(house: Behind, field: str) -> None:
    status, body = house.ask({"model": "topics", "prompt": [5], field: 1})
    assert status == 400
    assert body["error"]["message"].startswith(f"{field} is not served")
    assert house.ask({"model": "topics", "prompt": [5], field: None})[0] == 200


def test_chats_and_adapters_are_refused_with_the_way_out(house: Behind) -> None:
    for path, name in (("/v1/chat/completions", "topics"), ("/v1/completions", "tuned")):
        status, body = house.ask({"model": name, "prompt": [5]}, path)
        assert status in (400, 503)
        assert name == "tuned" or "--engine vllm" in body["error"]["message"]


@pytest.mark.parametrize("prompt", [None, "", [], [[]], [5, "x"], {"a": 1}, [True], [-1]])
def test_a_prompt_that_is_none_is_refused(house: Behind, prompt: Any) -> None:
    if prompt == "":  # behind a template it is a text
        assert house.ask({"model": "topics", "prompt": prompt})[0] == 200
        return
    assert house.ask({"model": "topics", "prompt": prompt})[0] == 400


def test_a_text_gives_no_orders(house: Behind) -> None:
    (ids,) = house.ask({"model": "topics", "prompt": "a </s> b"})[1]["prompt"]
    assert 2 not in ids


def test_a_body_without_end_is_refused(house: Behind) -> None:
    assert house.ask(b"[" * (MOST_BYTES + 1))[0] == 413


def test_another_base_is_refused_at_the_start(base: Base, tmp_path: Path) -> None:
    with pytest.raises(WrongBaseError, match="vllm-args"):
        Behind(arguments(base, tmp_path, fingerprint="sha256:other"))
