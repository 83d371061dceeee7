"""The engine: many prompts, one loaded model, in this process.

    >>> with softprompt.Engine(base, "prompts") as engine:
    ...     engine.generate([("bbc-topics", "Rates cut as growth slows"), "Once upon a time"])

It brings names and texts to the scheduler as requests, and its events back as answers; it does not know HTTP.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from softprompt.base.batch_invariant import holds
from softprompt.base.lowrank import ridden
from softprompt.base.model import Base
from softprompt.base.process import let_workers_go
from softprompt.checkpoints.prepacked import prepacked
from softprompt.data.memory import Rows, as_texts, is_frame
from softprompt.data.rows import Encoded
from softprompt.data.table import Text
from softprompt.errors import ConfigError, DataError
from softprompt.evaluation.choices import probabilities
from softprompt.generation.request import (
    CandidateLogprobs,
    Event,
    Finished,
    ModelRequest,
    RequestFailed,
    TextDelta,
    sampling_of,
)
from softprompt.generation.sampler import Sampling
from softprompt.generation.scheduler import Callback, EngineState, RequestHandle, Scheduler
from softprompt.generation.sharing import NOBODY, Owner, Places
from softprompt.serving.registry import Lease, Registry
from softprompt.serving.version import Version, bare

if TYPE_CHECKING:
    from softprompt.library.folder import Library

__all__ = ["Ask", "Backend", "Engine"]


class Ask(NamedTuple):
    """A text for a prompt of the library; None for the bare base."""

    prompt: str | None
    text: Text


Asks = Iterable[Text | tuple[str | None, Text]] | Rows
"""Texts to answer, each alone or with the name of a prompt."""


class Backend(Protocol):
    """What carries requests out instead of the own scheduler; its methods mean what ``Scheduler``'s do."""

    def admit(self, version: Version) -> Version:
        """Let a version in that was just built; raises an ``ArtifactError`` that says why not."""
        ...

    def submit(
        self, request: ModelRequest, callback: Callback, *, block: bool = False, owner: Owner = NOBODY
    ) -> RequestHandle: ...
    def places(self, owner: Owner = NOBODY) -> Places: ...
    def state(self) -> EngineState: ...
    def run(self) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...


