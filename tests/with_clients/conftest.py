"""A server that every client here talks to: a base that can spell anything, and a soft prompt on it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the internet when it is imported
os.environ["LITELLM_LOG"] = "ERROR"

import tiny
from library import samples
from serving.api import house
from serving.api.test_tools import QWEN
from softprompt.library.prompt import Prompt
from softprompt.serving.engine import Engine


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of ``soft`` and of its base, whose template knows functions."""
    folder = tmp_path_factory.mktemp("clients")
    base = tiny.byte_base(chat_template=QWEN)
    made = samples.bound(base, "prompt-tuning", samples.P, name="soft", template=house.FREE, data={})
    Prompt(base, samples.soft(base), made).save(folder)
    with Engine(base, folder, pack=False) as engine, house.client(engine) as http:
        yield f"{str(http.base_url).rstrip('/')}/v1"


@pytest.fixture
def said(url: str) -> str:
    """What ``soft`` says to ``asked.USER``, greedily, in twelve tokens."""
    import httpx

    from with_clients.asked import USER

    body = {"model": "soft", "messages": USER, "max_tokens": 12, "temperature": 0}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
    return str(answer.json()["choices"][0]["message"]["content"])
