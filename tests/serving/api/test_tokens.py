"""Texts as tokens and back, likelihoods of what was read, the server's version, addresses with a slash."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

import softprompt
from serving.api import house
from softprompt.library.prompt import Prompt

USER: Any = [{"role": "user", "content": "rates cut"}]


def post(http: httpx.Client, path: str, **body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("model", ["free", "topics", "tiny-chat"])
def test_the_tokens_are_those_that_a_completion_reads(
    http: httpx.Client, prompts: dict[str, Prompt], model: str
) -> None:
    told = post(http, "/tokenize", model=model, prompt="rates cut", return_token_strs=True)
    read = post(http, "/v1/completions", model=model, prompt="rates cut", max_tokens=1)
    assert told["count"] == len(told["tokens"]) == read["usage"]["prompt_tokens"]
    wanted = prompts[model].tokens("rates cut").ids if model in prompts else house.base().encode("rates cut")
    assert told["tokens"] == list(wanted)
    assert told["token_strs"] == house.tokenizer().convert_ids_to_tokens(list(wanted))
    assert told["max_model_len"] == 512
    text = post(http, "/detokenize", model=model, tokens=told["tokens"])["prompt"]
    assert text == house.tokenizer().decode(list(wanted))


def test_chats_are_told_with_and_without_the_turn_that_begins(http: httpx.Client) -> None:
    for how in ({}, {"add_generation_prompt": False}):
        told = post(http, "/tokenize", messages=USER, **how)
        text = house.base().render_chat(USER, **how)
        assert post(http, "/detokenize", tokens=told["tokens"])["prompt"] == text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": USER}, "prompt"),
        ("/tokenize", {"model": "nobody", "prompt": "x"}, "model"),
        ("/detokenize", {"tokens": [97]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)
def test_what_is_no_text_is_refused(http: httpx.Client, path: str, body: Any, param: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"] == param


def test_likelihoods_of_what_was_read_are_those_of_an_echo(http: httpx.Client) -> None:
    body: Any = {"model": "free", "prompt": ["rates cut", "x"], "max_tokens": 2, "temperature": 0}
    got = post(http, "/v1/completions", **body, prompt_logprobs=2)["choices"]
    echo = post(http, "/v1/completions", **body, echo=True, logprobs=2)["choices"]
    plain = post(http, "/v1/completions", **body)["choices"]
    for mine, theirs, bare in zip(got, echo, plain, strict=True):
        assert mine["text"] == bare["text"]
        assert mine["logprobs"] is None
        ids = post(http, "/tokenize", model="free", prompt=body["prompt"][mine["index"]])["tokens"]
        told = [
            place[str(token)]["logprob"] for token, place in zip(ids, mine["prompt_logprobs"], strict=True)
        ]
        assert told == pytest.approx(theirs["logprobs"]["token_logprobs"][: len(ids)])
        for place in mine["prompt_logprobs"]:
            ranks = sorted(fact["rank"] for fact in place.values() if fact["rank"])
            assert ranks == [1, 2]
    chat = post(
        http, "/v1/chat/completions", model="tiny-chat", messages=USER, max_tokens=1, prompt_logprobs=0
    )
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    for wrong in ({"stream": True}, {"logprobs": 1}):
        body = {"model": "free", "prompt": "x", "max_tokens": 1, "prompt_logprobs": 2, **wrong}
        answer = http.post("/v1/completions", json=body)
        assert answer.json()["error"]["param"] == "prompt_logprobs"


def test_the_version_is_told(http: httpx.Client) -> None:
    assert http.get("/version").json() == {"version": softprompt.__version__}


def test_a_slash_at_the_end_changes_nothing(http: httpx.Client) -> None:
    for path in ("/v1/models", "/health", "/v1/models/free"):
        assert http.get(f"{path}/").status_code == http.get(path).status_code == 200
    assert (
        post(http, "/v1/completions/", model="free", prompt="x", max_tokens=1)["object"] == "text_completion"
    )
