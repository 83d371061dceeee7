"""One replica: an engine and its whole HTTP application, called without a socket. Knows no Ray.

Keys and limits are the door's (``door``), which vouches for whom it sends; whatever else a request can meet,
it meets here as it would in a server of its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from softprompt.checkpoints.freeze import load_base
from softprompt.errors import ResourceError
from softprompt.serving.api.app import create_app
from softprompt.serving.api.gate import Bounds
from softprompt.serving.api.page import page_routes
from softprompt.serving.engine import Engine
from softprompt.serving.keys import Key
from softprompt.serving.limits import Limited, Limiter, Pass
from softprompt.serving.service import Service

__all__ = ["Asked", "Begun", "Part", "Replica", "ServeSettings", "Spent", "played"]

Message = MutableMapping[str, Any]
ASGIApp = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class ServeSettings:
    """What every replica serves, and how; plain values, for they travel.

    Attributes:
        library: the address of the prompts, which every node can read.
        base: fields of ``load_base``.
        engine: fields of ``Engine``.
        called: what the base is called for clients; None for its own name.
        keyed: whether there are keys.
        admin: whether the admin paths are open without keys.
        seconds: how long an answer may take.
        origins: sites whose pages may ask.
    """

    library: str
    base: Mapping[str, Any]
    engine: Mapping[str, Any] = field(default_factory=dict)
    called: str | None = None
    keyed: bool = False
    admin: bool = False
    seconds: float = 600.0
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A request that was let in, as it travels.

    Attributes:
        name: the prompt it is for; empty for none.
        scope: method, path, query and headers, as ASGI has them.
        body: all of it.
        key: whose it is, without limits; None where there are no keys.
    """

    name: str
    scope: Mapping[str, Any]
    body: bytes = field(repr=False)
    key: Key | None = None


@dataclass(frozen=True)
class Begun:
    """The head of an answer."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Spent:
    """Tokens that were read or written for a request since the last of these; for the door to count."""

    tokens: int


Part = Begun | Spent | bytes
"""What an answer comes in."""


class Replica:
    """Loads the base, starts the engine and answers.

    Raises:
        SoftpromptError: the base cannot be loaded, or a pinned prompt.
    """

    def __init__(self, settings: ServeSettings) -> None:
        base = load_base(**settings.base)
        if settings.called is not None:
            base = replace(base, name=settings.called)
        self._engine = Engine(base, settings.library, **settings.engine)
        for name in settings.engine.get("pinned", ()):
            self._engine.registry.lease(name).close()
        self._engine.start()
        self._budget = settings.engine.get("budget")
        self._bounds = Bounds(seconds=settings.seconds)
        self._app = create_app(
            Service(self._engine),
            keys=_Vouched() if settings.keyed else None,
            limits=_Meters(),
            bounds=self._bounds,
            admin_open=settings.admin,
            page=page_routes,
            origins=settings.origins,
        )

    async def __call__(self, asked: Asked) -> AsyncIterator[Part]:
        """The head of the answer, then its bytes, and what it took. Leaving early calls the request off."""
        meter = _Meter()
        _vouched.set(asked.key)
        _metered.set(meter)
        async for part in played(self._app, asked):
            if isinstance(part, Begun):
                said = f"{socket.gethostname()}-{os.getpid()}; loads={self.loads}"
                part = replace(part, headers=(*part.headers, (b"x-softprompt-replica", said.encode())))
            yield part
            if tokens := meter.read():
                yield Spent(tokens)
        if tokens := meter.read():
            yield Spent(tokens)

    @property
    def loads(self) -> int:
        """How often a request had to wait for its prompt to be loaded, since the start."""
        return self._engine.registry.counts.misses

    def check_health(self) -> None:
        """Raises where the engine stopped, or had work and stood still."""
        state = self._engine.state()
        began = state.step_began
        if not self._engine.alive:
            raise ResourceError("The engine has stopped.")
        if began is not None and time.monotonic() - began > self._bounds.stalled_seconds:
            raise ResourceError("The engine stands still.")

    def record_routing_stats(self) -> dict[str, Any]:
        """What it holds in memory, the longest unused first, and may hold, in bytes; for ``Homes.holds``.

        A router outlives the replicas it was made for, so it is told here what those of now may hold.
        """
        _, *held = self._engine.registry.loaded()
        return {"held": {one.name: one.nbytes for one in held if one.current}, "budget": self._budget}

    def close(self) -> None:
        """Let the engine go."""
        self._engine.close(0.0)


_vouched: ContextVar[Key | None] = ContextVar("softprompt_vouched", default=None)


class _Vouched:
    """Keys as a replica knows them: the one whose request the door sent."""

    def find(self, secret: str) -> Key | None:
        return _vouched.get()


class _Meter:
    """Tokens of one request that nobody was told of yet."""

    def __init__(self) -> None:
        self._tokens = 0

    def spend(self, tokens: int) -> None:
        self._tokens += tokens

    def read(self) -> int:
        tokens, self._tokens = self._tokens, 0
        return tokens


_metered: ContextVar[_Meter] = ContextVar("softprompt_metered")


class _Meters(Limiter):
    """Limits nothing: the door does, and is told what every request takes."""

    def enter(self, key: Limited) -> Pass:
        return Pass(lambda: None, _metered.get().spend)


async def played(app: ASGIApp, asked: Asked) -> AsyncIterator[Begun | bytes]:
    """An ASGI application's answer to a request that is all there."""
    parts: asyncio.Queue[Begun | bytes | None] = asyncio.Queue()
    body: list[bytes] = [asked.body]

    async def receive() -> Message:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        await asyncio.Event().wait()  # a client that leaves ends the whole task
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            parts.put_nowait(Begun(message["status"], tuple(map(tuple, message["headers"]))))
        elif message.get("body"):
            parts.put_nowait(message["body"])

    async def play() -> None:
        try:
            await app({"type": "http", "state": {}, **asked.scope}, receive, send)
        finally:
            parts.put_nowait(None)

    playing = asyncio.create_task(play())
    try:
        while (part := await parts.get()) is not None:
            yield part
        await playing
    finally:
        playing.cancel()
