"""The openai package, as old as litellm, LlamaIndex and instructor want it: sync, async, streams, classes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from with_clients.asked import USER, WEATHER, Person

pytest.importorskip("instructor", reason="`make clients` makes an environment that has other openai packages")

ASKED: Any = {"model": "soft", "messages": USER, "max_tokens": 12, "temperature": 0}
HELD: Any = {"model": "soft", "messages": USER, "max_tokens": 200, "seed": 2}


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def test_whole_answers_streams_and_texts(client: openai.OpenAI, said: str) -> None:
    assert client.chat.completions.create(**ASKED).choices[0].message.content == said
    chunks = list(
        client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert client.completions.create(model="soft", prompt="Who?", max_tokens=3).choices[0].text
    assert (
        client.responses.create(model="soft", input=USER, max_output_tokens=12, temperature=0).output_text
        == said
    )
    assert {"soft"} <= {model.id for model in client.models.list()}
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(**{**ASKED, "model": "nobody"})


def test_async_clients_and_streams(url: str, said: str) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:

            async def streamed() -> str:
                chunks = await client.chat.completions.create(**ASKED, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            whole = client.chat.completions.create(**ASKED)
            parts = await asyncio.gather(streamed(), streamed(), whole)
            return [*parts[:2], parts[2].choices[0].message.content or ""]

    assert asyncio.run(ask()) == [said] * 3


def test_classes_are_parsed_whole_and_in_a_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.parse(**HELD, response_format=Person)
    assert isinstance(whole.choices[0].message.parsed, Person)
    with client.chat.completions.stream(**HELD, response_format=Person) as stream:
        last = stream.get_final_completion()
    assert last.choices[0].message.parsed == whole.choices[0].message.parsed
    answer = client.responses.parse(model="soft", input=USER, max_output_tokens=200, text_format=Person)
    assert isinstance(answer.output_parsed, Person)


def test_functions_are_called_whole_and_in_a_stream(client: openai.OpenAI) -> None:
    use: Any = {**HELD, "tools": [WEATHER], "tool_choice": "required"}
    (call,) = client.chat.completions.create(**use).choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments)["city"] in {"Rome", "Oslo"}
    with client.chat.completions.stream(**use) as stream:
        (again,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert again.function.arguments == call.function.arguments
    parsed = client.chat.completions.parse(
        **HELD, tools=[openai.pydantic_function_tool(Person)], tool_choice="required"
    )
    (made,) = parsed.choices[0].message.tool_calls or []
    assert isinstance(made.function.parsed_arguments, Person)
