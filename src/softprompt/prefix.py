"""A prefix: the keys and values of the P positions that stand in front of every text.

It knows tensors and their shapes; it does not know who made it (an instruction,
a soft prompt, a trained KV prefix) nor the model that will read it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Front", "Prefix"]


@dataclass(frozen=True, eq=False)
class Prefix:
    """What a frozen causal model remembers of P positions, shared by every row behind them.

    Attributes:
        keys: one tensor a layer, ``[K, P, D]``, as they stand in the cache (already rotated).
        values: one tensor a layer, ``[K, P, D]``.
        hidden: ``[E]``, the last position's output: what the prefix alone makes the model
            expect next. ``None`` for a trained KV prefix, which has no such output.
        base: fingerprint of the model the keys and values belong to.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    hidden: Tensor | None
    base: str

    def __repr__(self) -> str:
        return f"<Prefix of {self.length} positions in {len(self.keys)} layers>"

    @property
    def length(self) -> int:
        """P, the number of positions."""
        return self.keys[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shapes, dtypes and bytes: equal prefixes have equal digests."""
        sha = hashlib.sha256(self.base.encode())
        for t in (*self.keys, *self.values):
            sha.update(f"{tuple(t.shape)}{t.dtype}".encode())
            sha.update(t.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def detached(self) -> Prefix:
        """The same values without their gradient history."""
        hidden = None if self.hidden is None else self.hidden.detach()
        keys, values = (tuple(t.detach() for t in side) for side in (self.keys, self.values))
        return Prefix(keys, values, hidden, self.base)


Front = Prefix | Tensor
"""What stands in front of a batch: a finished prefix, or embeddings ``[P, E]`` yet to be read."""
