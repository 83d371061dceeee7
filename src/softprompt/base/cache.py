"""How keys and values reach the layers of a transformers model: through its own cache contract.

Each class answers ``update(k, v, layer)`` with the keys and values a layer should attend to.
They are explicit values made for one forward pass; nothing is stored on the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from softprompt.prefix import Prefix

__all__ = ["BehindPrefix", "InlineFront", "Recorder", "Slots"]


class _Seen(Cache):  # type: ignore[misc]
    """A cache that has seen ``seen`` positions; the rest is up to ``update``."""

    def __init__(self, seen: int) -> None:
        super().__init__(layers=[])
        self._seen = seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._seen

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._seen + query_length, 0


class Recorder(_Seen):
    """Keeps what a pass over a front computed: the raw material of a ``Prefix``."""

    def __init__(self) -> None:
        super().__init__(0)
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """k, v: [1, K, P, D], handed back as they are."""
        self.pairs[layer_idx] = (k, v)
        return k, v


class BehindPrefix(_Seen):
    """Sets one finished prefix before every bin; records the text's own pairs if asked to."""

    def __init__(self, prefix: Prefix, *, record: bool = False) -> None:
        super().__init__(prefix.length)
        self._prefix = prefix
        self._record = record
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """k, v: [N, K, W, D] -> [N, K, P + W, D]."""
        if self._record:
            self.pairs[layer_idx] = (k, v)
        return _before(self._prefix.keys[layer_idx], k), _before(self._prefix.values[layer_idx], v)


class InlineFront(_Seen):
    """The front is being read in this very pass, at the head of bin 0: set it before every bin."""

    def __init__(self, length: int) -> None:
        super().__init__(length)

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """k, v: [N, K, W, D] -> [N, K, P + W, D], where [0, :, :P] is the front itself."""
        return _before(k[0, :, : self._seen], k), _before(v[0, :, : self._seen], v)


def _before(front: Tensor, text: Tensor) -> Tensor:
    """Front [K, P, D], shared by all bins of text [N, K, W, D] -> [N, K, P + W, D]."""
    return torch.cat([front.to(text.dtype).expand(text.shape[0], -1, -1, -1), text], dim=2)


class Slots(_Seen):
    """Room for B rows of at most C positions each, written in place, one position a step.

    Row b's prefix lies in slots 0..P_b-1 and its text behind it, so a slot's index is its
    position, whatever the lengths of the others.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        """keys, values: one tensor a layer, [B, K, C, D]."""
        super().__init__(0)
        self._keys, self._values = keys, values
        self._rows = torch.arange(keys[0].shape[0], device=keys[0].device)
        self._at = self._rows

    def step(self, at: Tensor, visible: int) -> None:
        """The next pass writes row b's token to slot ``at[b]``; the first ``visible`` slots are read."""
        self._at, self._seen = at, visible - 1

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """k, v: [B, K, 1, D] -> views [B, K, visible, D]."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._rows, :, self._at] = k[:, :, 0]
        values[self._rows, :, self._at] = v[:, :, 0]
        end = self._seen + 1
        return keys[:, :, :end], values[:, :, :end]
