"""Rows of tokens laid side by side in bins, so that hardly a position is padding.

Pure index arithmetic: it knows token ids and lengths, not models or devices.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, count
from typing import ClassVar

import torch
from torch import Tensor

from softprompt.base.targets import TopTokens

__all__ = ["Group", "Pack", "RepeatedKeys", "TokenRow", "batches", "multiple_of", "pack", "split"]

WIDTHS = (48, 64, 80, 96, 112, 128, 144, 160, 192, 256, 384, 512)
"""Bin widths that are considered; a row longer than its bin widens all of them."""

COARSE = 16
"""What the positions of a pass in half precision are filled up to a multiple of."""


@dataclass(frozen=True)
class TokenRow:
    """One text: its token ids, of which those from ``scored_from`` on are to be predicted.

    Attributes:
        ids: the tokens.
        scored_from: the first that is to be predicted.
        teacher: what another reader expected at each of those, which is to be matched instead.
    """

    ids: tuple[int, ...]
    scored_from: int = 0
    teacher: TopTokens | None = field(default=None, compare=False)

    @property
    def targets(self) -> range:
        """Which of the tokens are to be predicted."""
        return range(self.scored_from, len(self.ids))

    @property
    def scored(self) -> int:
        """How many of the tokens are to be predicted."""
        return len(self.targets)

    def scored_behind(self, first: int) -> TokenRow:
        """The same row, no token before ``first`` of it to be predicted."""
        if self.scored_from >= first:
            return self
        left = None if self.teacher is None else self.teacher[first - self.scored_from :]
        return replace(self, scored_from=first, teacher=left)


@dataclass(frozen=True)
class Group:
    """Rows behind one front of ``before`` positions, read in the rows' own pass if it is ``inline``."""

    rows: Sequence[TokenRow]
    before: int = 0
    inline: bool = False

    @property
    def lead(self) -> int:
        """Slots the front itself takes."""
        return self.before if self.inline else 0

    @property
    def longest(self) -> int:
        """Positions of the longest row and the front before it."""
        return self.before + max((len(row.ids) for row in self.rows), default=0)


@dataclass(frozen=True)
class RepeatedKeys:
    """C keys a bin where each row has a copy of its front's keys right before it, and a separator behind it.

    So keys of one row lie as far apart as their tokens do in the row read alone, which is all that a position
    bias of distances (ALiBi) asks of them. A front read in the same pass has its own keys at the head of its
    group's first bin. Tensors are ``[N, C]``.

    Attributes:
        sources: flat slot (of N x W) whose key it is, or a position of the finished fronts, counted after
            those; of a key that nobody sees a slot of its own bin.
        owners: number of the row it is there for, ``FRONT`` for a front itself, -1 for nobody.
        positions: place of each key, counted from the start of its front.
        counting: 1; minus the keys of its row at a separator. Whoever counts keys by a running sum of these
            begins at 0 with every row.
    """

    sources: Tensor
    owners: Tensor
    positions: Tensor
    counting: Tensor

    FRONT: ClassVar[int] = -2

    @property
    def width(self) -> int:
        """C."""
        return self.sources.shape[1]

    def to(self, device: torch.device) -> RepeatedKeys:
        """The same keys on another device."""
        sources, owners, positions = (t.to(device) for t in (self.sources, self.owners, self.positions))
        return RepeatedKeys(sources, owners, positions, self.counting.to(device))


