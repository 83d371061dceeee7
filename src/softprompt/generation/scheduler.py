"""One scheduler for all that writes or scores: a loaded model reads for many requests at once, step by step.

At every step the rows that write read one token each, and rows that have come read a piece of their text, all
in one pass. Rows join and leave between steps, and take memory as they grow. It knows requests, rows and
steps; it does not know names, files, keys or HTTP. It is driven in the caller's thread to the end of a list
(``run_all``) or in a thread of its own for ever (``run``).
"""

from __future__ import annotations

import itertools
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softprompt.base.kv_pool import SHORTEST, Chunk, KVMemory, KVPool, KVSlot
from softprompt.base.lowrank import Riders
from softprompt.base.model import Base
from softprompt.base.workers import let_workers_go
from softprompt.errors import BaseModelError, CancelledJobError, ConfigError, QueueFullError, SoftpromptError
from softprompt.generation.request import Event, Finished, ModelRequest, RequestFailed, ScoreRequest
from softprompt.generation.sequence import BEFORE, Reading, SequenceState, sequence_for

__all__ = ["KV_MEMORY", "Callback", "EngineState", "RequestHandle", "Scheduler"]

KV_MEMORY = 2 * 2**30
"""Bytes of keys and values that rows may take, unless another bound is set."""

_UNDISTURBED = 2
"""Chunks read at once while no row writes. More gain nothing: their large arrays cost page faults."""

_SHORT = 256
"""Positions there are for every row even so."""

_HEADROOM = 128
"""Positions a row that writes gets beyond its text from the start, so that short answers never move."""

_SPARE = 8
"""One part in so many of the memory is kept from rows that grow, for what is scored."""

_SHORTEST_TURN, _LONGEST_TURN = 256, 1024
"""Steps after which a row may have to let one that waits go on in its place: as many as it has tokens, which
would then have to be read again, but within these bounds."""

Callback = Callable[[Event], None]


class RequestHandle:
    """A request that was handed in."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        """Nobody waits for it any more: it leaves before the next step. Safe from any thread, at any time."""
        self.cancelled = True


@dataclass(frozen=True)
class EngineState:
    """How busy a scheduler is.

    Attributes:
        running: rows in the batch.
        waiting: requests in the queue, those among them that were set aside.
        positions_used: positions of keys and values that are filled.
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


@dataclass(eq=False)
class _Row:
    """A request, waiting or under way.

    Attributes:
        turn: rows join in this order; the greatest makes room first where memory is short.
        slot: its keys and values; None while it waits.
        reading: what it reads in the pass at hand.
        begun: whether it has joined before.
        steps: passes it has taken part in since it joined.
    """

    request: ModelRequest
    callback: Callback
    handle: RequestHandle
    sequence: SequenceState
    turn: int
    slot: KVSlot | None = None
    reading: Reading = field(default_factory=lambda: Reading((), ()))
    begun: bool = False
    steps: int = 0

    @property
    def scores(self) -> bool:
        return isinstance(self.request, ScoreRequest)

    @property
    def turn_length(self) -> int:
        """Steps after which it may be set aside for one that waits."""
        return min(max(self.sequence.need, _SHORTEST_TURN), _LONGEST_TURN)


