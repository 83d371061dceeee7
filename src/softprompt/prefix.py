"""A prefix: what a model remembers of the P positions that stand in front of every text.

For a layer that attends that is keys and values, for one that convolves or recurs its state. It knows
tensors and their shapes; it does not know who made it (an instruction, a soft prompt, a trained KV prefix)
nor the model that will read it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Front", "Prefix", "StateKey"]

StateKey = tuple[str, int, int]
"""Which state: ``"conv"`` or ``"recurrent"``, the layer, and which of the layer's."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """What a frozen causal model remembers of P positions, shared by every row behind them.

    Attributes:
        keys: one tensor for each layer that attends, ``[K, P, D]``, as they stand in the cache (already
            rotated).
        values: likewise, ``[K, P, D]``.
        hidden: ``[E]``, the last position's output: what the prefix alone makes the model
            expect next. ``None`` for a trained KV prefix, which has no such output.
        base: fingerprint of the model the keys and values belong to.
        layers: which layers those are; none named, the first ones.
        states: what the other layers have come to after P positions; zeros after none.
        read: P, where no layer attends.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    hidden: Tensor | None
    base: str
    layers: tuple[int, ...] = ()
    states: Mapping[StateKey, Tensor] = field(default_factory=dict)
    read: int = 0

    def __repr__(self) -> str:
        kept = f"{len(self.keys)} layers" if self.keys else f"{len(self.states)} states"
        return f"<Prefix of {self.length} positions in {kept}>"

    @property
    def length(self) -> int:
        """P, the number of positions."""
        return self.keys[0].shape[1] if self.keys else self.read

    @cached_property
    def places(self) -> dict[int, int]:
        """Where in ``keys`` and ``values`` each layer that attends is found."""
        return {layer: place for place, layer in enumerate(self.layers or range(len(self.keys)))}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All keys, values and states."""
        return (*self.keys, *self.values, *self.states.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all that is remembered."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shapes, dtypes and bytes: equal prefixes have equal digests."""
        sha = hashlib.sha256(self.base.encode())
        for t in self.tensors:
            sha.update(f"{tuple(t.shape)}{t.dtype}".encode())
            sha.update(t.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def detached(self) -> Prefix:
        """The same values without their gradient history."""
        hidden = None if self.hidden is None else self.hidden.detach()
        keys, values = (tuple(t.detach() for t in side) for side in (self.keys, self.values))
        states = {key: t.detach() for key, t in self.states.items()}
        return replace(self, keys=keys, values=values, hidden=hidden, states=states)

    def over(self, keys: Iterable[Tensor], values: Iterable[Tensor]) -> Prefix:
        """Other keys and values in the same layers, the states as they are; it expects nothing by itself."""
        return replace(self, keys=tuple(keys), values=tuple(values), hidden=None)


Front = Prefix | Tensor
"""What stands in front of a batch: a finished prefix, or embeddings ``[P, E]`` yet to be read."""