@dataclass(frozen=True)
class Pack:
    """S groups of rows in N bins of W slots; a bin holds rows of one group only.

    An inline front lies in the first slots of its group's first bin.

    Attributes:
        ids: ``[N, W]`` token ids, 0 in the slots of fronts and in empty ones.
        positions: ``[N, W]`` place of each token, counted from the start of its front.
        owners: ``[N, W]`` number of the row a slot belongs to, counted through all groups, else -1.
        of: ``[N]`` the group of each bin; the bins of a group follow each other.
        before: ``[N]`` P, how many positions stand before the rows of a bin.
        lengths: P of each group.
        firsts: the first bin of each group.
        starts: for each group and row, the flat index (into N x W) of its first token; rows are
            contiguous.
        keys: where fronts' keys are repeated before every row; None where they stand once before a bin.
    """

    ids: Tensor
    positions: Tensor
    owners: Tensor
    of: Tensor
    before: Tensor
    lengths: tuple[int, ...]
    firsts: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    keys: RepeatedKeys | None = None

    @property
    def width(self) -> int:
        """W."""
        return self.ids.shape[1]

    @property
    def longest(self) -> int:
        """The greatest P."""
        return max(self.lengths)

    @property
    def heads(self) -> tuple[int, ...]:
        """The flat index of each group's first slot."""
        return tuple(first * self.width for first in self.firsts)

    def to(self, device: torch.device) -> Pack:
        """The same pack on another device."""
        ids, positions, owners = (t.to(device) for t in (self.ids, self.positions, self.owners))
        of, before = self.of.to(device), self.before.to(device)
        keys = None if self.keys is None else self.keys.to(device)
        return Pack(ids, positions, owners, of, before, self.lengths, self.firsts, self.starts, keys)


def pack(
    groups: Sequence[Group],
    *,
    slot_cost: int = 1024,
    narrowest: int = 1,
    multiple: int = 1,
    repeats: bool = False,
    most_keys: int | None = None,
) -> Pack:
    """Fill each group's bins equally, longest row first, as many as make the pass cheapest.

    A slot costs its share of the linear layers and one unit for every key it is held against, seen
    or masked: N x W x (slot_cost + P + W) in all. Few wide bins waste keys, many narrow ones slots.

    Args:
        groups: what to lay out.
        slot_cost: linear layers of one slot, in keys; 0 gives every row its own bin.
        narrowest: the least W.
        multiple: W is rounded up to one of this.
        repeats: whether a front's keys are repeated before every row (``RepeatedKeys``): C keys for P + W.
        most_keys: the greatest C, where several rows share a bin.
    """
    fillings = _cheapest(groups, slot_cost, repeats, most_keys)
    width = max(narrowest, *(filling.width for filling in fillings))
    width += -width % multiple
    bins = [filling.bins for filling in fillings]
    firsts = tuple(accumulate(bins[:-1], initial=0))
    of = torch.arange(len(groups)).repeat_interleave(torch.tensor(bins))
    lengths = tuple(group.before for group in groups)
    before = torch.tensor(lengths)[of]
    ids = torch.zeros(sum(bins) * width, dtype=torch.long)
    positions = before.repeat_interleave(width)
    owners = torch.full_like(ids, -1)
    starts, owner = [], count()
    for group, filling, first in zip(groups, fillings, firsts, strict=True):
        head = first * width
        positions[head : head + group.lead] = torch.arange(group.lead)
        starts.append(tuple(head + number * width + offset for number, offset in filling.places))
        for row, start in zip(group.rows, starts[-1], strict=True):
            end = start + len(row.ids)
            ids[start:end] = torch.tensor(row.ids, dtype=torch.long)
            positions[start:end] += torch.arange(end - start)
            owners[start:end] = next(owner)
    ids, positions, owners = (t.view(-1, width) for t in (ids, positions, owners))
    packed = Pack(ids, positions, owners, of, before, lengths, firsts, tuple(starts))
    return replace(packed, keys=_repeated(groups, packed)) if repeats else packed


