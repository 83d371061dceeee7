"""Who may hold a connection, and for how long without asking anything: knows sockets, not requests."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

__all__ = ["Connections", "protocol"]

log = logging.getLogger("softprompt.serving")

_RESERVE = 128
"""Descriptors kept for artifacts, logs and threads, out of those the system gives the process."""

_QUIET = 60.0
"""Seconds between two lines of the log about connections turned away."""


def _usual() -> int:
    """A thousand, or what the system's limit on open files leaves."""
    if sys.platform == "win32":
        return 1_000
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000 if soft == resource.RLIM_INFINITY else max(8, min(1_000, soft - _RESERVE))


@dataclass(eq=False)
class Connections:
    """The connections of one server.

    Attributes:
        most: how many there may be; more are closed at once.
        most_each: how many of them one address may hold, so that nobody can take all.
        head_seconds: how long a request's head may take to arrive, counted from the connection or, on one
            that goes on, from the head's first byte.
    """

    most: int = field(default_factory=_usual)
    most_each: int = 0
    head_seconds: float = 10.0

    def __post_init__(self) -> None:
        self.most_each = self.most_each or max(1, self.most // 2)
        self._by_address: Counter[str] = Counter()
        self._turned_away = 0
        self._told = -_QUIET

    def enter(self, address: str) -> bool:
        """Count a connection in, unless there are too many."""
        if self._by_address.total() < self.most and self._by_address[address] < self.most_each:
            self._by_address[address] += 1
            return True
        self._turned_away += 1
        if time.monotonic() - self._told >= _QUIET:
            log.warning(
                "%s connections turned away: %s are open, %s of them from %s",
                self._turned_away,
                self._by_address.total(),
                self._by_address[address],
                address,
            )
            self._turned_away, self._told = 0, time.monotonic()
        return False

    def leave(self, address: str) -> None:
        """Count it out again."""
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


def protocol(connections: Connections) -> type[asyncio.Protocol]:
    """The protocol of uvicorn, held to the bounds of ``connections``."""

    class Bounded(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
        """One connection."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._address: str | None = None
            self._head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            address = self.client[0] if self.client else "-"
            if not connections.enter(address):
                transport.abort()
                return
            self._address = address
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._have_head()
            if self._address is not None:
                connections.leave(self._address)
                self._address = None

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._have_head()
            elif before is None or before.response_complete:
                self._await_head()

        def _await_head(self) -> None:
            if self._head is None:
                loop = asyncio.get_running_loop()
                self._head = loop.call_later(connections.head_seconds, self.transport.abort)

        def _have_head(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

    return Bounded