class Scheduler:
    """The model, the rows it is reading for, and those that wait.

    Rows that score have places of their own, are read first, and need not wait for rows that write: these
    skip a step for them, never two in a row. Where more than ``rows`` want to write, or memory is short, they
    take turns: a row is set aside, its keys and values are given back, and later it is read again and goes on
    with the very tokens it would have written undisturbed.

    Args:
        base: the model most requests are for; those of another are read with that.
        rows: most rows that write at once, and most that score.
        room: most positions of keys and values over all rows, counted in positions of ``base``.
        kv_memory: the same in bytes; without either there are ``KV_MEMORY``.
        chunk: text tokens read in one step beside rows that write, so that nobody waits for a long text;
            some more where none writes.
        queue: most requests that may wait.

    Raises:
        ConfigError: memory in which not even a short row would ever find a place.
    """

    def __init__(
        self,
        base: Base,
        *,
        rows: int = 32,
        room: int | None = None,
        kv_memory: int | None = None,
        chunk: int = 256,
        queue: int = 256,
    ) -> None:
        self.base = base
        self._most_rows, self._chunk, self._queue = rows, chunk, queue
        self._memory = KVMemory()
        self._pools = {base.fingerprint: KVPool(base, self._memory)}
        self._room = _room(self._pools[base.fingerprint].position_bytes, rows, room, kv_memory)
        self._memory.limit = self._room * self._pools[base.fingerprint].position_bytes
        self._turns = itertools.count()
        self._waiting: list[_Row] = []
        self._rows: list[_Row] = []
        self._riders = Riders()
        self._changed = threading.Condition()
        self._closing = False
        self._skipped = False
        self._steps = 0
        self._step_began: float | None = None

    # -- from any thread -----------------------------------------------------------------------

    def submit(self, request: ModelRequest, callback: Callback, *, block: bool = False) -> RequestHandle:
        """Hand in a request; ``callback`` gets its events in the thread that steps, last ``Finished`` or
        ``RequestFailed``. With ``block`` the caller waits where the queue is full.

        Raises:
            BaseModelError: it is longer than the model's positions or the memory, or there is nothing to go
                on from.
            WrongBaseError: its prefix is another model's.
            QueueFullError: too many requests wait already.
        """
        request.check()
        if 2 * request.positions > self._room:
            raise BaseModelError(
                f"The request needs {request.positions} positions, and this server keeps {self._room} "
                "for all; shorten the text or ask for fewer tokens."
            )
        sequence = sequence_for(request)
        with self._changed:
            while block and self._queued >= self._queue and not self._closing:
                self._changed.wait()
            if self._closing:
                raise QueueFullError("The server is shutting down; ask another one.")
            if self._queued >= self._queue:
                raise QueueFullError(f"{self._queue} requests wait already; ask again in a moment.")
            row = _Row(request, callback, RequestHandle(), sequence, next(self._turns))
            self._waiting.append(row)
            self._changed.notify_all()
        return row.handle

    def state(self) -> EngineState:
        """How busy it is now."""
        used = sum(pool.used for pool in list(self._pools.values()))
        began = self._step_began
        return EngineState(len(self._rows), len(self._waiting), used, self._room, self._steps, began)

    def close(self) -> None:
        """Take no more requests; ``run`` returns when those it has are done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Cancel every request it has."""
        with self._changed:
            for row in (*self._rows, *self._waiting):
                row.handle.cancel()

    # -- in the one thread that steps ----------------------------------------------------------

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

    def run_all(
        self,
        requests: Iterable[ModelRequest],
        on_event: Callable[[int, Event], None] = lambda number, event: None,
    ) -> None:
        """Carry out a list of requests in this thread; ``on_event`` gets the number of each and its events.

        Raises:
            SoftpromptError: the first that failed, or could not be taken on; what the model itself raised is
                raised as it is.
        """
        coming = enumerate(requests)
        under_way = set[int]()
        failed: list[Exception] = []

        def tell(number: int, event: Event) -> None:
            if isinstance(event, Finished | RequestFailed):
                under_way.discard(number)
            if isinstance(event, RequestFailed):
                failed.append(event.error)
                return
            try:
                on_event(number, event)
            except Exception as error:  # the listener's own, which is the caller's
                failed.append(error)

        while True:
            for number, request in itertools.islice(coming, max(0, self._most_rows - len(self._waiting))):
                under_way.add(number)
                self.submit(request, lambda event, number=number: tell(number, event))  # type: ignore[misc]
            if not under_way:
                return
            self.step()
            if failed:
                cause = failed[0].__cause__
                raise cause if isinstance(failed[0], BaseModelError) and cause is not None else failed[0]

    def step(self) -> None:
        """One iteration: let rows leave and join, read, and hand out what follows."""
        self._step_began = time.monotonic()
        with torch.inference_mode():
            self._dismiss()
            self._admit()
            plan = self._plan()
            for model in {row.request.model.fingerprint: row.request.model for row in plan}.values():
                self._advance(model, [row for row in plan if row.request.model is model])
        self._steps += 1
        self._step_began = None

    # -- who is in the batch -------------------------------------------------------------------

    @property
    def _queued(self) -> int:
        """Requests that have not begun."""
        return sum(not row.begun for row in self._waiting)

    def _dismiss(self) -> None:
        for row in [row for row in self._rows if row.handle.cancelled]:
            self._leave(row, RequestFailed(_cancelled()))
        with self._changed:
            gone = [row for row in self._waiting if row.handle.cancelled]
            if gone:  # nobody waits behind them, and their places in the queue are free again
                self._waiting = [row for row in self._waiting if not row.handle.cancelled]
                self._changed.notify_all()
        for row in gone:
            _tell(row, RequestFailed(_cancelled()))

    def _admit(self) -> None:
        """Rows join in the order of their turns, those that score before those that write."""
        for scores in (True, False):
            for row in [row for row in self._waiting if row.scores is scores]:
                fault: Exception | None = None
                try:
                    if not self._join(row):
                        break
                except Exception as error:
                    fault = error
                with self._changed:
                    self._waiting.remove(row)
                    self._changed.notify_all()
                if fault is not None:
                    _tell(row, RequestFailed(_failure(fault)))
                    continue
                row.begun, row.steps = True, 0
                self._rows.append(row)

    def _join(self, row: _Row) -> bool:
        """Find a place and memory for a row that waits; False where there is none yet."""
        alike = [other for other in self._rows if other.scores is row.scores]
        if len(alike) >= self._most_rows and not self._set_one_aside(row):
            return False
        request = row.request
        need = min(row.sequence.need + _HEADROOM, request.positions)
        pool = self._pools.get(request.model.fingerprint)
        if pool is None:  # a changed copy of the model, whose first row this is
            pool = KVPool(request.model, self._memory, like=request.prefix)
            self._pools[request.model.fingerprint] = pool
        while True:
            spare = self._spare if self._rows and not row.scores else 0
            row.slot = pool.open(request.prefix, need, spare)
            if row.slot is not None:
                return True
            if not self._make_room(row):
                return False

    def _make_room(self, row: _Row) -> bool:
        """Free some memory for a row; False where nobody has to make room for it."""
        before = self._memory.taken
        for pool in self._pools.values():
            pool.shrink()
        if self._memory.taken < before:
            return True
        later = [other for other in self._rows if not other.scores and (row.scores or other.turn > row.turn)]
        if later:
            self._preempt(max(later, key=lambda other: other.turn))
            return True
        return row.slot is None and self._set_one_aside(row)

    def _set_one_aside(self, row: _Row) -> bool:
        """For a row that writes: let the one that has longest had its turn wait behind all, if it is over."""
        over = [other for other in self._rows if not other.scores and other.steps >= other.turn_length]
        if not over or row.scores:
            return False
        longest = max(over, key=lambda other: other.steps)
        longest.turn = next(self._turns)
        self._preempt(longest)
        return True

    def _preempt(self, row: _Row) -> None:
        """Take a row's memory; it goes on later, read again from its first token."""
        assert row.slot is not None
        self._pools[row.request.model.fingerprint].close(row.slot)
        row.slot = None
        row.sequence.restart()
        self._rows.remove(row)
        with self._changed:
            insort(self._waiting, row, key=lambda waiting: waiting.turn)

    @property
    def _spare(self) -> int:
        return (self._memory.limit or 0) // _SPARE

    # -- one pass ------------------------------------------------------------------------------

    def _plan(self) -> list[_Row]:
        """Who reads what: every row that writes, and texts up to the chunk's tokens in all.

        Where some score and others write, a step for the first alone comes before one for all.
        """
        scoring = [row for row in self._rows if row.scores]
        others = sorted((row for row in self._rows if not row.scores), key=lambda row: row.turn)
        self._skipped = bool(scoring and others) and not self._skipped
        if self._skipped:
            others = []
        plan = [row for row in others if row.sequence.unread <= 1 and self._read_next(row, 1)]
        left = self._chunk if plan else self._chunk * _UNDISTURBED
        for row in scoring:
            if left > 0 and self._read_next(row, left):
                left -= len(row.reading.ids)
                plan.append(row)
        readers = [row for row in others if row.slot is not None and row.sequence.unread > 1]
        for row, count in _shares(readers, left):
            if self._read_next(row, count):
                plan.append(row)
        return [row for row in plan if row.slot is not None]

    def _read_next(self, row: _Row, count: int) -> bool:
        """Let a row read about ``count`` tokens next; False where it had to make room instead."""
        if row.slot is None:
            return False
        pool = self._pools[row.request.model.fingerprint]
        if not row.scores:  # they have all they need from the start
            need = row.slot.length + min(count, row.sequence.unread)
            oldest = all(row.turn <= other.turn for other in self._rows if not other.scores)
            while not pool.reserve(row.slot, need, 0 if oldest else self._spare):
                if not self._make_room(row):
                    self._preempt(row)
                    return False
        row.reading = row.sequence.next(count)
        row.steps += 1
        return True

    def _advance(self, model: Base, rows: Sequence[_Row]) -> None:
        """One pass of one model over what its rows read next."""
        try:
            logits = self._read(model, rows)
        except Exception as error:  # whatever a model raises ends its own rows, not the engine
            for row in rows:
                self._leave(row, RequestFailed(_failure(error)))
            return
        for row, found in zip(rows, logits, strict=True):
            self._deliver(row, found)

    def _read(self, model: Base, rows: Sequence[_Row]) -> list[Tensor]:
        """The logits every row wants, [T, V] each."""
        chunks, reading = list[Chunk](), list[_Row]()
        for row in rows:
            assert row.slot is not None
            if row.reading.behind is not None:
                row.slot.rewind(row.request.prefix.length + row.reading.behind)
            if row.reading.ids:
                chunks.append(Chunk(row.slot, row.reading.ids))
                reading.append(row)
        hidden: dict[int, Tensor] = {}
        if reading:
            found = self._pools[model.fingerprint].read(chunks, self._carrying(reading))
            hidden = {id(row): states for row, states in zip(reading, found, strict=True)}
        wanted = [_wanted(row, hidden.get(id(row))) for row in rows]
        some = [states for states in wanted if len(states)]
        if not some:
            return wanted
        logits = model.head.logits(torch.cat(some))
        return list(logits.split([len(states) for states in wanted]))

    def _carrying(self, rows: Sequence[_Row]) -> Callable[[Sequence[int]], AbstractContextManager[None]]:
        adapters = [row.request.adapter for row in rows]
        return lambda owners: self._riders.seated([adapters[owner] for owner in owners])

    def _deliver(self, row: _Row, logits: Tensor) -> None:
        try:
            events = row.sequence.take(logits)
        except Exception as error:  # a fault of one row ends that row
            fault = error if isinstance(error, SoftpromptError) else _failure(error)
            self._leave(row, RequestFailed(fault))
            return
        for event in events:
            if isinstance(event, Finished):
                self._leave(row, event)
            else:
                _tell(row, event)

    def _leave(self, row: _Row, last: Event) -> None:
        model = row.request.model
        self._rows.remove(row)
        assert row.slot is not None
        self._pools[model.fingerprint].close(row.slot)
        if model is not self.base and not any(other.request.model is model for other in self._rows):
            self._pools.pop(model.fingerprint).shrink()
        _tell(row, last)


