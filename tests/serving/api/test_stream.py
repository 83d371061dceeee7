"""Jobs end with the client that asked for them, and every stream gives back what it took."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serving.api import house
from serving.shop import until
from softprompt.errors import BaseModelError
from softprompt.generation.request import Event, Finished, RequestFailed, TextDelta
from softprompt.generation.sharing import Owner, Places
from softprompt.serving.api.gate import Bounds
from softprompt.serving.api.stream import Crowd, sse
from softprompt.serving.engine import Engine

LONG: dict[str, Any] = {"model": "tiny-chat", "prompt": "x", "max_tokens": 480, "logit_bias": {"2": -100}}


def quiet(engine: Engine) -> bool:
    """Whether nothing runs, waits or is leased any more, at least soon."""
    for _ in range(200):
        state = engine.state()
        if not state.running and not state.waiting and not any(h.users for h in engine.registry.loaded()):
            return True
        time.sleep(0.05)
    return False


def test_a_client_that_leaves_ends_its_jobs(http: httpx.Client, engine: Engine) -> None:
    before = engine.state().steps
    with http.stream("POST", "/v1/completions", json={**LONG, "n": 4, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        next(answer.iter_lines())
    assert quiet(engine)
    assert engine.state().steps - before < 400


def test_so_it_does_without_a_stream(http: httpx.Client, engine: Engine) -> None:
    before = engine.state().steps
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/completions", json={**LONG, "n": 8}, timeout=0.3)
    assert quiet(engine)
    assert engine.state().steps - before < 400


def test_a_stream_that_takes_too_long_ends_with_an_error(engine: Engine) -> None:
    with house.client(engine, bounds=Bounds(seconds=0.4)) as http:
        text = http.post("/v1/completions", json={**LONG, "n": 8, "stream": True}).text
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert json.loads(events[-1])["error"]["code"] == "timeout"
    assert len(events) > 1
    assert quiet(engine)


def test_more_than_the_queue_holds_is_429(prompts: object, library: object) -> None:
    with (
        Engine(house.base(), str(library), rows=1, queue=2, pack=False) as small,
        house.client(small) as http,
    ):
        first = threading.Thread(
            target=http.post, args=("/v1/completions",), kwargs={"json": {**LONG, "n": 2}}
        )
        first.start()
        until(lambda: small.state().waiting == 1)
        for more in ({}, {"stream": True}):
            answer = http.post("/v1/completions", json={**LONG, "n": 2, **more})
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "1"
        assert small.state().waiting == 1, "nothing of what was refused has begun"
        first.join()
        assert quiet(small)


def test_more_than_there_will_ever_be_place_for_is_400_and_begins_nothing(
    prompts: object, library: object
) -> None:
    with (
        Engine(house.base(), str(library), rows=1, queue=2, pack=False) as small,
        house.client(small) as http,
    ):
        for more in ({}, {"stream": True}):
            answer = http.post("/v1/completions", json={**LONG, "n": 8, **more})
            assert answer.status_code == 400
            assert "takes on 3 at once" in answer.json()["error"]["message"]
        assert small.state().steps == 0


def test_an_event_is_one_line() -> None:
    assert sse({"text": "a\n\u2028b"}) == b'data: {"text":"a\\n\\u2028b"}\n\n'


class _Scripted:
    """Runs jobs that are lists of events, and counts those closed."""

    def __init__(self) -> None:
        self.closed = 0

    def places(self, owner: Owner) -> Places:
        return Places(9, 9)

    async def run(self, job: Any, owner: Any, handed_in: Any) -> AsyncIterator[Event]:
        try:
            for event in job:
                await asyncio.sleep(0)
                yield event
        finally:
            self.closed += 1


async def _told(runner: _Scripted, jobs: Any) -> list[int]:
    """Numbers of the jobs whose events came, in order."""
    async with Crowd(runner, jobs) as crowd:
        return [number async for number, _ in crowd.events()]


def test_a_crowd_ends_together() -> None:
    async def work() -> None:
        runner = _Scripted()
        good: list[Event] = [TextDelta("a", ()), Finished("stop", 1, 0, 1)]
        assert sorted(await _told(runner, [good, good])) == [0, 0, 1, 1]
        assert runner.closed == 2
        with pytest.raises(Exception, match="failed at this request"):
            await _told(
                runner, [good * 50, [TextDelta("a", ()), RequestFailed(BaseModelError("broken weights"))]]
            )
        assert runner.closed == 4
        async with Crowd(runner, [good * 50]) as crowd:  # type: ignore[list-item]
            await crowd.begun()
        assert runner.closed == 5

    asyncio.run(work())
