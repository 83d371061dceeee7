"""The rows under way: who has a place and memory, who makes room for whom, and one pass over what they read.

It knows rows, slots and passes; it does not know who waits, who is told, or threads.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softprompt.base.batch_invariant import logits_in_blocks
from softprompt.base.kv_pool import SHORTEST, Chunk, KVMemory, KVPool, KVSlot, slot_bytes
from softprompt.base.lowrank import Riders
from softprompt.base.model import Base
from softprompt.base.process import release_heap
from softprompt.errors import ConfigError
from softprompt.generation.request import Event, ModelRequest, ScoreRequest
from softprompt.generation.sequence import BEFORE, Reading, SequenceState
from softprompt.generation.sharing import NOBODY, Owner, gives_way, takes_turns

__all__ = ["KV_MEMORY", "Callback", "RequestHandle", "Row", "RunningBatch"]

KV_MEMORY = 2 * 2**30
"""Bytes of keys and values that rows may take, unless another bound is set."""

_SHORT = 256
"""Positions there are for every row even so."""

_HEADROOM = 128
"""Positions a row that writes gets beyond its text from the start, so that short answers never move."""

_SPARE = 8
"""One part in so many of the memory is kept from rows that grow, for what is scored."""

_SHORTEST_TURN, _LONGEST_TURN = 256, 1024
"""Steps after which a row may have to let one that waits go on in its place: as many as it had tokens when it
joined, so that it is not read again more often than it is worth, but within these bounds."""

Callback = Callable[[Event], None]


class RequestHandle:
    """A request that was handed in.

    Attributes:
        joined: when it first got a place, in ``time.monotonic`` seconds; None before, and where nobody tells.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self.joined: float | None = None

    def cancel(self) -> None:
        """Nobody waits for it any more: it leaves before the next step. Safe from any thread, at any time."""
        self.cancelled = True


@dataclass(eq=False)
class Row:
    """A request, waiting or under way.

    Attributes:
        turn: rows of an owner join in this order; the greatest makes room first where memory is short.
        owner: whose it is; places are shared among owners.
        slot: its keys and values; None while it waits.
        reading: what it reads in the pass at hand.
        begun: whether it has joined before.
        steps: passes it has taken part in since it joined.
        turn_length: steps after which it may be set aside for one that waits.
        last: the number of the last of them.
    """

    request: ModelRequest
    callback: Callback
    handle: RequestHandle
    sequence: SequenceState
    turn: int
    owner: Owner = NOBODY
    slot: KVSlot | None = None
    reading: Reading = field(default_factory=lambda: Reading((), ()))
    begun: bool = False
    steps: int = 0
    turn_length: int = 0
    last: int = -1

    @property
    def scores(self) -> bool:
        return isinstance(self.request, ScoreRequest)


