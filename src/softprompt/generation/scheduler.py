"""One scheduler for all that writes or scores: a loaded model reads for many requests at once, step by step.

At every step the rows that write read one token each, and rows that have come read a piece of their text, all
in one pass. Rows join and leave between steps, and take memory as they grow. It knows requests, rows and
steps; it does not know names, files, keys or HTTP. It is driven in the caller's thread to the end of a list
(``run_all``) or in a thread of its own for ever (``run``).
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.base.model import Base
from softprompt.base.process import let_workers_go
from softprompt.errors import BaseModelError, CancelledJobError, QueueFullError, SoftpromptError
from softprompt.generation.batch import KV_MEMORY, Callback, RequestHandle, Row, RunningBatch
from softprompt.generation.request import Event, Finished, ModelRequest, RequestFailed
from softprompt.generation.sequence import sequence_for
from softprompt.generation.sharing import NOBODY, Owner, Places, fair_order, more_may_wait

__all__ = ["KV_MEMORY", "Callback", "EngineState", "RequestHandle", "Scheduler"]

_UNDISTURBED = 2
"""Chunks read at once while no row writes. More gain nothing: their large arrays cost page faults."""

_LEAST = 8
"""Beside rows that score, one part in so many of the others steps at least."""

_SHARE = 0.7
"""Of the time of a step that only scores, what one for the others may take while scores are asked for."""

_LEAST_TEXT = 16
"""Text tokens read even so."""

_RECENTLY = 2.0
"""Seconds after a request to score in which the next is expected, and steps without one are kept short."""

_IDLE = 5.0
"""Seconds without work, or between two looks while there is some, until unused memory is given back."""


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


class Scheduler:
    """The model, the rows it is reading for, and those that wait.

    Rows that score have places of their own, are read first, and need not wait for rows that write: these
    skip a step for them, never two in a row. Places are shared among owners by weight: who holds less than
    its share has a place at the next step, if need be one of an owner who holds more. Where more than
    ``rows`` want to write, or memory is short, rows take turns: one is set aside, its keys and values are
    given back, and later it is read again and goes on with the very tokens it would have written undisturbed.

    Args:
        base: the model most requests are for; those of another are read with that.
        rows: most rows that write at once, and most that score.
        room: most positions of keys and values over all rows, counted in positions of ``base``.
        kv_memory: the same in bytes; without either there are ``KV_MEMORY``.
        chunk: text tokens read in one step beside rows that write, so that nobody waits for a long text;
            some more where none writes.
        queue: most requests that may wait.
        batch_invariant: give every request the same bits whoever is answered beside it and however rows take
            turns, in every number type.

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
        batch_invariant: bool = False,
    ) -> None:
        self._most_rows, self._chunk, self._queue = rows, chunk, queue
        self._turns = itertools.count()
        self._waiting: list[Row] = []
        self._batch = RunningBatch(
            base,
            rows,
            room,
            kv_memory,
            self._turns,
            self._wait_again,
            batch_invariant=batch_invariant,
        )
        self._beside = _Beside(rows, rows + _UNDISTURBED * chunk)
        self._changed = threading.Condition()
        self._closing = self._skipped = False
        self._steps = 0
        self._step_began: float | None = None

    # -- from any thread -----------------------------------------------------------------------

    def submit(
        self, request: ModelRequest, callback: Callback, *, block: bool = False, owner: Owner = NOBODY
    ) -> RequestHandle:
        """Hand in a request; ``callback`` gets its events in the thread that steps, last ``Finished`` or
        ``RequestFailed``. With ``block`` the caller waits where the queue is full, which owners share.

        Raises:
            BaseModelError: it is longer than the model's positions or the memory, or has no token at all.
            WrongBaseError: its prefix is another model's.
            QueueFullError: too many requests wait already.
        """
        request.check()
        if not self._batch.could_hold(request):
            raise BaseModelError(
                f"The request needs {request.positions} positions, and this server keeps {self._batch.room} "
                "for all; shorten the text or ask for fewer tokens."
            )
        sequence = sequence_for(request)
        with self._changed:
            while block and self._queued >= self._queue and not self._closing:
                self._changed.wait()
            if self._closing:
                raise QueueFullError("The server is shutting down; ask another one.")
            if not self._places(owner):
                of = "" if self._queued >= self._queue else " of the same owner"
                raise QueueFullError(f"As many requests{of} wait as may; ask again in a moment.")
            row = Row(request, callback, RequestHandle(), sequence, next(self._turns), owner)
            self._waiting.append(row)
            self._changed.notify_all()
        return row.handle

    def places(self, owner: Owner = NOBODY) -> Places:
        """How many requests of an owner ``submit`` would take now, one after the other, and if idle."""
        with self._changed:
            return Places(self._places(owner), self._most_rows + more_may_wait(owner, {}, self._queue))

    def state(self) -> EngineState:
        """How busy it is now."""
        batch, began = self._batch, self._step_began
        running, waiting = len(batch.rows), len(self._waiting)
        return EngineState(running, waiting, batch.used, batch.room, self._steps, began)

    def close(self) -> None:
        """Take no more requests; ``run`` returns when those it has are done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Cancel every request it has."""
        with self._changed:
            for row in (*self._batch.rows, *self._waiting):
                row.handle.cancel()

    # -- in the one thread that steps ----------------------------------------------------------

    def run(self) -> None:
        """Step as long as there is something to do, wait while there is not, return when closed."""
        while True:
            with self._changed:
                while not (self._batch.rows or self._waiting or self._closing):
                    let_workers_go()
                    if not self._changed.wait(_IDLE if self._batch.memory_taken else None):
                        self._batch.give_back()
                if not (self._batch.rows or self._waiting):
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
            self._batch.give_back(most=2.0, every=_IDLE)
            self._dismiss()
            self._admit()
            plan = self._plan()
            for model in {row.request.model.fingerprint: row.request.model for row in plan}.values():
                self._advance(model, [row for row in plan if row.request.model is model])
        self._beside.took(time.monotonic() - self._step_began, plan)
        self._steps += 1
        self._step_began = None

    # -- who is in the batch -------------------------------------------------------------------

    def _places(self, owner: Owner) -> int:
        """How many more of an owner's would find a place among the rows, or one to wait in."""
        free = max(0, self._most_rows - len(self._batch.rows))  # which the next step gives to who is first
        waiting = Counter(row.owner.id for row in self._waiting[free:] if not row.begun)
        return max(0, free - len(self._waiting)) + more_may_wait(owner, waiting, self._queue)

    @property
    def _queued(self) -> int:
        """Requests that have not begun."""
        return sum(not row.begun for row in self._waiting)

    def _dismiss(self) -> None:
        for row in [row for row in self._batch.rows if row.handle.cancelled]:
            self._leave(row, RequestFailed(_cancelled()))
        with self._changed:
            gone = [row for row in self._waiting if row.handle.cancelled]
            if gone:  # nobody waits behind them, and their places in the queue are free again
                self._waiting = [row for row in self._waiting if not row.handle.cancelled]
                self._changed.notify_all()
        for row in gone:
            _tell(row, RequestFailed(_cancelled()))

    def _admit(self) -> None:
        """Rows join as places are shared, in the order of their turns; those that score before the others."""
        for scores in (True, False):
            waiting = [row for row in tuple(self._waiting) if row.scores is scores]
            for row in fair_order(waiting, self._batch.held(scores=scores)):
                fault: Exception | None = None
                try:
                    if not self._batch.join(row):
                        break
                except Exception as error:
                    fault = error
                with self._changed:
                    self._waiting.remove(row)
                    self._changed.notify_all()
                if fault is not None:
                    _tell(row, RequestFailed(_failure(fault)))

    def _wait_again(self, row: Row) -> None:
        with self._changed:
            insort(self._waiting, row, key=lambda waiting: waiting.turn)

    # -- one pass ------------------------------------------------------------------------------

    def _plan(self) -> list[Row]:
        """Who reads what: every row that writes, and texts up to the chunk's tokens in all.

        Where some score and others write, a step for the first alone comes before one for all, and steps are
        kept short for who may come next: those write on that have not for longest.
        """
        scoring = [row for row in self._batch.rows if row.scores]
        others = sorted((row for row in self._batch.rows if not row.scores), key=lambda row: row.turn)
        self._skipped = bool(scoring and others) and not self._skipped
        if self._skipped:
            others = []
        writers = [row for row in others if row.sequence.unread <= 1]
        most = self._beside.tokens(bool(scoring))
        if most < len(others):  # neighbours in memory, so that they are read together, as they lie
            some = most if len(writers) == len(others) else (most + 1) // 2
            writers = sorted(writers, key=lambda row: (row.last, row.slot and row.slot.place))[:some]
        plan = [row for row in writers if self._batch.read_next(row, 1, self._steps)]
        left = self._chunk if plan else self._chunk * _UNDISTURBED
        for row in fair_order(scoring, {}):
            if left > 0 and self._batch.read_next(row, left, self._steps):
                left -= len(row.reading.ids)
                plan.append(row)
        readers = [row for row in others if row.slot is not None and row.sequence.unread > 1]
        for row, count in _shares(readers, min(left, max(most - len(writers), _LEAST_TEXT))):
            if self._batch.read_next(row, count, self._steps):
                plan.append(row)
        return [row for row in plan if row.slot is not None]

    def _advance(self, model: Base, rows: Sequence[Row]) -> None:
        """One pass of one model over what its rows read next."""
        try:
            logits = self._batch.read(model, rows)
        except Exception as error:  # whatever a model raises ends its own rows, not the engine
            for row in rows:
                self._leave(row, RequestFailed(_failure(error)))
            return
        for row, found in zip(rows, logits, strict=True):
            self._deliver(row, found)

    def _deliver(self, row: Row, logits: Tensor) -> None:
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

    def _leave(self, row: Row, last: Event) -> None:
        self._batch.leave(row)
        _tell(row, last)


