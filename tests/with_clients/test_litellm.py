"""litellm, by the names it has for OpenAI's interface and for vLLM's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from with_clients.asked import USER, WEATHER, Person

litellm = pytest.importorskip("litellm", reason="`make clients` makes an environment that has it")

MODELS = ("openai/soft", "hosted_vllm/soft")


def ask(url: str, model: str, **more: Any) -> dict[str, Any]:
    usual = {"max_tokens": 12, "temperature": 0}
    return {"model": model, "api_base": url, "api_key": "none", "messages": USER, **usual, **more}


@pytest.mark.parametrize("model", MODELS)
def test_whole_answers_and_streams(url: str, said: str, model: str) -> None:
    assert litellm.completion(**ask(url, model)).choices[0].message.content == said
    chunks = litellm.completion(**ask(url, model), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said
    later = asyncio.run(litellm.acompletion(**ask(url, model)))
    assert later.choices[0].message.content == said


@pytest.mark.parametrize("model", MODELS)
def test_classes_and_functions(url: str, model: str) -> None:
    held = ask(url, model, max_tokens=200, seed=1)
    answer = litellm.completion(**held, response_format=Person)
    Person.model_validate_json(answer.choices[0].message.content)
    answer = litellm.completion(**held, tools=[WEATHER], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)["city"] in {"Rome", "Oslo"}) == (
        "weather",
        True,
    )
    history = [
        *USER,
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    answered = litellm.completion(
        **{**held, "messages": history, "max_tokens": 5}, tools=[WEATHER], tool_choice="none"
    )
    assert answered.choices[0].message.content


def test_texts_and_refusals(url: str) -> None:
    about: Any = {"model": "text-completion-openai/soft", "api_base": url, "api_key": "none", "max_tokens": 3}
    assert litellm.text_completion(prompt="Who?", **about).choices[0].text
    with pytest.raises(litellm.NotFoundError, match="nobody"):
        litellm.completion(**ask(url, "openai/nobody"), num_retries=0)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**ask(url, "openai/soft", max_tokens=10**6), num_retries=0)
