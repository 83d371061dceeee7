"""The heart of the engine: one loaded model reads for every prompt at once, step by step.

At every step the rows that write read one token each, and rows that have come read a piece of their text,
all in one pass. Rows join and leave between steps. It knows jobs, rows and steps; it does not know names,
files, keys or HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.base.lowrank import Riders
from softprompt.base.model import Base
from softprompt.base.strips import SHORTEST, Chunk, Strip, Strips
from softprompt.base.workers import let_workers_go
from softprompt.errors import BaseModelError, CancelledJobError, ConfigError, QueueFullError, SoftpromptError
from softprompt.serving.job import Ended, Event, Failed, Job
from softprompt.serving.task import BEFORE, Reading, Task, task_for
from softprompt.serving.version import Version

__all__ = ["Core", "EngineState", "Ticket"]

MEMORY = 2 * 2**30
"""Bytes of keys and values that rows may take, unless another bound is set."""

_UNDISTURBED = 2
"""Chunks read at once while no row writes. More gain nothing: their large arrays cost page faults."""

_SHORT = 256
"""Positions there are for every row even so."""

Sink = Callable[[Event], None]


class Ticket:
    """A job that was handed in."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        """Nobody waits for it any more: it leaves before the next step. Safe from any thread, at any time."""
        self.cancelled = True


@dataclass(frozen=True)
class EngineState:
    """How busy the engine is.

    Attributes:
        running: rows in the batch.
        waiting: jobs in the queue.
        positions_used: slots of keys and values that are filled.
        positions_room: how many there may be.
        steps: passes so far.
        step_began: when the step now under way began, in ``time.monotonic`` seconds; None between steps.
    """

    running: int
    waiting: int
    positions_used: int
    positions_room: int
    steps: int
    step_began: float | None


_NOTHING = Reading((), ())


@dataclass(eq=False)
class _Row:
    """A job under way."""

    job: Job
    task: Task
    strip: Strip
    sink: Sink
    ticket: Ticket
    reading: Reading = _NOTHING


class Core:
    """The model, the rows it is reading for, and those that wait.

    Args:
        base: the served base; rows whose version brings a model of its own are read with that.
        rows: most rows in the batch.
        room: most positions of keys and values over all rows of a model; None for what ``MEMORY`` holds.
        chunk: text tokens read in one step beside rows that write, so that nobody waits for a long text;
            some more where none writes.
        queue: most jobs that may wait.

    Raises:
        ConfigError: a room in which not even a short row would ever find a place.
    """

    def __init__(
        self, base: Base, *, rows: int = 32, room: int | None = None, chunk: int = 256, queue: int = 256
    ) -> None:
        if room is not None and room < SHORTEST:
            raise ConfigError(f"room is {room} positions, but one row takes {SHORTEST} at least; give more.")
        self.base = base
        self._most_rows, self._chunk, self._queue = rows, chunk, queue
        self._waiting: deque[tuple[Job, Sink, Ticket]] = deque()
        self._rows: list[_Row] = []
        own = Strips(base)
        self._room = own.room = room or max(rows * _SHORT, MEMORY // own.slot_bytes)
        self._lanes: dict[str, Strips] = {base.fingerprint: own}
        self._riders = Riders()
        self._changed = threading.Condition()
        self._closing = False
        self._steps = 0
        self._step_began: float | None = None

    # -- from any thread -----------------------------------------------------------------------

    def submit(self, job: Job, sink: Sink, *, patient: bool = False) -> Ticket:
        """Hand in a job; ``sink`` gets its events in the engine's thread, last ``Ended`` or ``Failed``.

        A patient caller waits where the queue is full.

        Raises:
            BaseModelError: it is longer than the model's positions or the engine's room, or has nothing to go
                on from.
            QueueFullError: too many jobs wait already.
        """
        self._check(job)
        ticket = Ticket()
        with self._changed:
            while patient and len(self._waiting) >= self._queue and not self._closing:
                self._changed.wait()
            if self._closing:
                raise QueueFullError("The server is shutting down; ask another one.")
            if len(self._waiting) >= self._queue:
                raise QueueFullError(f"{self._queue} requests wait already; ask again in a moment.")
            self._waiting.append((job, sink, ticket))
            self._changed.notify_all()
        return ticket

    def state(self) -> EngineState:
        """How busy it is now."""
        lanes = list(self._lanes.values())
        used = sum(lane.used for lane in lanes)
        began = self._step_began
        return EngineState(len(self._rows), len(self._waiting), used, self._room, self._steps, began)

    def close(self) -> None:
        """Take no more jobs; ``run`` returns when those it has are done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Cancel every job it has."""
        with self._changed:
            for row in self._rows:
                row.ticket.cancel()
            for _, _, ticket in self._waiting:
                ticket.cancel()

    # -- in the engine's own thread ------------------------------------------------------------

    def run(self) -> None:
        """Step as long as there is something to do, wait while there is not, return when closed."""
        while True:
            with self._changed:
                while not (self._rows or self._waiting or self._closing):
                    let_workers_go()
                    self._changed.wait()
                if not (self._rows or self._waiting):
                    return
            self.step()

    def step(self) -> None:
        """One iteration: let rows leave and join, read, and hand out what follows."""
        self._step_began = time.monotonic()
        with torch.inference_mode():
            self._dismiss()
            self._admit()
            plan = self._plan()
            for lane in {row.job.version.model.fingerprint: row.job.version.model for row in plan}.values():
                self._advance(lane, [row for row in plan if row.job.version.model is lane])
        self._steps += 1
        self._step_began = None

    def _dismiss(self) -> None:
        for row in [row for row in self._rows if row.ticket.cancelled]:
            self._leave(row, Failed(_cancelled()))
        with self._changed:
            gone = [one for one in self._waiting if one[2].cancelled]
            if gone:  # nobody waits behind them, and their places in the queue are free again
                self._waiting = deque(one for one in self._waiting if not one[2].cancelled)
                self._changed.notify_all()
        for _, sink, ticket in gone:
            _tell(sink, ticket, Failed(_cancelled()))

    def _admit(self) -> None:
        """Rows join in the order they came, as long as there is room for the next one."""
        while self._waiting and len(self._rows) < self._most_rows:
            job, sink, ticket = self._waiting[0]
            strip: Strip | None = None
            fault: SoftpromptError = _cancelled()
            if not ticket.cancelled:
                try:
                    strip = self._lane(job.version).open(job.version.prefix, job.positions)
                except Exception as error:
                    fault = _failure(error)
                else:
                    if strip is None:
                        return
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()
            if strip is None:
                _tell(sink, ticket, Failed(fault))
            else:
                self._rows.append(_Row(job, task_for(job), strip, sink, ticket))

    def _lane(self, version: Version) -> Strips:
        """The strips of a version's model; those of a changed copy are made when its first row comes."""
        model = version.model
        if model.fingerprint not in self._lanes:
            self._lanes[model.fingerprint] = Strips(model, self._room, like=version.prefix)
        return self._lanes[model.fingerprint]

    def _plan(self) -> list[_Row]:
        """Every row that writes, and texts in the order they came, up to the chunk's tokens in all."""
        plan = []
        for row in self._rows:
            if row.task.unread <= 1:
                row.reading = row.task.next(1)
                plan.append(row)
        left = self._chunk if plan else self._chunk * _UNDISTURBED
        for row in self._rows:
            if left > 0 and row.task.unread > 1 and row not in plan:
                row.reading = row.task.next(left)
                left -= len(row.reading.ids)
                plan.append(row)
        return plan

    def _advance(self, model: Base, rows: Sequence[_Row]) -> None:
        """One pass of one model over what its rows read next."""
        try:
            logits = self._read(model, rows)
        except Exception as error:  # whatever a model raises ends its own rows, not the engine
            for row in rows:
                self._leave(row, Failed(_failure(error)))
            return
        for row, found in zip(rows, logits, strict=True):
            self._deliver(row, found)

    def _read(self, model: Base, rows: Sequence[_Row]) -> list[Tensor]:
        """The logits every row wants, [T, V] each."""
        for row in rows:
            if row.reading.behind is not None:
                row.strip.rewind(row.job.version.prefix.length + row.reading.behind)
        reading = [row for row in rows if row.reading.ids]
        hidden: dict[int, Tensor] = {}
        if reading:
            chunks = [Chunk(row.strip, row.reading.ids) for row in reading]
            found = self._lanes[model.fingerprint].read(chunks, self._carrying(reading))
            hidden = {id(row): states for row, states in zip(reading, found, strict=True)}
        wanted = [_wanted(row, hidden.get(id(row))) for row in rows]
        some = [states for states in wanted if len(states)]
        if not some:
            return wanted
        logits = model.head.logits(torch.cat(some))
        return list(logits.split([len(states) for states in wanted]))

    def _carrying(self, rows: Sequence[_Row]) -> Callable[[Sequence[int]], AbstractContextManager[None]]:
        adapters = [row.job.version.adapter for row in rows]
        return lambda owners: self._riders.seated([adapters[owner] for owner in owners])

    def _deliver(self, row: _Row, logits: Tensor) -> None:
        try:
            events: Iterable[Event] = row.task.take(logits)
        except Exception as error:  # a fault of one row ends that row
            self._leave(row, Failed(error if isinstance(error, SoftpromptError) else _failure(error)))
            return
        for event in events:
            if isinstance(event, Ended):
                self._leave(row, event)
            else:
                _tell(row.sink, row.ticket, event)

    def _leave(self, row: _Row, last: Event) -> None:
        model = row.job.version.model
        self._rows.remove(row)
        self._lanes[model.fingerprint].close(row.strip)
        if model is not self.base and not any(r.job.version.model is model for r in self._rows):
            del self._lanes[model.fingerprint]
        _tell(row.sink, row.ticket, last)

    def _check(self, job: Job) -> None:
        most = job.version.model.max_positions
        if most is not None and job.positions > most:
            raise BaseModelError(
                f"The request needs {job.positions} positions ({job.version.prefix.length} of the prompt, "
                f"{len(job.ids)} of the text, the rest for the answer), but {self.base.name} holds {most}; "
                "shorten the text or ask for fewer tokens."
            )
        if 2 * job.positions > self._room:
            raise BaseModelError(
                f"The request needs {job.positions} positions, and this server keeps {self._room} for all; "
                "shorten the text or ask for fewer tokens."
            )
        if not job.ids and job.version.prefix.hidden is None:
            raise BaseModelError("There is no text to go on from; give at least one token.")


def _cancelled() -> CancelledJobError:
    return CancelledJobError("The request was cancelled.")


def _failure(error: Exception) -> BaseModelError:
    fault = BaseModelError(f"The model failed at this request ({type(error).__name__}); try it alone.")
    fault.__cause__ = error
    return fault


def _wanted(row: _Row, hidden: Tensor | None) -> Tensor:
    """The hidden states [T, E] after the tokens whose successors a row asks for; hidden: [W, E]."""
    before = row.job.version.prefix.hidden
    states = [before if place == BEFORE else hidden[place] for place in row.reading.wanted]  # type: ignore[index]
    if not states:
        return torch.empty(0, row.job.version.model.width)
    return torch.stack(states)  # type: ignore[arg-type]


def _tell(sink: Sink, ticket: Ticket, event: Event) -> None:
    """A listener that fails is not listened for any more."""
    try:
        sink(event)
    except Exception:
        ticket.cancel()