class RunningBatch:
    """Rows that share one KV memory, and mostly one pass.

    Args:
        base: the model most rows are read with; its positions are what ``room`` counts.
        rows: most rows that write at once, and most that score.
        room: most positions over all rows.
        kv_memory: the same in bytes; without either there are ``KV_MEMORY``.
        turns: numbers for rows that are set aside.
        displaced: called with a row that must wait again.
        batch_invariant: read every row by the same arithmetic, bit for bit, whoever is beside it.

    Raises:
        ConfigError: memory in which not even a short row would ever find a place.
    """

    def __init__(
        self,
        base: Base,
        rows: int,
        room: int | None,
        kv_memory: int | None,
        turns: itertools.count[int],
        displaced: Callable[[Row], None],
        *,
        batch_invariant: bool = False,
    ) -> None:
        self._batch_invariant = batch_invariant
        self._base, self._most, self._turns, self._displaced = base, rows, turns, displaced
        self.rows: list[Row] = []
        self._memory = KVMemory()
        own = KVPool(base, self._memory, batch_invariant=batch_invariant)
        self._pools = {base.fingerprint: own}
        self._memory.limit = self._limit = _most_bytes(own, rows, room, kv_memory)
        self.room = self._limit * SHORTEST // own.slot_bytes(SHORTEST)
        """The most positions there may be, in the smallest slots."""
        self._riders = Riders(batch_invariant=batch_invariant)
        self._looked = time.monotonic()

    @property
    def used(self) -> int:
        """Positions that are filled; any thread may ask."""
        return sum(pool.used for pool in list(self._pools.values()))

    def held(self, *, scores: bool) -> Counter[Hashable]:
        """How many places of rows that score, or that write, each owner holds, by its id."""
        return Counter(row.owner.id for row in self.rows if row.scores is scores)

    @property
    def memory_taken(self) -> int:
        """Bytes of all slots, filled or not."""
        return self._memory.taken

    def could_hold(self, request: ModelRequest) -> bool:
        """Whether a request would find memory beside one of its own size."""
        return 2 * slot_bytes(request.prefix, request.positions) <= self._limit

    # -- places and memory ---------------------------------------------------------------------

    def join(self, row: Row) -> bool:
        """Find a place and memory for a row that waits; False where there is none yet."""
        alike = [other for other in self.rows if other.scores is row.scores]
        if len(alike) >= self._most and not self._set_one_aside(row):
            return False
        request = row.request
        need = min(row.sequence.need + _HEADROOM, request.positions)
        pool = self._pools.get(request.model.fingerprint)
        if pool is None:  # a changed copy of the model, whose first row this is
            pool = KVPool(
                request.model, self._memory, like=request.prefix, batch_invariant=self._batch_invariant
            )
            self._pools[request.model.fingerprint] = pool
        while True:
            row.slot = pool.open(request.prefix, need, self._spare if self.rows and not row.scores else 0)
            if row.slot is not None:
                row.begun, row.steps = True, 0
                row.handle.joined = row.handle.joined or time.monotonic()
                row.turn_length = min(max(row.sequence.need, _SHORTEST_TURN), _LONGEST_TURN)
                self.rows.append(row)
                return True
            if not self._make_room(row):
                return False

    def leave(self, row: Row) -> None:
        """A row is over."""
        self._close(row)
        model = row.request.model
        if model is not self._base and not any(other.request.model is model for other in self.rows):
            self._pools.pop(model.fingerprint).shrink()

    def read_next(self, row: Row, count: int, step: int) -> bool:
        """Let a row read about ``count`` tokens next; False where it had to make room instead."""
        if row.slot is None:
            return False
        need = row.slot.length + min(count, row.sequence.unread)
        if not row.scores and need > row.slot.capacity:  # what scores has all it needs from the start
            oldest = all(row.turn <= other.turn for other in self.rows if not other.scores)
            pool = self._pools[row.request.model.fingerprint]
            while not pool.reserve(row.slot, need, 0 if oldest else self._spare):
                if not self._make_room(row):
                    self._preempt(row)
                    return False
        row.reading = row.sequence.next(count)
        row.steps, row.last = row.steps + 1, step
        return True

    def give_back(self, most: float = 1.0, every: float = 0.0) -> None:
        """Let go of memory where there are more than ``most`` times as many slots as rows hold.

        Does so only if the last time is ``every`` seconds ago.
        """
        now = time.monotonic()
        if now - self._looked < every:
            return
        before, self._looked = self._memory.taken, now
        self._shrink(most)
        if self._memory.taken < before:
            release_heap()

    def _shrink(self, most: float = 1.0) -> None:
        for pool in self._pools.values():
            pool.shrink(most)

    def _make_room(self, row: Row) -> bool:
        """Free some memory for a row; False where nobody has to make room for it."""
        before = self._memory.taken
        self._shrink()
        if self._memory.taken < before:
            return True
        later = [
            other for other in self.rows if not other.scores and (row.scores or self._yields(other, row))
        ]
        if later:
            self._preempt(max(later, key=lambda other: other.turn))
            return True
        return row.slot is None and self._set_one_aside(row)

    def _set_one_aside(self, row: Row) -> bool:
        """For a row that writes: let one wait whose owner holds more than its share, else the one that has
        longest had its turn, if it is over.
        """
        if row.scores:
            return False
        held = self.held(scores=False)
        writing = [other for other in self.rows if not other.scores]
        giving = [other for other in writing if gives_way(other.owner, row.owner, held)]
        if giving:
            most = max(giving, key=lambda other: (held[other.owner.id] / other.owner.weight, other.turn))
            self._preempt(most)
            return True
        over = [
            other
            for other in writing
            if other.steps >= other.turn_length and takes_turns(other.owner, row.owner, held)
        ]
        if not over:
            return False
        longest = max(over, key=lambda other: other.steps)
        longest.turn = next(self._turns)
        self._preempt(longest)
        return True

    def _yields(self, other: Row, row: Row) -> bool:
        """Whether one row that writes makes room for another."""
        if other.owner.id == row.owner.id:
            return other.turn > row.turn
        held = self.held(scores=False)
        if row.slot is None:
            return gives_way(other.owner, row.owner, held)
        more = held[other.owner.id] * row.owner.weight - held[row.owner.id] * other.owner.weight
        return more > 0 or (more == 0 and other.turn > row.turn)

    def _preempt(self, row: Row) -> None:
        """Take a row's memory; it goes on later, read again from its first token."""
        row.sequence.restart()
        self._displaced(row)  # first of all, so that it is always in one of both lists
        self._close(row)

    def _close(self, row: Row) -> None:
        assert row.slot is not None
        self._pools[row.request.model.fingerprint].close(row.slot)
        row.slot = None
        self.rows.remove(row)

    @property
    def _spare(self) -> int:
        return self._limit // _SPARE

    # -- one pass ------------------------------------------------------------------------------

    def read(self, model: Base, rows: Sequence[Row]) -> list[Tensor]:
        """One pass over what rows of one model read next; the logits each of them wants, [T, V]."""
        chunks, reading = list[Chunk](), list[Row]()
        for row in rows:
            assert row.slot is not None
            if row.reading.ids:
                chunks.append(Chunk(row.slot, row.reading.ids, row.reading.goes_on))
                reading.append(row)
        hidden: dict[int, Tensor] = {}
        if reading:
            found = self._pools[model.fingerprint].read(chunks, self._carrying(reading))
            hidden = {id(row): states for row, states in zip(reading, found, strict=True)}
        wanted = [_wanted(row, hidden.get(id(row))) for row in rows]
        some = [states for states in wanted if len(states)]
        if not some:
            return wanted
        states = torch.cat(some)
        in_blocks = self._batch_invariant
        logits = logits_in_blocks(model.head, states) if in_blocks else model.head.logits(states)
        return list(logits.split([len(states) for states in wanted]))

    def _carrying(self, rows: Sequence[Row]) -> Callable[[Sequence[int]], AbstractContextManager[None]]:
        adapters = [row.request.adapter for row in rows]
        return lambda owners: self._riders.seated([adapters[owner] for owner in owners])


def _most_bytes(pool: KVPool, rows: int, room: int | None, kv_memory: int | None) -> int:
    """The most bytes all slots may take."""
    short = pool.slot_bytes(SHORTEST)
    if room is None and kv_memory is None:
        return max(rows * pool.slot_bytes(_SHORT), KV_MEMORY)
    most = kv_memory * SHORTEST // short if room is None and kv_memory is not None else room or 0
    if most < SHORTEST:
        what = f"room is {room} positions" if room is not None else f"kv_memory holds {most} positions"
        raise ConfigError(f"{what}, but one row takes {SHORTEST} at least; give more.")
    return kv_memory if room is None and kv_memory is not None else most * short // SHORTEST


def _wanted(row: Row, hidden: Tensor | None) -> Tensor:
    """The hidden states [T, E] after the tokens whose successors a row asks for; hidden: [W, E]."""
    before = row.request.prefix.hidden
    states = [before if place == BEFORE else hidden[place] for place in row.reading.wanted]  # type: ignore[index]
    if not states:
        return torch.empty(0, row.request.model.width)
    return torch.stack(states)  # type: ignore[arg-type]
