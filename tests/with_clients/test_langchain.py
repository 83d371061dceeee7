"""LangChain's models for chats and texts: streams, structured output in its ways, functions, a history."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from with_clients.asked import Person

pytest.importorskip("instructor", reason="`make clients` makes an environment that has other openai packages")
langchain = pytest.importorskip("langchain_openai")


def model(url: str, **more: Any) -> Any:
    usual = {"max_tokens": 200, "seed": 4, "max_retries": 0}
    return langchain.ChatOpenAI(base_url=url, api_key="none", model="soft", **usual | more)


def test_whole_answers_and_streams(url: str, said: str) -> None:
    brief = model(url, max_tokens=12, temperature=0)
    assert brief.invoke("Who?").content == said
    assert "".join(part.content for part in brief.stream("Who?")) == said
    assert [one.content for one in brief.batch(["Who?"] * 3)] == [said] * 3
    assert asyncio.run(brief.ainvoke("Who?")).content == said
    responses = model(url, max_tokens=12, temperature=0, use_responses_api=True, seed=None)
    assert responses.invoke("Who?").text == said
    texts = langchain.OpenAI(base_url=url, api_key="none", model="soft", max_tokens=3, max_retries=0)
    assert texts.invoke("Who?")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(url: str, method: str) -> None:
    chain = model(url).with_structured_output(Person, method=method)
    assert isinstance(chain.invoke("Who?"), Person)
    assert isinstance(model(url).with_structured_output(Person).invoke("Who?"), Person)
    raw = model(url).with_structured_output(Person, method=method, include_raw=True).invoke("Who?")
    assert isinstance(raw["parsed"], Person)
    assert isinstance(list(chain.stream("Who?"))[-1], Person)


def test_functions_and_their_answers(url: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """Tells the weather."""
        return f"sunny in {city}"

    bound = model(url).bind_tools([weather], tool_choice="any")
    called = bound.invoke("Weather?")
    (call,) = called.tool_calls
    history = [
        HumanMessage("Weather?"),
        called,
        ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]),
    ]
    assert model(url, max_tokens=5).bind_tools([weather]).invoke(history).content
    (streamed,) = sum(list(bound.stream("Weather?"))[1:], next(iter(bound.stream("Weather?")))).tool_calls
    assert streamed["args"] == call["args"]