def _room(position_bytes: int, rows: int, room: int | None, kv_memory: int | None) -> int:
    """The most positions there may be."""
    if room is None and kv_memory is None:
        return max(rows * _SHORT, KV_MEMORY // position_bytes)
    most = kv_memory // position_bytes if room is None and kv_memory is not None else room or 0
    if most < SHORTEST:
        what = f"room is {room} positions" if room is not None else f"kv_memory holds {most} positions"
        raise ConfigError(f"{what}, but one row takes {SHORTEST} at least; give more.")
    return most


def _shares(readers: Sequence[_Row], left: int) -> list[tuple[_Row, int]]:
    """How many tokens each text is read on by: half for who came first, the rest for the shortest first."""
    if not readers:
        return []
    first, *others = readers
    kept = (left + 1) // 2 if others else left
    shares, left = [], left - min(kept, first.sequence.unread)
    for row in sorted(others, key=lambda row: row.sequence.unread):
        if left > 0:
            shares.append((row, left))
            left -= min(left, row.sequence.unread)
    return [(first, kept + max(0, left)), *shares] if kept + left > 0 else []


def _cancelled() -> CancelledJobError:
    return CancelledJobError("The request was cancelled.")


def _failure(error: Exception) -> SoftpromptError:
    if isinstance(error, SoftpromptError):
        return error
    fault = BaseModelError(f"The model failed at this request ({type(error).__name__}); try it alone.")
    fault.__cause__ = error
    return fault


def _wanted(row: _Row, hidden: Tensor | None) -> Tensor:
    """The hidden states [T, E] after the tokens whose successors a row asks for; hidden: [W, E]."""
    before = row.request.prefix.hidden
    states = [before if place == BEFORE else hidden[place] for place in row.reading.wanted]  # type: ignore[index]
    if not states:
        return torch.empty(0, row.request.model.width)
    return torch.stack(states)  # type: ignore[arg-type]


def _tell(row: _Row, event: Event) -> None:
    """A listener that fails is not listened for any more."""
    try:
        row.callback(event)
    except Exception:
        row.handle.cancel()