class Engine:
    """One frozen base that answers for every prompt of a library, and for itself, in shared batches.

    Attributes:
        frozen: the base that prompts are learnt on and held against.
        base: the same as it is served, its layers laid for speed and ready for adapters.
        library: where the prompts lie.
        registry: the versions in memory.

    Args:
        base: the frozen base; not a byte of it changes.
        library: the folder of prompts, read as names are asked for.
        budget: bytes that loaded prompts may take; None for no limit.
        rows: most rows that write at once, and most that are scored.
        room: positions of keys and values for all rows.
        kv_memory: the same in bytes; without either there are two gigabytes.
        chunk: text tokens read in one step beside rows that write.
        queue: most requests that may wait.
        pinned: names that are never evicted.
        pack: spend a second copy of the linear weights on speed, on CPUs.
        batch_invariant: give a request the same answer, bit for bit, whoever is answered beside it, also in
            bfloat16; it costs speed, most where few ask.
        backend: carries requests out instead of the own scheduler, with rows, memory and a queue of its own.
    """

    def __init__(
        self,
        base: Base,
        library: str | os.PathLike[str] | Library = "prompts",
        *,
        budget: int | None = None,
        rows: int = 32,
        room: int | None = None,
        kv_memory: int | None = None,
        chunk: int = 256,
        queue: int = 256,
        pinned: Collection[str] = (),
        pack: bool = True,
        batch_invariant: bool = False,
        backend: Backend | None = None,
    ) -> None:
        # Only who opens a library needs to know what artifacts are made of, which is most of the house.
        from softprompt.library.folder import Library
        from softprompt.serving.builder import Builder

        self.frozen = base
        self.base = prepacked(ridden(base)) if pack and backend is None else ridden(base)
        if batch_invariant and backend is not None:
            raise ConfigError("batch_invariant is for softprompt's own engine; leave it out, or the backend.")
        if batch_invariant and not holds(self.base):
            raise ConfigError(
                f"{base.name} gives other bits in other company here, whatever is done about it; leave "
                "batch_invariant out, or take another base or number of threads."
            )
        self.library = library if isinstance(library, Library) else Library(library)
        build = Builder(self.library, base, self.base)
        self.registry = Registry(
            build if backend is None else lambda name: backend.admit(build(name)),
            self.library.stamp,
            self.library.names,
            base=bare(self.base),
            budget=budget,
            pinned=pinned,
        )
        self._scheduler: Backend | Scheduler = backend or Scheduler(
            self.base,
            rows=rows,
            room=room,
            kv_memory=kv_memory,
            chunk=chunk,
            queue=queue,
            batch_invariant=batch_invariant,
        )
        self._thread = threading.Thread(target=self._scheduler.run, name="softprompt-engine", daemon=True)

    def __repr__(self) -> str:
        return f"<Engine for {self.library.address} on {self.frozen.name}>"

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> Engine:
        """Begin to answer; safe to call again."""
        if self._thread.ident is None:
            let_workers_go()  # the engine's thread is the one that computes from here on
            self._thread.start()
        return self

    def close(self, drain: float = 30.0) -> None:
        """Take no more requests, finish those there are within ``drain`` seconds, cancel the rest."""
        self._scheduler.close()
        if self._thread.is_alive():
            self._thread.join(drain)
            self._scheduler.abandon()
            self._thread.join()

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=30.0 if error is None else 0.0)

    @property
    def alive(self) -> bool:
        """Whether it is stepping."""
        return self._thread.is_alive()

    def state(self) -> EngineState:
        """How busy it is now."""
        return self._scheduler.state()

    # -- requests ----------------------------------------------------------------------------------

    def submit(
        self, request: ModelRequest, callback: Callback, *, block: bool = False, owner: Owner = NOBODY
    ) -> RequestHandle:
        """Hand in a request; its events come in the engine's thread. Errors as in ``Scheduler.submit``."""
        return self._scheduler.submit(request, callback, block=block, owner=owner)

    def places(self, owner: Owner = NOBODY) -> Places:
        """How many requests of an owner would be taken on now, and if it were idle."""
        return self._scheduler.places(owner)

    def generate(self, asks: Asks, prompt: str | None = None, **sampling: object) -> list[str]:
        """Answer texts, each behind a prompt of its own, in shared batches.

        Args:
            asks: (name of a prompt, text or row) each; what stands by itself asks ``prompt``. Or rows as a
                data frame or a data set, all for ``prompt``.
            prompt: whom those ask that name none; None is the bare base.
            sampling: fields of ``Sampling``; 64 tokens, greedily, by default.

        Raises:
            ArtifactError: there is no such prompt, or it is damaged.
            DataError: a row that does not fit its prompt's template.
            BaseModelError: a text longer than the base's positions.
        """
        wanted = sampling_of(sampling)
        pending = [
            self._ask(ask, _generating(ask.text, wanted, row)) for row, ask in enumerate(_asked(asks, prompt))
        ]
        return [
            "".join(event.text for event in one.wait()[0] if isinstance(event, TextDelta)) for one in pending
        ]

    def classify(self, asks: Asks, prompt: str | None = None) -> list[dict[str, float]]:
        """Probability of every label, or of every choice a row offers, for each text; the likeliest first.

        Args:
            asks: as in ``generate``.
            prompt: as in ``generate``.

        Raises:
            ConfigError: a prompt without labels or choices.
            DataError: a row that does not fit its prompt's template.
        """
        asked: list[tuple[Encoded, list[str]]] = []

        def scoring(text: Text) -> Callable[[Version], Sequence[ModelRequest]]:
            def requests(version: Version) -> Sequence[ModelRequest]:
                prompt = version.prompt
                if prompt is None or not prompt.template.compares:
                    raise ConfigError(f"{version.name} was learnt without labels; let it generate.")
                answers = prompt.template.answers({} if isinstance(text, str) else text)
                asked.append((prompt.encode_request(text), list(answers)))
                return version.score_row(asked[-1][0])

            return requests

        pending = [self._ask(ask, scoring(ask.text)) for ask in _asked(asks, prompt)]
        return [
            probabilities(*row, _likelihoods(one.wait())) for row, one in zip(asked, pending, strict=True)
        ]

    def _ask(self, ask: Ask, requests_of: Callable[[Version], Sequence[ModelRequest]]) -> _Pending:
        """Lease what a text is for and hand in its requests; the lease ends with the last of them."""
        self.start()
        lease = self.registry.lease(ask.prompt or self.base.name)
        try:
            requests = requests_of(lease.version)
            pending = _Pending(lease, len(requests))
            for number, request in enumerate(requests):
                self.submit(request, pending.callback(number), block=True)
        except BaseException:
            lease.close()
            raise
        return pending


class _Pending:
    """What the requests of one text have told so far."""

    def __init__(self, lease: Lease, requests: int) -> None:
        self._lease, self._open = lease, requests
        self._told: list[list[Event]] = [[] for _ in range(requests)]
        self._done = threading.Event()

    def callback(self, number: int) -> Callback:
        """Where the events of one of the requests go."""

        def tell(event: Event) -> None:
            self._told[number].append(event)
            if isinstance(event, Finished | RequestFailed):
                self._open -= 1
            if not self._open:
                self._lease.close()
                self._done.set()

        return tell

    def wait(self) -> list[list[Event]]:
        """The events of every request, once all have ended; raises what made one of them fail."""
        self._done.wait()
        for event in (event for events in self._told for event in events):
            if isinstance(event, RequestFailed):
                raise event.error
        return self._told


def _asked(asks: Asks, prompt: str | None) -> list[Ask]:
    """Each text with the prompt it is for."""
    if isinstance(asks, str | Mapping):
        raise DataError("Texts to answer must be a list, also of one.")
    if is_frame(asks):
        return [Ask(prompt, text) for text in as_texts(asks)]
    found = []
    for ask in asks:
        if isinstance(ask, tuple) and len(ask) == 2 and isinstance(ask[0], str | None):
            (text,) = as_texts([ask[1]])
            found.append(Ask(ask[0], text))
        else:
            (text,) = as_texts([ask])
            found.append(Ask(prompt, text))
    return found


def _generating(text: Text, sampling: Sampling, row: int) -> Callable[[Version], Sequence[ModelRequest]]:
    def requests(version: Version) -> Sequence[ModelRequest]:
        tokens = version.tokens(text)
        room = min(sampling.max_new_tokens, tokens.limit or sampling.max_new_tokens)
        return [version.generate(tokens.ids, sampling, row=row, room=room)]

    return requests


def _likelihoods(told: Sequence[Sequence[Event]]) -> list[tuple[float, ...]]:
    """What every request of one text found."""
    return [event.values for events in told for event in events if isinstance(event, CandidateLogprobs)]
