"""A request inside: what it was given is given back, whoever leaves when."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from softprompt.serving.api.visit import _leased


class Loading:
    """A service whose lease takes as long as it is told."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.closed = asyncio.Event(), asyncio.Event(), 0

    async def lease(self, name: str) -> Any:
        self.begun.set()
        await self.go_on.wait()
        return self

    def close(self) -> None:
        self.closed += 1


def test_a_lease_that_comes_when_its_client_has_left_is_given_back() -> None:
    async def leave() -> int:
        loading = Loading()
        serving: Any = SimpleNamespace(service=loading)
        async with contextlib.AsyncExitStack() as stack:
            asked = asyncio.ensure_future(_leased(serving, "topics", stack))
            await loading.begun.wait()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        assert not loading.closed
        loading.go_on.set()
        for _ in range(5):
            await asyncio.sleep(0)
        return loading.closed

    assert asyncio.run(leave()) == 1
