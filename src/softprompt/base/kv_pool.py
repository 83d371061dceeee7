"""The KV pool: keys, values and states of rows that are being read or written, each behind its own prefix.

It knows slots and tokens; it does not know what a row is for or how its next token is chosen. A row's
prefix and text lie at positions 0, 1, 2, ... of its slot, whatever the lengths of the others. Slots of one
size stand together in a bucket, one tensor a layer, written in place; a row that outgrows its slot moves to a
bucket of twice the size. What a layer keeps in place of keys and values, a state of one size, lies beside
them. A pass reads any number of tokens of any number of rows, without padding.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.base.attention import PoolSpan
from softprompt.base.cache import DecodeCache, PoolCache
from softprompt.base.layout import Windows
from softprompt.base.model import Base
from softprompt.prefix import Prefix

__all__ = ["SHORTEST", "Chunk", "KVMemory", "KVPool", "KVSlot", "slot_bytes"]

SHORTEST = 64
"""Positions of the smallest slots; larger ones double."""

FIRST_ROWS = 4
"""Slots a bucket begins with; it doubles when they are taken."""

FULL = 16
"""Beyond twice as many, the tokens of a pass are filled up to a multiple: matrix libraries keep code and
memory for every number of rows they ever met."""

BLOCK = 32
"""Tokens of every pass of a pool that is ``batch_invariant``."""

Around = Callable[[Sequence[int]], AbstractContextManager[None]]
"""Entered around every pass, with the number of the chunk that each of its tokens belongs to."""


def slot_bytes(like: Prefix, positions: int) -> int:
    """Bytes of a row of so many positions in all layers of the model that made this prefix."""
    each = sum(t.shape[0] * t.shape[2] * t.element_size() for t in (*like.keys, *like.values))
    return positions * each + sum(t.numel() * t.element_size() for t in like.states.values())


class KVMemory:
    """Bytes that pools share, and the most they may take together; None for no bound."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.taken = 0

    def take(self, nbytes: int, spare: int = 0) -> bool:
        """Take so many bytes if they are there, and ``spare`` ones beside them."""
        if self.limit is not None and self.taken + nbytes + spare > self.limit:
            return False
        self.taken += nbytes
        return True


@dataclass(eq=False)
class KVSlot:
    """A row's place: which bucket, which slot of it, how many positions are filled and how many ever were."""

    bucket: Bucket
    index: int
    length: int = 0
    reached: int = 0

    @property
    def capacity(self) -> int:
        """C, the most positions it holds."""
        return self.bucket.capacity

    @property
    def place(self) -> tuple[int, int]:
        """Slots of one bucket in a row are neighbours."""
        return self.bucket.capacity, self.index


@dataclass(frozen=True)
class Chunk:
    """The next tokens of a row; unless it goes on from them, the row is afterwards as it was."""

    slot: KVSlot
    ids: Sequence[int]
    goes_on: bool = True


class Bucket:
    """R slots of C positions, the first ones taken.

    By layer keys and values ``[R, K, C, D]``, and states ``[R, ...]``.
    """

    def __init__(self, like: Prefix, capacity: int) -> None:
        self.capacity = capacity
        self.rows = 0
        self.slots: list[KVSlot] = []
        sides = ((like.places, side) for side in (like.keys, like.values))
        self.keys, self.values = (
            {layer: t.new_zeros(0, t.shape[0], capacity, t.shape[2]) for layer, t in zip(*side, strict=True)}
            for side in sides
        )
        self.states = {key: t.new_zeros(0, *t.shape) for key, t in like.states.items()}

    @property
    def pairs(self) -> list[Tensor]:
        """All keys and values."""
        return [*self.keys.values(), *self.values.values()]

    def resize(self, rows: int) -> None:
        """Make it ``rows`` slots, the taken ones kept; layer by layer, so that no two copies of all exist."""
        kept, self.rows = len(self.slots), rows
        tables: tuple[dict[Any, Tensor], ...] = (self.keys, self.values, self.states)
        for table in tables:
            for name, old in table.items():
                table[name] = old.new_zeros(rows, *old.shape[1:])
                table[name][:kept] = old[:kept]

    def take(self) -> KVSlot:
        """A free slot, nothing in it."""
        self.slots.append(KVSlot(self, len(self.slots)))
        return self.slots[-1]

    def give_back(self, slot: KVSlot) -> None:
        """Free a slot. Its positions are cleared: a NaN left in a masked one would reach the next row."""
        self.swap(slot.index, len(self.slots) - 1)
        self.slots.pop()
        for side in self.pairs:
            side[slot.index, :, : slot.reached] = 0
        for state in self.states.values():
            state[slot.index] = 0

    def swap(self, one: int, other: int) -> None:
        """Let two rows change places."""
        if one == other:
            return
        a, b = self.slots[one], self.slots[other]
        used = max(a.reached, b.reached)
        for t in (*(side[:, :, :used] for side in self.pairs), *self.states.values()):
            held = t[one].clone()
            t[one] = t[other]
            t[other] = held
        self.slots[one], self.slots[other] = b, a
        a.index, b.index = other, one

    def bring_together(self, slots: Sequence[KVSlot]) -> None:
        """Let these rows stand side by side, at the front unless they do, so that one view holds them."""
        taken = {slot.index for slot in slots}
        if max(taken) - min(taken) + 1 == len(taken):
            return
        places = [place for place in range(len(slots)) if place not in taken]
        for slot in slots:
            if slot.index >= len(slots):
                self.swap(slot.index, places.pop())


