"""The engine as an event loop sees it: leases and events that can be awaited. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from softprompt.errors import SoftpromptError
from softprompt.generation.request import Event, Finished, ModelRequest, RequestFailed
from softprompt.generation.scheduler import RequestHandle
from softprompt.generation.sharing import NOBODY, Owner, Places
from softprompt.library.card import Card
from softprompt.serving.engine import Engine
from softprompt.serving.registry import Lease

__all__ = ["Model", "Service"]

_LOADERS = 16
"""Threads in which leases wait for what is being loaded."""


@dataclass(frozen=True)
class Model:
    """One name that may be asked for.

    Attributes:
        id: the name.
        created: seconds since 1970; 0 for the bare base.
        card: what is known about it; None for the bare base.
    """

    id: str
    created: int
    card: Card | None


class Service:
    """One engine, for the coroutines of one event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loaders = ThreadPoolExecutor(_LOADERS, "softprompt-lease")
        self._cards: dict[str, tuple[Hashable, Card]] = {}

    async def lease(self, name: str) -> Lease:
        """What a name means now; errors as in ``Registry.lease``. Only what must be loaded takes a thread."""
        registry = self.engine.registry
        held = registry.lease_held(name)
        if held is not None:
            return held
        loading = asyncio.get_running_loop().run_in_executor(self._loaders, registry.lease, name)
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(_give_back)
            raise

    def places(self, owner: Owner = NOBODY) -> Places:
        """How many requests of an owner would be taken on now, and if the engine were idle."""
        return self.engine.places(owner)

    async def run(
        self,
        request: ModelRequest,
        owner: Owner = NOBODY,
        handed_in: Callable[[RequestHandle], None] = lambda handle: None,
    ) -> AsyncIterator[Event]:
        """The events of a request, whose handle is told at once. Leaving the loop early calls it off."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        handle = self.engine.submit(request, tell, owner=owner)
        handed_in(handle)
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Finished | RequestFailed):
                    return
        finally:
            handle.cancel()

    def models(self) -> list[Model]:
        """Every name that can be asked for, the bare base first; broken artifacts are left out."""
        library = self.engine.library
        found, cards = [Model(self.engine.base.name, 0, None)], dict[str, tuple[Hashable, Card]]()
        names = library.names()
        library.foresee(names)
        for name in names:
            stamp = library.stamp(name)
            known = self._cards.get(name)
            if stamp is None:
                continue
            if known is None or known[0] != stamp:
                try:
                    known = (stamp, library.card(name))
                except SoftpromptError:
                    continue
            cards[name] = known
            created = int(datetime.fromisoformat(known[1].created).timestamp())
            found.append(Model(name, created, known[1]))
        self._cards = cards
        return found

    def close(self) -> None:
        """Let the threads go."""
        self._loaders.shutdown(wait=False, cancel_futures=True)


def _give_back(loading: asyncio.Future[Lease]) -> None:
    """Close a lease that came when nobody waited for it any more."""
    if not loading.cancelled() and loading.exception() is None:
        loading.result().close()
