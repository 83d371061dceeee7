"""Chats go through the base's template, or through a prompt's own that was learnt in one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from tokenizers import processors

import tiny
from serving.api import house
from softprompt.checkpoints.freeze import freeze
from softprompt.data.chat import turns
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling
from softprompt.library.prompt import Prompt
from softprompt.serving.engine import Engine

USER = [{"role": "user", "content": "rates cut"}]


def ask(http: httpx.Client, **body: Any) -> Any:
    answer = http.post(
        "/v1/chat/completions", json={"model": "brought", "temperature": 0, "max_tokens": 8, **body}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize("model", ["chatty", "brought"])
def test_the_chat_stands_behind_the_prefix(
    http: httpx.Client, prompts: dict[str, Prompt], model: str
) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    ids = tuple(house.base().encode(house.base().render_chat(messages)))
    eight, prefix = Sampling(max_new_tokens=8), prompts[model].prefix
    wanted = generate([GenerateRequest(model=house.base(), prefix=prefix, ids=ids, sampling=eight)])
    got = ask(http, model=model, messages=messages)
    assert text_of(got) == wanted[0]
    assert got["choices"][0]["message"]["role"] == "assistant"
    assert got["usage"]["prompt_tokens"] == len(ids)


def test_a_prompt_learnt_in_a_chat_takes_one_message_by_its_own_template(
    http: httpx.Client, prompts: dict[str, Prompt]
) -> None:
    got = ask(http, model="chatty", messages=USER)
    assert text_of(got) == prompts["chatty"].generate("rates cut", max_new_tokens=8)


def test_a_prompt_learnt_in_a_chat_takes_many_messages_as_it_would_have_learnt_them(
    http: httpx.Client, prompts: dict[str, Prompt]
) -> None:
    messages = [*USER, {"role": "assistant", "content": "why"}, {"role": "user", "content": "so"}]
    base, prompt = house.base(), prompts["chatty"]
    text = prompt.template.input.replace(
        "{" + prompt.template.input_fields[0] + "}", turns(messages, base.render_chat)
    )
    eight = Sampling(max_new_tokens=8)
    wanted = generate(
        [GenerateRequest(model=base, prefix=prompt.prefix, ids=tuple(base.encode(text)), sampling=eight)]
    )
    got = ask(http, model="chatty", messages=messages)
    assert text_of(got) == wanted[0]
    assert got["usage"]["prompt_tokens"] == len(base.encode(text))


def test_a_prompt_learnt_on_texts_takes_one_message_by_its_own_template(
    http: httpx.Client, prompts: dict[str, Prompt]
) -> None:
    got = ask(http, model="free", messages=USER)
    assert text_of(got) == prompts["free"].generate("rates cut", max_new_tokens=8)
    assert "softprompt" not in got


@pytest.mark.parametrize(
    ("model", "messages", "said"),
    [
        ("free", [{"role": "system", "content": "Be brief."}, *USER], "learnt on single texts"),
        ("free", [*USER, {"role": "assistant", "content": "why"}, *USER], "/v1/completions"),
        ("pairs", USER, "2 columns (premise, hypothesis), not on chats; send rows to /v1/classify"),
    ],
)
def test_a_chat_that_a_prompt_learnt_on_texts_cannot_read_is_refused(
    http: httpx.Client, model: str, messages: Any, said: str
) -> None:
    answer = http.post("/v1/chat/completions", json={"model": model, "messages": messages})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_a_text_that_was_cut_is_said_in_every_reply(http: httpx.Client) -> None:
    long = "rates cut again " * 20
    said = "The text was longer than this prompt was learnt to read, and was cut at the beginning."
    chat = {"messages": [{"role": "user", "content": long}], "max_tokens": 2}
    assert ask(http, model="free", **chat)["softprompt"]["notes"] == [said]
    with http.stream("POST", "/v1/chat/completions", json={"model": "free", "stream": True, **chat}) as got:
        assert said in next(got.iter_lines())
    asked: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": [long, "short", long], "max_tokens": 2},
        "/v1/classify": {"input": [long, "short", long]},
    }
    for path, body in asked.items():
        notes = http.post(path, json={"model": "topics", **body}).json()["softprompt"]["notes"]
        assert notes[0].startswith("2 of 3 texts (0, 2) were longer"), path


def test_parts_and_developers_are_text_and_systems(http: httpx.Client) -> None:
    plain = [{"role": "system", "content": "Be brief."}, *USER]
    parts = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "rates "}, {"type": "text", "text": "cut"}]},
    ]
    assert text_of(ask(http, messages=parts)) == text_of(ask(http, messages=plain))


@pytest.mark.parametrize("stream_usage", [True, False])
def test_streams_add_up_and_begin_with_the_role(http: httpx.Client, stream_usage: bool) -> None:
    whole = ask(http, messages=USER, n=2, logprobs=True, top_logprobs=2)
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none") as client:
        chunks = list(
            client.chat.completions.create(
                model="brought",
                messages=[{"role": "user", "content": "rates cut"}],
                max_tokens=8,
                temperature=0,
                n=2,
                logprobs=True,
                top_logprobs=2,
                stream=True,
                stream_options={"include_usage": stream_usage},
            )
        )
    *chunks, last = chunks if stream_usage else [*chunks, None]
    assert (last is not None and last.usage is not None) == stream_usage
    for number, choice in enumerate(whole["choices"]):
        own = [c.choices[0] for c in chunks if c.choices[0].index == number]
        assert own[0].delta.role == "assistant"
        assert [o.delta.role for o in own[1:]] == [None] * (len(own) - 1)
        assert "".join(o.delta.content or "" for o in own) == choice["message"]["content"]
        assert [o.finish_reason for o in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        tokens = [t for o in own if o.logprobs for t in o.logprobs.content or []]
        assert [t.token for t in tokens] == [t["token"] for t in choice["logprobs"]["content"]]
        assert tokens[0].logprob == pytest.approx(tokens[0].top_logprobs[0].logprob)
        assert len(tokens[0].top_logprobs) == 2
        assert bytes(tokens[0].bytes or []).decode() == tokens[0].token


def test_without_a_number_an_answer_may_fill_what_room_there_is(http: httpx.Client) -> None:
    got = ask(http, messages=USER, max_tokens=None, stop=None)
    usage = got["usage"]
    full = usage["total_tokens"] + usage["prompt_tokens_details"]["virtual_tokens"] == 512
    assert full or got["choices"][0]["finish_reason"] == "stop"


def test_what_asks_for_nothing_passes(http: httpx.Client) -> None:
    ask(
        http,
        messages=USER,
        tools=[],
        response_format={"type": "text"},
        tool_choice="none",
        modalities=["text"],
        audio=None,
        functions=None,
        parallel_tool_calls=False,
        metadata={},
        store=False,
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"max_completion_tokens": 4000}, "max_tokens"),
    ],
)
def test_more_than_text_is_refused_by_name(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "free", "messages": USER, **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_clients_made_for_openai_work(http: httpx.Client) -> None:
    langchain = pytest.importorskip("langchain_openai")
    whole = text_of(ask(http, messages=USER))
    model = langchain.ChatOpenAI(
        base_url=f"{http.base_url}/v1", api_key="none", model="brought", temperature=0, max_tokens=8
    )
    assert model.invoke("rates cut").content == whole
    assert "".join(str(part.content) for part in model.stream("rates cut")) == whole
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none") as client:
        assert "free" in [m.id for m in client.models.list()]
        with pytest.raises(openai.NotFoundError, match="nothing-like-it"):
            client.completions.create(model="nothing-like-it", prompt="x")


def test_async_clients_are_answered_together(http: httpx.Client) -> None:
    import asyncio

    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none") as client:
            asked = [
                client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": text}], max_tokens=6, temperature=0
                )
                for model in ("free", "chatty", "tiny-chat")
                for text in ("one", "two")
            ]
            return [a.choices[0].message.content for a in await asyncio.gather(*asked)]

    wanted = [
        text_of(ask(http, model=model, messages=[{"role": "user", "content": text}], max_tokens=6))
        for model in ("free", "chatty", "tiny-chat")
        for text in ("one", "two")
    ]
    assert asyncio.run(ask_all()) == wanted


def test_a_chat_whose_template_writes_the_start_token_is_given_no_second_one(tmp_path: Path) -> None:
    """The bare base stands behind what its tokenizer sets first, and most chat templates write that, too."""
    marked = copy.deepcopy(house.tokenizer())
    marked.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    marked.chat_template = "{{ bos_token }}" + house.CHAT
    base = freeze(tiny.model("llama"), marked, "tiny-starts")
    assert base.start_ids == (1,)
    ids = base.encode(base.render_chat(USER))
    assert ids.count(1) == 1
    with torch.no_grad():
        wanted = tiny.model("llama").generate(
            torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
    with Engine(base, tmp_path, pack=False) as engine, house.client(engine) as client:
        body = {"model": base.name, "messages": USER, "max_tokens": 8, "temperature": 0}
        got = client.post("/v1/chat/completions", json=body).json()
    assert text_of(got) == base.decode(wanted[0, len(ids) :])
    assert got["usage"]["prompt_tokens"] == len(ids) - 1
    assert got["usage"]["prompt_tokens_details"]["virtual_tokens"] == 1
