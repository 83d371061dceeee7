"""Strips: the keys and values of rows that are being read or written, each behind a prefix of its own.

It knows slots and tokens; it does not know what a row is for or how its next token is chosen. A row's
prefix and text lie at slots 0, 1, 2, ... of its strip, so a slot's index is its position whatever the others'
lengths. Strips of about one length stand together on a shelf, one tensor a layer, written in place; a pass
reads any number of tokens of any number of rows, laid side by side without padding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.base.attention import Part
from softprompt.base.cache import IntoStrips, Slots
from softprompt.base.layout import Windows
from softprompt.base.model import Base
from softprompt.prefix import Prefix

__all__ = ["Chunk", "Strip", "Strips"]

SHORTEST = 64
"""Slots of the shortest strips; longer ones double."""

FIRST_ROWS = 4
"""Strips a shelf begins with; it doubles when they are taken."""

FULL = 16
"""Beyond twice as many, the tokens of a pass are filled up to a multiple: matrix libraries keep code and
memory for every number of rows they ever met."""

Around = Callable[[Sequence[int]], AbstractContextManager[None]]
"""Entered around every pass, with the number of the chunk that each of its tokens belongs to."""


@dataclass(eq=False)
class Strip:
    """A row's place: which shelf, which strip of it, how many slots are filled and how many ever were."""

    shelf: Shelf
    index: int
    length: int = 0
    reached: int = 0

    def rewind(self, length: int) -> None:
        """Forget what lies behind the first ``length`` slots, to read something else there."""
        assert length <= self.length
        self.length = length


@dataclass(frozen=True)
class Chunk:
    """The next tokens of a row."""

    strip: Strip
    ids: Sequence[int]


class Shelf:
    """Strips of C slots: per layer keys and values ``[R, K, C, D]``, of which the first ones are taken."""

    def __init__(self, like: Prefix, capacity: int) -> None:
        self.capacity = capacity
        self.strips: list[Strip] = []
        self.keys = [_room(k, 0, capacity) for k in like.keys]
        self.values = [_room(v, 0, capacity) for v in like.values]

    @property
    def rows(self) -> int:
        """R, taken or not."""
        return self.keys[0].shape[0]

    def grow(self, rows: int) -> None:
        """Make it ``rows`` strips, the taken ones kept."""
        for side in (self.keys, self.values):
            for layer, old in enumerate(side):
                side[layer] = old.new_zeros(rows, *old.shape[1:])
                side[layer][: len(old)] = old

    def take(self, prefix: Prefix) -> Strip:
        """A free strip, the prefix laid in it."""
        strip = Strip(self, len(self.strips), prefix.length, prefix.length)
        self.strips.append(strip)
        for side, front in ((self.keys, prefix.keys), (self.values, prefix.values)):
            for slots, layer in zip(side, front, strict=True):
                slots[strip.index, :, : prefix.length] = layer
        return strip

    def give_back(self, strip: Strip) -> None:
        """Free a strip. Its slots are cleared: a NaN left in a masked slot would reach the next row."""
        last = self.strips[-1]
        self.swap(strip.index, last.index)
        self.strips.pop()
        for slots in (*self.keys, *self.values):
            slots[strip.index, :, : strip.reached] = 0

    def swap(self, one: int, other: int) -> None:
        """Let two rows change places."""
        if one == other:
            return
        a, b = self.strips[one], self.strips[other]
        used = max(a.reached, b.reached)
        for slots in (*self.keys, *self.values):
            held = slots[one, :, :used].clone()
            slots[one, :, :used] = slots[other, :, :used]
            slots[other, :, :used] = held
        self.strips[one], self.strips[other] = b, a
        a.index, b.index = other, one

    def to_front(self, strips: Sequence[Strip]) -> None:
        """Let these rows take the first places, so that one view holds them all."""
        wanted = {id(strip) for strip in strips}
        places = [n for n in range(len(wanted)) if id(self.strips[n]) not in wanted]
        for strip in strips:
            if strip.index >= len(wanted):
                self.swap(strip.index, places.pop())


