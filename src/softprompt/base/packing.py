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

BIN_TOKENS = 144
"""Aimed-at bin width. Wider bins lose time to the dense mask, narrower ones to padding (docs/log.md)."""


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


def pack(rows: Sequence[TokenRow], *, lead: int = 0, bin_tokens: int = BIN_TOKENS) -> Pack:
    """Fill equally loaded bins, longest row first; ``bin_tokens=0`` gives every row its own bin."""
    lengths = [len(row.ids) for row in rows]
    places, count, width = _assign(lengths, lead, bin_tokens)
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


def _assign(lengths: Sequence[int], lead: int, bin_tokens: int) -> tuple[list[tuple[int, int]], int, int]:
    """For each row its (bin, offset); then the number of bins and their width."""
    if bin_tokens == 0:
        return [(i, 0) for i in range(len(lengths))], len(lengths), max(1, *lengths)
    total = lead + sum(lengths)
    longest = max(lead, 1, *lengths)
    count = max(1, min(len(lengths), round(total / max(bin_tokens, longest))))
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