def _repeated(groups: Sequence[Group], packed: Pack) -> RepeatedKeys:
    """The keys of a pack, each row behind a copy of its front's."""
    bins, width = packed.ids.shape
    sources, owners, positions, counting = sides = [[list[int]() for _ in range(bins)] for _ in range(4)]

    def lay(number: int, owner: int, slots: list[int]) -> None:
        """Keys and a separator into a bin."""
        sources[number] += [*slots, number * width]
        owners[number] += [owner] * len(slots) + [-1]
        positions[number] += [*range(len(slots)), 0]
        counting[number] += [1] * len(slots) + [-len(slots)]

    owner, finished = count(), bins * width
    for group, head, starts in zip(groups, packed.heads, packed.starts, strict=True):
        first = head if group.inline else finished
        front = list(range(first, first + group.before))
        finished += 0 if group.inline else group.before
        if group.lead:
            lay(head // width, RepeatedKeys.FRONT, front)
        for row, start in zip(group.rows, starts, strict=True):
            lay(start // width, next(owner), [*front, *range(start, start + len(row.ids))])
    longest = max(1, *map(len, sources))
    for number in range(bins):
        empty = longest - len(sources[number])
        sources[number] += [number * width] * empty
        for side, value in ((owners, -1), (positions, 0), (counting, 1)):
            side[number] += [value] * empty
    return RepeatedKeys(*map(torch.tensor, sides))


@dataclass(frozen=True)
class _Filling:
    """For each row of a group its (bin, offset); the number of bins; the slots and keys the fullest needs."""

    places: list[tuple[int, int]]
    bins: int
    width: int
    keys: int


def _cheapest(
    groups: Sequence[Group], slot_cost: int, repeats: bool, most_keys: int | None
) -> list[_Filling]:
    """The filling of each group, all for bins of about one width."""
    alone = [_fill(group, max(1, len(group.rows)), repeats) for group in groups]
    if slot_cost == 0:
        return alone
    longest = max(group.before for group in groups)

    def keys(fillings: Sequence[_Filling]) -> int:
        return max(f.keys for f in fillings) if repeats else longest + max(f.width for f in fillings)

    def cost(fillings: Sequence[_Filling]) -> int:
        slots = max(f.width for f in fillings)
        return sum(f.bins for f in fillings) * slots * (slot_cost + keys(fillings))

    counts = {tuple(_bins(group, width) for group in groups) for width in WIDTHS}
    tried = [[_fill(g, n, repeats) for g, n in zip(groups, bins, strict=True)] for bins in sorted(counts)]
    if repeats:  # behind a long front copies may cost more than empty slots
        tried = [t for t in tried if most_keys is None or keys(t) <= most_keys]
        tried.append(alone)
    return min(tried, key=cost)


def _bins(group: Group, width: int) -> int:
    """How many bins of about this width a group takes."""
    tokens = group.lead + sum(len(row.ids) for row in group.rows)
    return max(1, min(len(group.rows), round(tokens / width)))


def _fill(group: Group, bins: int, repeats: bool) -> _Filling:
    """Longest row first, each into the bin that holds least."""
    lengths = [len(row.ids) for row in group.rows]
    loads = [(group.lead if number == 0 else 0, number) for number in range(bins)]
    heapq.heapify(loads)
    places = [(0, 0)] * len(lengths)
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        load, number = heapq.heappop(loads)
        places[row] = (number, load)
        heapq.heappush(loads, (load + lengths[row], number))
    keys = {number: load for load, number in loads}
    if repeats:
        for number, _ in places:
            keys[number] += group.before + 1
    return _Filling(places, bins, max(load for load, _ in loads), max(keys.values()))


def multiple_of(dtype: torch.dtype) -> int:
    """What the positions of a pass are filled up to a multiple of.

    For half precision oneDNN keeps code, up to half a megabyte, for every number of positions that has met a
    weight of some shape: memory that grows as long as batches are new. GPUs multiply by eights anyway.
    """
    return COARSE if dtype.itemsize < 4 else 1


def batches(rows: Sequence[TokenRow], tokens: int) -> Iterator[list[int]]:
    """Split row numbers, shortest rows first, into batches of at most ``tokens`` tokens each."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for places in split([len(rows[number].ids) for number in order], tokens):
        yield [order[place] for place in places]


def split(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Split 0, 1, 2, ... where the sizes so far would exceed ``most``; one too large stands alone."""
    part: list[int] = []
    load = 0
    for number, size in enumerate(sizes):
        if part and load + size > most:
            yield part
            part, load = [], 0
        part.append(number)
        load += size
    if part:
        yield part
