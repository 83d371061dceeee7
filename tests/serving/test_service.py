"""The engine from an event loop: what is held needs no thread, nothing called off stays leased."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.api import house
from softprompt.errors import ConfigError
from softprompt.generation.request import Finished
from softprompt.generation.sampler import Sampling
from softprompt.serving.engine import Engine
from softprompt.serving.service import Service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    house.fill(tmp_path)
    with Engine(house.base(), tmp_path, pack=False) as engine:
        made = Service(engine)
        yield made
        made.close()


def name_of(service: Service) -> str:
    return service.models()[1].id


def users(service: Service, name: str) -> int:
    return {held.name: held.users for held in service.engine.registry.loaded()}.get(name, 0)


def test_a_lease_nobody_waits_for_any_more_is_given_back(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, begun, go = name_of(service), threading.Event(), threading.Event()
    lease = service.engine.registry.lease

    def slow(wanted: str) -> Any:
        begun.set()
        go.wait(10)
        return lease(wanted)

    monkeypatch.setattr(service.engine.registry, "lease", slow)

    async def call_off() -> None:
        asked = asyncio.ensure_future(service.lease(name))
        await asyncio.to_thread(begun.wait, 10)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        go.set()
        for _ in range(200):
            await asyncio.sleep(0.02)
            if service.engine.registry.lease_held(name) is not None:
                break

    asyncio.run(call_off())
    assert users(service, name) == 1  # the one that has just been leased to look


def test_what_is_held_is_leased_without_a_thread(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    name = name_of(service)
    service.engine.registry.lease(name).close()
    monkeypatch.setattr(service.engine.registry, "lease", None)
    for wanted in (name, service.engine.base.name):
        asyncio.run(service.lease(wanted)).close()
        assert users(service, wanted) == 0


def test_leaving_the_events_early_calls_the_job_off(service: Service) -> None:
    with service.engine.registry.lease(service.engine.base.name) as version:
        job = version.generate((5, 6, 7), Sampling(max_new_tokens=400, ignore_end=True))

        async def leave() -> None:
            events = service.run(job)
            await anext(events)
            await events.aclose()  # type: ignore[attr-defined]
            for _ in range(500):
                if not service.engine.state().running:
                    return
                await asyncio.sleep(0.01)

        asyncio.run(leave())
        assert service.engine.state().running == 0

        async def whole() -> list[Any]:
            return [
                event async for event in service.run(version.generate((5, 6), Sampling(max_new_tokens=3)))
            ]

        assert isinstance(asyncio.run(whole())[-1], Finished)


def test_models_are_read_again_when_they_change(service: Service) -> None:
    before = [model.id for model in service.models()]
    assert before[0] == service.engine.base.name
    assert before[1:] == sorted(before[1:])
    service.engine.library.remove(before[1])
    assert before[1] not in [model.id for model in service.models()]


def test_a_room_no_row_would_fit_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="room is 63 positions"):
        Engine(house.base(), tmp_path, room=63, pack=False)


def test_an_engine_that_is_asked_starts_by_itself(tmp_path: Path) -> None:
    engine = Engine(house.base(), tmp_path, pack=False)
    assert not engine.alive
    assert len(engine.generate(["abc", "d"], max_new_tokens=2)) == 2
    engine.close()
    assert not engine.alive
