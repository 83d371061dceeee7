"""The engine: many prompts, one loaded model, in this process.

    >>> with softprompt.Engine(base, "prompts") as engine:
    ...     engine.generate([("bbc-topics", "Rates cut as growth slows"), "Once upon a time"])

It brings names and texts to the ``Core`` as jobs, and its events back as answers; it does not know HTTP.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from types import TracebackType
from typing import NamedTuple

from softprompt.base.lowrank import ridden
from softprompt.base.model import Base
from softprompt.base.sampling import Sampling
from softprompt.base.workers import let_workers_go
from softprompt.checkpoints.prepacked import prepacked
from softprompt.library.folder import Library
from softprompt.library.prompt import Text, sampling_of
from softprompt.serving.core import Core, EngineState, Sink, Ticket
from softprompt.serving.job import Compared, Ended, Event, Failed, Generation, Job, Wrote
from softprompt.serving.registry import Lease, Registry
from softprompt.serving.verdict import Question, question
from softprompt.serving.version import Builder, Version, bare

__all__ = ["Ask", "Engine"]


class Ask(NamedTuple):
    """A text for a prompt of the library; None for the bare base."""

    prompt: str | None
    text: Text


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
        rows: most rows in a batch.
        room: positions of keys and values for all rows; None for as many as two gigabytes hold.
        chunk: text tokens read in one step beside rows that write.
        queue: most jobs that may wait.
        pinned: names that are never evicted.
        pack: spend a second copy of the linear weights on speed, on CPUs.
    """

    def __init__(
        self,
        base: Base,
        library: str | os.PathLike[str] | Library = "prompts",
        *,
        budget: int | None = None,
        rows: int = 32,
        room: int | None = None,
        chunk: int = 256,
        queue: int = 256,
        pinned: Collection[str] = (),
        pack: bool = True,
    ) -> None:
        self.frozen = base
        self.base = prepacked(ridden(base)) if pack else ridden(base)
        self.library = library if isinstance(library, Library) else Library(library)
        self.registry = Registry(
            Builder(self.library, base, self.base),
            self.library.stamp,
            self.library.names,
            base=bare(self.base),
            budget=budget,
            pinned=pinned,
        )
        self._core = Core(self.base, rows=rows, room=room, chunk=chunk, queue=queue)
        self._thread = threading.Thread(target=self._core.run, name="softprompt-engine", daemon=True)

    def __repr__(self) -> str:
        return f"<Engine for {self.library.path} on {self.frozen.name}>"

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> Engine:
        """Begin to answer; safe to call again."""
        if self._thread.ident is None:
            let_workers_go()  # the engine's thread is the one that computes from here on
            self._thread.start()
        return self

    def close(self, drain: float = 30.0) -> None:
        """Take no more jobs, finish those there are within ``drain`` seconds, cancel the rest."""
        self._core.close()
        if self._thread.is_alive():
            self._thread.join(drain)
            self._core.abandon()
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
        return self._core.state()

    # -- jobs ----------------------------------------------------------------------------------

    def submit(self, job: Job, sink: Sink, *, patient: bool = False) -> Ticket:
        """Hand in a job; ``sink`` gets its events in the engine's thread. Errors as in ``Core.submit``."""
        return self._core.submit(job, sink, patient=patient)

    def generate(self, asks: Iterable[str | tuple[str | None, Text]], **sampling: object) -> list[str]:
        """Answer texts, each behind a prompt of its own, in shared batches.

        Args:
            asks: (name of a prompt, text or row) each; a text by itself asks the bare base.
            sampling: fields of ``Sampling``; 64 tokens, greedily, by default.

        Raises:
            ArtifactError: there is no such prompt, or it is damaged.
            DataError: a row that does not fit its prompt's template.
            BaseModelError: a text longer than the base's positions.
        """
        wanted = sampling_of(sampling)
        pending = [self._ask(ask, _writing(ask.text, wanted, row)) for row, ask in enumerate(map(_ask, asks))]
        return ["".join(event.text for event in one.wait()[0] if isinstance(event, Wrote)) for one in pending]

    def classify(self, asks: Iterable[tuple[str | None, Text]]) -> list[dict[str, float]]:
        """Probability of every label, or of every choice a row offers, for each text; the likeliest first.

        Raises:
            ConfigError: a prompt without labels or choices.
            DataError: a row that does not fit its prompt's template.
        """
        asked: list[Question] = []

        def comparing(text: Text) -> Callable[[Version], Sequence[Job]]:
            def jobs(version: Version) -> Sequence[Job]:
                asked.append(question(version, text))
                return asked[-1].comparisons

            return jobs

        pending = [self._ask(_ask(ask), comparing(ask[1])) for ask in asks]
        return [
            one.probabilities(
                [
                    event.likelihoods
                    for events in answer.wait()
                    for event in events
                    if isinstance(event, Compared)
                ]
            )
            for one, answer in zip(asked, pending, strict=True)
        ]

    def _ask(self, ask: Ask, jobs_of: Callable[[Version], Sequence[Job]]) -> _Pending:
        """Lease what a text is for and hand in its jobs; the lease ends with the last of them."""
        self.start()
        lease = self.registry.lease(ask.prompt or self.base.name)
        try:
            jobs = jobs_of(lease.version)
            pending = _Pending(lease, len(jobs))
            for number, job in enumerate(jobs):
                self.submit(job, pending.sink(number), patient=True)
        except BaseException:
            lease.close()
            raise
        return pending


class _Pending:
    """What the jobs of one text have told so far."""

    def __init__(self, lease: Lease, jobs: int) -> None:
        self._lease, self._open = lease, jobs
        self._told: list[list[Event]] = [[] for _ in range(jobs)]
        self._done = threading.Event()

    def sink(self, number: int) -> Sink:
        """Where the events of one of the jobs go."""

        def tell(event: Event) -> None:
            self._told[number].append(event)
            if isinstance(event, Ended | Failed):
                self._open -= 1
            if not self._open:
                self._lease.close()
                self._done.set()

        return tell

    def wait(self) -> list[list[Event]]:
        """The events of every job, once all have ended; raises what made one of them fail."""
        self._done.wait()
        for event in (event for events in self._told for event in events):
            if isinstance(event, Failed):
                raise event.error
        return self._told


def _ask(ask: str | tuple[str | None, Text]) -> Ask:
    return Ask(None, ask) if isinstance(ask, str) else Ask(*ask)


def _writing(text: Text, sampling: Sampling, row: int) -> Callable[[Version], Sequence[Job]]:
    def jobs(version: Version) -> Sequence[Job]:
        request = version.request(text)
        room = min(sampling.max_new_tokens, request.limit or sampling.max_new_tokens)
        return [Generation(version, request.ids, sampling, row=row, room=room)]

    return jobs
