"""Reading in which a token's bits do not depend on its company: what the head does, and whether it holds.

A pass of a pool that is ``batch_invariant`` has one shape, and each token looks by itself (``kv_pool``); the
head takes its hidden states in products of one shape, too. That this is enough is a property of the model
and of the libraries below it, so it is tried. After He et al. 2025,
"Defeating nondeterminism in LLM inference".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.base.head import Head
from softprompt.base.kv_pool import BLOCK, Chunk, KVPool
from softprompt.base.model import Base

__all__ = ["holds", "logits_in_blocks"]

_TEXT, _WRITTEN = 70, 6
"""Tokens of a text longer than the smallest slot and than two passes, and tokens that follow one by one."""

_COMPANY = 9
"""Rows beside it."""


def logits_in_blocks(head: Head, hidden: Tensor) -> Tensor:
    """Hidden [M, E] -> logits [M, V], in products of one shape."""
    blocks = functional.pad(hidden, (0, 0, 0, -len(hidden) % BLOCK)).split(BLOCK)
    return torch.cat([head.logits(block) for block in blocks])[: len(hidden)]


@torch.no_grad()
def holds(base: Base) -> bool:
    """Whether a text read alone and one read in pieces among others come out the same, bit for bit."""
    if not base.layout.flat:
        return False
    words = base.embedding.weight.shape[0]
    long = _TEXT + _WRITTEN
    rows = [[1 + (n * 7919) % (words - 1) for n in range(r, r + long)] for r in range(_COMPANY)]
    return torch.equal(_read(base, rows[-1:], [_TEXT]), _read(base, rows, [5, 40, _TEXT - 45]))


def _read(base: Base, rows: list[list[int]], pieces: list[int]) -> Tensor:
    """Logits [T, V] after every token of the last row, read in so large pieces and then one by one."""
    pool, prefix = KVPool(base, batch_invariant=True), base.prefill(base.embed(()))
    slots = [slot for _ in rows if (slot := pool.open(prefix, 1)) is not None]
    states = list[Tensor]()
    for count in [*pieces, *[1] * _WRITTEN]:
        chunks = list[Chunk]()
        for row, slot in zip(rows, slots, strict=True):
            stop = slot.length + (count if slot is slots[-1] else 1)
            pool.reserve(slot, stop)
            chunks.append(Chunk(slot, row[slot.length : stop]))
        states.append(pool.read(chunks)[-1])
    return logits_in_blocks(base.head, torch.cat(states))
