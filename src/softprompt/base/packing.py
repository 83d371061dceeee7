"""Rows of tokens laid side by side in bins, so that hardly a position is padding.

Pure index arithmetic: it knows token ids and lengths, not models or devices.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pack", "TokenRow", "batches", "pack"]

WIDTHS = (48, 64, 80, 96, 112, 128, 144, 160, 192, 256, 384, 512)
"""Bin widths that are considered; a row longer than its bin widens all of them."""


@dataclass(frozen=True)
class TokenRow:
    """One text: its token ids, of which those from ``scored_from`` on are to be predicted."""

    ids: tuple[int, ...]
    scored_from: int = 0

    @property
    def scored(self) -> int:
        """How many of the tokens are to be predicted."""
        return max(0, len(self.ids) - self.scored_from)


@dataclass(frozen=True)
class Pack:
    """B rows in N bins of W slots, the first ``lead`` slots of bin 0 kept free for a front.

    Attributes:
        ids: ``[N, W]`` token ids, 0 in empty slots.
        positions: ``[N, W]`` place of each token in its row, from 0.
        owners: ``[N, W]`` number of the row a slot belongs to, -1 in empty slots.
        starts: for each row, the flat index (into N x W) of its first token; rows are contiguous.
        lead: slots at the head of bin 0 that belong to no row.
    """

    ids: Tensor
    positions: Tensor
    owners: Tensor
    starts: tuple[int, ...]
    lead: int = 0

    def to(self, device: torch.device) -> Pack:
        """The same pack on another device."""
        ids, positions, owners = (t.to(device) for t in (self.ids, self.positions, self.owners))
        return Pack(ids, positions, owners, self.starts, self.lead)


def pack(rows: Sequence[TokenRow], *, lead: int = 0, prefix: int = 0, slot_cost: int = 1024) -> Pack:
    """Fill equally loaded bins, longest row first, as many as make the pass cheapest.

    A slot costs its share of the linear layers and one unit for every key it is held against, seen
    or masked: N x W x (slot_cost + prefix + W) in all. Few wide bins waste keys, many narrow ones
    slots.

    Args:
        rows: what to lay out.
        lead: slots kept free at the head of bin 0.
        prefix: keys that stand before every bin.
        slot_cost: linear layers of one slot, in keys; 0 gives every row its own bin.
    """
    lengths = [len(row.ids) for row in rows]
    places, count, width = _cheapest(lengths, lead, prefix, slot_cost)
    ids = torch.zeros(count * width, dtype=torch.long)
    positions = torch.zeros(count * width, dtype=torch.long)
    owners = torch.full((count * width,), -1, dtype=torch.long)
    starts = tuple(number * width + offset for number, offset in places)
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        end = start + len(row.ids)
        ids[start:end] = torch.tensor(row.ids, dtype=torch.long)
        positions[start:end] = torch.arange(end - start)
        owners[start:end] = number
    shape = (count, width)
    return Pack(ids.view(shape), positions.view(shape), owners.view(shape), starts, lead)


_Bins = tuple[list[tuple[int, int]], int, int]
"""For each row its (bin, offset); the number of bins; their width."""


def _cheapest(lengths: Sequence[int], lead: int, prefix: int, slot_cost: int) -> _Bins:
    if slot_cost == 0:
        return [(i, 0) for i in range(len(lengths))], len(lengths), max(1, *lengths)
    total = lead + sum(lengths)
    counts = {max(1, min(len(lengths), round(total / width))) for width in WIDTHS}
    fillings = [_fill(lengths, lead, count) for count in sorted(counts)]
    return min(fillings, key=lambda f: f[1] * f[2] * (slot_cost + prefix + f[2]))


def _fill(lengths: Sequence[int], lead: int, count: int) -> _Bins:
    """Longest row first, each into the bin that holds least."""
    loads = [(lead if number == 0 else 0, number) for number in range(count)]
    heapq.heapify(loads)
    places = [(0, 0)] * len(lengths)
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        load, number = heapq.heappop(loads)
        places[row] = (number, load)
        heapq.heappush(loads, (load + lengths[row], number))
    return places, count, max(1, max(load for load, _ in loads))


def batches(rows: Sequence[TokenRow], tokens: int) -> Iterator[list[int]]:
    """Split row numbers, shortest rows first, into batches of at most ``tokens`` tokens each."""
    batch: list[int] = []
    load = 0
    for number in sorted(range(len(rows)), key=lambda i: len(rows[i].ids)):
        length = len(rows[number].ids)
        if batch and load + length > tokens:
            yield batch
            batch, load = [], 0
        batch.append(number)
        load += length
    if batch:
        yield batch