class KVPool:
    """Slots for rows of one model, made as they are needed.

    Args:
        base: the model.
        memory: what bounds it, alone or together with other pools; nothing by default.
        like: any prefix of the model, which shows the shapes; without one the model is asked.
        batch_invariant: read every token by the same arithmetic, bit for bit, whoever is read beside it and
            however its text is cut into passes; for models that are read ``flat``.
    """

    def __init__(
        self,
        base: Base,
        memory: KVMemory | None = None,
        like: Prefix | None = None,
        *,
        batch_invariant: bool = False,
    ) -> None:
        self._base = base
        self._batch_invariant = batch_invariant
        self._windows = Windows.of(base.config)
        self._like = like or base.prefill(base.embed(()))
        self._buckets: dict[int, Bucket] = {}
        self._memory = memory or KVMemory()

    @property
    def used(self) -> int:
        """Positions that are filled."""
        buckets = list(self._buckets.values())  # another thread may ask while a bucket is added
        return sum(slot.length for bucket in buckets for slot in bucket.slots)

    def slot_bytes(self, positions: int) -> int:
        """Bytes of a slot of so many positions."""
        return slot_bytes(self._like, positions)

    @property
    def made(self) -> int:
        """Positions there are, taken or not."""
        return sum(bucket.rows * bucket.capacity for bucket in self._buckets.values())

    def open(self, prefix: Prefix, need: int, spare: int = 0) -> KVSlot | None:
        """A slot for a row that holds ``need`` positions for now, its prefix laid in it; None without room.

        ``spare`` bytes of the memory must be left over.
        """
        self._base.accept(prefix)
        slot = self._take(max(need, prefix.length), spare)
        if slot is None:
            return None
        slot.length = slot.reached = prefix.length
        for side, front in ((slot.bucket.keys, prefix.keys), (slot.bucket.values, prefix.values)):
            for layer, new in zip(side.values(), front, strict=True):
                layer[slot.index, :, : prefix.length] = new
        for key, state in slot.bucket.states.items():
            state[slot.index] = prefix.states[key]
        return slot

    def reserve(self, slot: KVSlot, need: int, spare: int = 0) -> bool:
        """See to it that a slot holds ``need`` positions; where it must move and cannot, nothing changes."""
        if need <= slot.capacity:
            return True
        larger = self._take(need, spare)
        if larger is None:
            return False
        old, filled = slot.bucket, slot.length
        for before, after in zip(old.pairs, larger.bucket.pairs, strict=True):
            after[larger.index, :, :filled] = before[slot.index, :, :filled]
        for key, state in old.states.items():
            larger.bucket.states[key][larger.index] = state[slot.index]
        old.give_back(slot)
        larger.bucket.slots[larger.index] = slot
        slot.bucket, slot.index, slot.reached = larger.bucket, larger.index, filled
        return True

    def close(self, slot: KVSlot) -> None:
        """Give a row's slot back."""
        slot.bucket.give_back(slot)

    def shrink(self, most: float = 1.0) -> None:
        """Give back slots that nobody holds, in buckets of more than ``most`` times as many as are held."""
        for capacity, bucket in list(self._buckets.items()):
            if bucket.rows > most * len(bucket.slots):
                self._memory.taken -= (bucket.rows - len(bucket.slots)) * self.slot_bytes(capacity)
                if bucket.slots:
                    bucket.resize(len(bucket.slots))
                else:
                    del self._buckets[capacity]

    def _take(self, need: int, spare: int) -> KVSlot | None:
        capacity = SHORTEST
        while capacity < need:
            capacity *= 2
        bucket = self._buckets.get(capacity) or Bucket(self._like, capacity)
        if len(bucket.slots) == bucket.rows and not self._grow(bucket, spare):
            return None
        self._buckets[capacity] = bucket
        return bucket.take()

    def _grow(self, bucket: Bucket, spare: int) -> bool:
        """More slots for a bucket that has none free; where memory is short one, for which unused ones go."""
        bytes_each = self.slot_bytes(bucket.capacity)
        for rows in (max(FIRST_ROWS, 2 * bucket.rows), bucket.rows + 1):
            if self._memory.take((rows - bucket.rows) * bytes_each, spare):
                bucket.resize(rows)
                return True
        self.shrink()
        if not self._memory.take(bytes_each, spare):
            return False
        bucket.resize(bucket.rows + 1)
        return True

    # -- reading -------------------------------------------------------------------------------

    def read(self, chunks: Sequence[Chunk], around: Around = lambda owners: nullcontext()) -> list[Tensor]:
        """Read the next tokens of every row given; their hidden states, ``[T, E]`` a chunk.

        A row may be given once. What a row sees is its own slot alone.
        """
        for chunk in chunks:  # before the pass, which may fail half-way: what it wrote is cleared, too
            stop = chunk.slot.length + len(chunk.ids)
            assert stop <= chunk.slot.capacity
            chunk.slot.reached = max(chunk.slot.reached, stop)
        order = self._arrange(chunks)
        stays = [chunk.slot for chunk in chunks if not chunk.goes_on]
        before = [{key: t[s.index].clone() for key, t in s.bucket.states.items()} for s in stays]
        read = self._flat if self._base.layout.flat else self._apart
        read = self._in_blocks if self._batch_invariant else read
        found = dict(zip(order, read([chunks[n] for n in order], order, around), strict=True))
        for slot, states in zip(stays, before, strict=True):
            for key, state in states.items():
                slot.bucket.states[key][slot.index] = state
        for chunk in chunks:
            chunk.slot.length += len(chunk.ids) if chunk.goes_on else 0
        return [found[n] for n in range(len(chunks))]

    def _arrange(self, chunks: Sequence[Chunk]) -> list[int]:
        """The order to read in: rows of one token first, by bucket and place, then the longer ones."""
        single: dict[int, list[int]] = defaultdict(list)
        for number, chunk in enumerate(chunks):
            if len(chunk.ids) == 1:
                single[chunk.slot.capacity].append(number)
        order = []
        for capacity, numbers in single.items():
            self._buckets[capacity].bring_together([chunks[n].slot for n in numbers])
            order += sorted(numbers, key=lambda n: chunks[n].slot.index)
        return order + [n for n, chunk in enumerate(chunks) if len(chunk.ids) != 1]

    def _flat(self, chunks: Sequence[Chunk], order: Sequence[int], around: Around) -> list[Tensor]:
        """All tokens in one row without padding; attention goes span by span (``attention.PoolSpan``)."""
        device, sizes = self._base.device, [len(chunk.ids) for chunk in chunks]
        starts = torch.tensor([chunk.slot.length for chunk in chunks], device=device)
        ids = [token for chunk in chunks for token in chunk.ids]
        filling = -len(ids) % FULL if len(ids) > 2 * FULL else 0  # tokens of no row, which no span reads
        owners = torch.arange(len(chunks), device=device).repeat_interleave(
            torch.tensor(sizes, device=device)
        )
        firsts = torch.tensor([0, *sizes], device=device).cumsum(0)[:-1]
        at = starts[owners] + torch.arange(len(owners), device=device) - firsts[owners]  # [N] positions
        spans = self._spans(chunks, at)
        visible = max(span.visible for span in spans)
        where = self._base.layout.pooled(
            functional.pad(at, (0, filling)), visible, self._windows, self._base.dtype
        )
        tokens = torch.tensor([ids + [0] * filling], device=device)
        with around([order[n] for n in owners.tolist()] + [order[-1]] * filling):
            hidden = self._base.run(input_ids=tokens, cache=PoolCache(spans), pool=spans, **where)
        return list(hidden[0, : len(ids)].split(sizes))

    def _in_blocks(self, chunks: Sequence[Chunk], order: Sequence[int], around: Around) -> list[Tensor]:
        """All tokens in passes of one shape, each token looking by itself at a width that its position says.

        What libraries choose by the shape of their work (how a product is blocked, where a sum is split) is
        then the same for a token in any company. Nothing is summed over tokens but in attention.
        """
        device = self._base.device
        tokens = [(n, chunk, i) for n, chunk in enumerate(chunks) for i in range(len(chunk.ids))]
        found = list[Tensor]()
        for first in range(0, len(tokens), BLOCK):
            block = tokens[first : first + BLOCK]
            filling = BLOCK - len(block)
            at = torch.tensor([chunk.slot.length + i for _, chunk, i in block], device=device)
            spans = _spans_apart([chunk for _, chunk, _ in block], at)
            visible = max(span.visible for span in spans)
            where = self._base.layout.pooled(
                functional.pad(at, (0, filling)), visible, self._windows, self._base.dtype
            )
            ids = [chunk.ids[i] for _, chunk, i in block] + [0] * filling
            owners = [order[n] for n, _, _ in block]
            with around(owners + owners[-1:] * filling):
                hidden = self._base.run(
                    input_ids=torch.tensor([ids], device=device), cache=PoolCache(spans), pool=spans, **where
                )
            found.append(hidden[0, : len(block)])
        return list(torch.cat(found).split([len(chunk.ids) for chunk in chunks]))

    def _spans(self, chunks: Sequence[Chunk], at: Tensor) -> list[PoolSpan]:
        """Rows of one token, a span for each bucket; then a span for every longer row."""
        spans, first = list[PoolSpan](), 0
        while first < len(chunks):
            last, start = _alike(chunks, first), spans[-1].stop if spans else 0
            slot, count = chunks[first].slot, last - first
            stop = start + sum(len(chunk.ids) for chunk in chunks[first:last])
            visible = max(chunk.slot.length + len(chunk.ids) for chunk in chunks[first:last])
            sides = slot.bucket.keys, slot.bucket.values
            spans.append(
                PoolSpan(start, stop, *sides, slot.index, slot.index + count, visible, at[start:stop])
            )
            first = last
        return spans

    def _apart(self, chunks: Sequence[Chunk], order: Sequence[int], around: Around) -> list[Tensor]:
        """For a model that needs its own masks: a pass for a bucket's single tokens, one for a longer row."""
        found, first = list[Tensor](), 0
        while first < len(chunks):
            last = _alike(chunks, first) if self._base.layout.company else first + 1
            if len(chunks[first].ids) == 1:
                with around(order[first:last]):
                    found += self._step(chunks[first:last])
            else:
                with around([order[first]] * len(chunks[first].ids)):
                    found.append(self._continue(chunks[first]))
            first = last
        return found

    def _step(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """One token of each of some neighbours in a bucket; hidden states [1, E] a row."""
        device, bucket = self._base.device, chunks[0].slot.bucket
        rows = slice(chunks[0].slot.index, chunks[-1].slot.index + 1)
        at = torch.tensor([chunk.slot.length for chunk in chunks], device=device)
        tokens = torch.tensor([[chunk.ids[0]] for chunk in chunks], device=device)
        visible = max(chunk.slot.length for chunk in chunks) + 1
        keys, values = (
            {layer: t[rows] for layer, t in side.items()} for side in (bucket.keys, bucket.values)
        )
        states = {key: t[rows] for key, t in bucket.states.items()}
        cache = DecodeCache(keys, values, states, at, visible)
        where = self._base.layout.decoding(at, visible, self._windows, self._base.dtype)
        return list(self._base.run(input_ids=tokens, cache=cache, **where))

    def _continue(self, chunk: Chunk) -> Tensor:
        """Several tokens of one row, [T, E], behind what its slot holds, by the model's own causal mask."""
        slot, stop = chunk.slot, chunk.slot.length + len(chunk.ids)
        at = torch.arange(slot.length, stop, device=self._base.device)
        sides = slot.bucket.keys, slot.bucket.values
        span = PoolSpan(0, len(chunk.ids), *sides, slot.index, slot.index + 1, stop, at)
        tokens = torch.tensor([list(chunk.ids)], device=self._base.device)
        states = {key: t[slot.index : slot.index + 1] for key, t in slot.bucket.states.items()}
        cache = PoolCache([span], slot.length, states, hand_out=True)
        return self._base.run(input_ids=tokens, cache=cache, **self._base.layout.following(at[None]))[0]


def _alike(chunks: Sequence[Chunk], first: int) -> int:
    """Where the chunks end that are read with the one at ``first``: single tokens of its bucket."""
    last, bucket = first + 1, chunks[first].slot.bucket
    if len(chunks[first].ids) == 1:
        while last < len(chunks) and len(chunks[last].ids) == 1 and chunks[last].slot.bucket is bucket:
            last += 1
    return last


def _spans_apart(chunks: Sequence[Chunk], at: Tensor) -> list[PoolSpan]:
    """Spans of tokens that each look by themselves, given the chunk and the position ``[N]`` of each.

    Neighbours share one where they look equally wide: at as many positions as the smallest slot has that
    would hold the token.
    """
    wide = [max(SHORTEST, 1 << place.bit_length()) for place in at.tolist()]

    def alike(n: int) -> tuple[int, int, bool, int]:
        slot, several = chunks[n].slot, len(chunks[n].ids) > 1
        return wide[n], slot.capacity, several, slot.index - (0 if several else n)

    spans = list[PoolSpan]()
    for _, group in itertools.groupby(range(len(chunks)), key=alike):
        run = list(group)
        start, stop = run[0], run[-1] + 1
        first, last = chunks[run[0]].slot, chunks[run[-1]].slot
        sides = first.bucket.keys, first.bucket.values
        spans.append(
            PoolSpan(
                start, stop, *sides, first.index, last.index + 1, wide[start], at[start:stop], apart=True
            )
        )
    return spans
