"""instructor, in the modes it has for OpenAI's interface, whole, partly and in lists."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from with_clients.asked import USER, Person

instructor = pytest.importorskip("instructor", reason="`make clients` makes an environment that has it")

ASKED: Any = {"model": "soft", "messages": USER, "max_tokens": 300, "seed": 2, "max_retries": 0}


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def test_the_usual_way(client: openai.OpenAI) -> None:
    assert isinstance(instructor.from_openai(client).create(response_model=Person, **ASKED), Person)


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test_every_mode_that_a_schema_holds(client: openai.OpenAI, mode: str) -> None:
    made = instructor.from_openai(client, mode=instructor.Mode[mode])
    assert isinstance(made.create(response_model=Person, **ASKED), Person)


def test_parts_of_an_answer_as_they_come(client: openai.OpenAI) -> None:
    made = instructor.from_openai(client)
    *_, last = made.create_partial(response_model=Person, **ASKED)
    assert Person.model_validate(last.model_dump())


def test_async_clients(url: str) -> None:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            return await instructor.from_openai(client).create(response_model=Person, **ASKED)

    assert isinstance(asyncio.run(ask()), Person)


def test_through_litellm(url: str) -> None:
    litellm = pytest.importorskip("litellm")
    made = instructor.from_litellm(litellm.completion)
    asked = {**ASKED, "model": "openai/soft", "api_base": url, "api_key": "none"}
    assert isinstance(made.create(response_model=Person, **asked), Person)
