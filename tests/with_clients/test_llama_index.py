"""LlamaIndex's model for servers like OpenAI's: texts, chats, streams, functions, structured answers."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pydantic
import pytest

from with_clients.asked import Person

openai_like = pytest.importorskip(
    "llama_index.llms.openai_like", reason="`make clients` makes an environment that has LlamaIndex"
)


def model(url: str, **more: Any) -> Any:
    usual = {"max_tokens": 12, "temperature": 0.0, "is_chat_model": True, "max_retries": 0}
    return openai_like.OpenAILike(
        model="soft", api_base=url, api_key="none", context_window=512, **usual | more
    )


class Place(pydantic.BaseModel):
    """What the function takes."""

    city: Literal["Rome", "Oslo"]


def question() -> list[Any]:
    from llama_index.core.llms import ChatMessage

    return [ChatMessage(role="user", content="Who?")]


def test_texts_chats_and_streams(url: str, said: str) -> None:
    chats = model(url)
    assert chats.chat(question()).message.content == said
    assert list(chats.stream_chat(question()))[-1].message.content == said
    assert asyncio.run(chats.achat(question())).message.content == said
    assert chats.complete("Who?").text == said
    texts = model(url, is_chat_model=False)
    whole = texts.complete("Who?").text
    assert whole
    assert list(texts.stream_complete("Who?"))[-1].text == whole


def test_functions(url: str) -> None:
    from llama_index.core.tools import FunctionTool

    def weather(city: str) -> str:
        """Tells the weather."""
        return f"sunny in {city}"

    chats = model(url, is_function_calling_model=True, max_tokens=200)
    made = FunctionTool.from_defaults(weather, fn_schema=Place)
    answer = chats.chat_with_tools([made], "Weather?", tool_required=True)
    (call,) = chats.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs["city"] in {"Rome", "Oslo"}) == ("weather", True)
    assert chats.predict_and_call([made], "Weather?", tool_required=True).response.startswith("sunny in")


@pytest.mark.parametrize("functions", [True, False])
def test_structured_answers(url: str, functions: bool) -> None:
    chats = model(
        url, is_function_calling_model=functions, should_use_structured_outputs=not functions, max_tokens=200
    )
    found = chats.as_structured_llm(Person).complete("Who?")
    assert isinstance(found.raw, Person)