class Strips:
    """Room for rows of one model, made as it is needed and bounded in all.

    Args:
        base: the model.
        room: most slots there may be, taken or not; None for no bound.
        like: any prefix of the model, which shows the shapes; without one the model is asked.
    """

    def __init__(self, base: Base, room: int | None = None, like: Prefix | None = None) -> None:
        self._base = base
        self._windows = Windows.of(base.config)
        self._like = like or base.prefill(base.embed(()))
        self._shelves: dict[int, Shelf] = {}
        self.room = room

    @property
    def used(self) -> int:
        """Slots that are filled."""
        shelves = list(self._shelves.values())  # another thread may ask while a shelf is added
        return sum(strip.length for shelf in shelves for strip in shelf.strips)

    @property
    def made(self) -> int:
        """Slots there are, taken or not."""
        return sum(shelf.rows * shelf.capacity for shelf in self._shelves.values())

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot in all layers."""
        sides = (*self._like.keys, *self._like.values)
        return sum(t.shape[0] * t.shape[2] * t.element_size() for t in sides)

    def open(self, prefix: Prefix, need: int) -> Strip | None:
        """A strip for a row that will hold ``need`` positions, its prefix laid in it; None without room."""
        self._base.accept(prefix)
        capacity = SHORTEST
        while capacity < need:
            capacity *= 2
        shelf = self._shelves.setdefault(capacity, Shelf(self._like, capacity))
        if len(shelf.strips) == shelf.rows and not self._grow(shelf):
            return None
        return shelf.take(prefix)

    def close(self, strip: Strip) -> None:
        """Give a row's strip back."""
        strip.shelf.give_back(strip)

    def _grow(self, shelf: Shelf) -> bool:
        for rows in (max(FIRST_ROWS, 2 * shelf.rows), shelf.rows + 1):
            more = (rows - shelf.rows) * shelf.capacity
            if self.room is not None and self.made + more > self.room:
                self._shelves = {c: s for c, s in self._shelves.items() if s.strips or s is shelf}
            if self.room is None or self.made + more <= self.room:
                shelf.grow(rows)
                return True
        return False

    # -- reading -------------------------------------------------------------------------------

    def read(self, chunks: Sequence[Chunk], around: Around = lambda owners: nullcontext()) -> list[Tensor]:
        """Read the next tokens of every row given; their hidden states, ``[T, E]`` a chunk.

        A row may be given once. What a row sees is its own strip alone.
        """
        for chunk in chunks:  # before the pass, which may fail half-way: what it wrote is cleared, too
            chunk.strip.reached = max(chunk.strip.reached, chunk.strip.length + len(chunk.ids))
        order = self._arrange(chunks)
        read = self._flat if self._base.layout.flat else self._apart
        found = dict(zip(order, read([chunks[n] for n in order], order, around), strict=True))
        for chunk in chunks:
            chunk.strip.length += len(chunk.ids)
        return [found[n] for n in range(len(chunks))]

    def _arrange(self, chunks: Sequence[Chunk]) -> list[int]:
        """The order to read in: rows of one token first, by shelf and place, then the longer ones."""
        single: dict[int, list[int]] = defaultdict(list)
        for number, chunk in enumerate(chunks):
            if len(chunk.ids) == 1:
                single[chunk.strip.shelf.capacity].append(number)
        order = []
        for capacity, numbers in single.items():
            self._shelves[capacity].to_front([chunks[n].strip for n in numbers])
            order += sorted(numbers, key=lambda n: chunks[n].strip.index)
        return order + [n for n, chunk in enumerate(chunks) if len(chunk.ids) != 1]

    def _flat(self, chunks: Sequence[Chunk], order: Sequence[int], around: Around) -> list[Tensor]:
        """All tokens in one row without padding; attention goes strip by strip (``attention.Part``)."""
        device, sizes = self._base.device, [len(chunk.ids) for chunk in chunks]
        starts = torch.tensor([chunk.strip.length for chunk in chunks], device=device)
        ids = [token for chunk in chunks for token in chunk.ids]
        filling = -len(ids) % FULL if len(ids) > 2 * FULL else 0  # tokens of no row, which no part reads
        owners = torch.arange(len(chunks), device=device).repeat_interleave(
            torch.tensor(sizes, device=device)
        )
        firsts = torch.tensor([0, *sizes], device=device).cumsum(0)[:-1]
        at = starts[owners] + torch.arange(len(owners), device=device) - firsts[owners]  # [N] slots
        parts = self._parts(chunks, at)
        visible = max(part.visible for part in parts)
        slots = functional.pad(at, (0, filling))
        where = self._base.layout.strips(slots, visible, self._windows, self._base.dtype)
        tokens = torch.tensor([ids + [0] * filling], device=device)
        with around([order[n] for n in owners.tolist()] + [order[-1]] * filling):
            hidden = self._base.run(input_ids=tokens, cache=IntoStrips(parts), strips=parts, **where)
        return list(hidden[0, : len(ids)].split(sizes))

    def _parts(self, chunks: Sequence[Chunk], at: Tensor) -> list[Part]:
        """Rows of one token, a part for each shelf; then a part for every longer row."""
        parts, first = list[Part](), 0
        while first < len(chunks) and len(chunks[first].ids) == 1:
            shelf = chunks[first].strip.shelf
            last = first
            while last < len(chunks) and len(chunks[last].ids) == 1 and chunks[last].strip.shelf is shelf:
                last += 1
            visible = max(chunk.strip.length for chunk in chunks[first:last]) + 1
            parts.append(
                Part(first, last, shelf.keys, shelf.values, 0, last - first, visible, at[first:last])
            )
            first = last
        start = first
        for chunk in chunks[first:]:
            strip, stop = chunk.strip, start + len(chunk.ids)
            visible = strip.length + len(chunk.ids)
            keys, values = strip.shelf.keys, strip.shelf.values
            parts.append(
                Part(start, stop, keys, values, strip.index, strip.index + 1, visible, at[start:stop])
            )
            start = stop
        return parts

    def _apart(self, chunks: Sequence[Chunk], order: Sequence[int], around: Around) -> list[Tensor]:
        """For a model that needs its own masks: a pass for a shelf's single tokens, one for a longer row."""
        found, first = list[Tensor](), 0
        while first < len(chunks):
            shelf, last = chunks[first].strip.shelf, first + 1
            if len(chunks[first].ids) == 1:
                while last < len(chunks) and len(chunks[last].ids) == 1 and chunks[last].strip.shelf is shelf:
                    last += 1
                with around(order[first:last]):
                    found += self._step(shelf, chunks[first:last])
            else:
                with around([order[first]] * len(chunks[first].ids)):
                    found.append(self._continue(chunks[first]))
            first = last
        return found

    def _step(self, shelf: Shelf, chunks: Sequence[Chunk]) -> list[Tensor]:
        """One token of each of the first rows of a shelf; hidden states [1, E] a row."""
        device, rows = self._base.device, len(chunks)
        at = torch.tensor([chunk.strip.length for chunk in chunks], device=device)
        tokens = torch.tensor([[chunk.ids[0]] for chunk in chunks], device=device)
        slots = Slots([k[:rows] for k in shelf.keys], [v[:rows] for v in shelf.values])
        visible = max(chunk.strip.length for chunk in chunks) + 1
        slots.step(at, visible)
        where = self._base.layout.decoding(at, visible, self._windows, self._base.dtype)
        return list(self._base.run(input_ids=tokens, cache=slots, **where))

    def _continue(self, chunk: Chunk) -> Tensor:
        """Several tokens of one row, [T, E], behind what its strip holds, by the model's own causal mask."""
        strip, stop = chunk.strip, chunk.strip.length + len(chunk.ids)
        at = torch.arange(strip.length, stop, device=self._base.device)
        keys, values = strip.shelf.keys, strip.shelf.values
        part = Part(0, len(chunk.ids), keys, values, strip.index, strip.index + 1, stop, at)
        tokens = torch.tensor([list(chunk.ids)], device=self._base.device)
        cache = IntoStrips([part], seen=strip.length, hand_out=True)
        return self._base.run(input_ids=tokens, cache=cache, attention_mask=None)[0]


def _room(like: Tensor, rows: int, capacity: int) -> Tensor:
    """Zeroed slots [R, K, C, D] for one layer, shaped and typed like a prefix [K, P, D]."""
    return like.new_zeros(rows, like.shape[0], capacity, like.shape[2])