class _Beside:
    """How many tokens rows that write read in a step while others score.

    Who wants a score arrives amid a step and waits for its end. So that this takes less time than the score
    itself, such steps are given fewer tokens while they last longer than ``_SHARE`` of one that only scores.
    """

    def __init__(self, rows: int, most: int) -> None:
        self._least, self._most = max(1, rows // _LEAST), most
        self._tokens = self._least
        self._alone: float | None = None  # seconds of a step that only scores
        self._asked = -math.inf  # when somebody last wanted a score

    def tokens(self, asked: bool) -> int:
        """The most for the next step; ``asked``: whether somebody wants a score now."""
        now = time.monotonic()
        self._asked = now if asked else self._asked
        return self._tokens if now - self._asked < _RECENTLY else self._most

    def took(self, seconds: float, plan: Sequence[Row]) -> None:
        """Learn from a step."""
        scored = sum(row.scores for row in plan)
        if scored and scored == len(plan):
            self._alone = seconds if self._alone is None else 0.8 * self._alone + 0.2 * seconds
        elif plan and self._alone is not None and time.monotonic() - self._asked < _RECENTLY:
            allowed = self._alone * (1 + _SHARE if scored else _SHARE)
            wanted = self._tokens + 1 if seconds <= allowed else int(0.8 * self._tokens)
            self._tokens = min(max(wanted, self._least), self._most)


def _shares(readers: Sequence[Row], left: int) -> list[tuple[Row, int]]:
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


def _tell(row: Row, event: Event) -> None:
    """A listener that fails is not listened for any more."""
    try:
        row.callback(event)
    except Exception:
        row.handle.cancel()
