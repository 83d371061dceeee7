"""How what came before reaches the layers of a transformers model: through its own cache contract.

Each class answers ``update(k, v, layer)`` with the keys and values a layer should attend to, and hands a
layer that convolves or recurs the state it goes on from. They are explicit values made for one forward pass;
nothing is stored on the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache

from softprompt.base.attention import PoolSpan
from softprompt.base.packing import Pack
from softprompt.errors import BaseModelError
from softprompt.prefix import Prefix, StateKey

__all__ = [
    "BehindFronts",
    "DecodeCache",
    "PoolCache",
    "Recorder",
    "behind",
    "cache_argument",
]


def cache_argument(module: Any, cache: Any) -> dict[str, Any]:
    """A cache under the name by which ``module`` takes one, which is not the same in all of transformers."""
    return {_cache_name(type(module).forward): cache}


@lru_cache
def _cache_name(forward: Callable[..., Any]) -> str:
    known = inspect.signature(forward).parameters
    return next((name for name in ("cache", "cache_params") if name in known), "past_key_values")


def _refuse_index(*_: Any, **__: Any) -> NoReturn:
    raise BaseModelError("it has layers that keep an index, or something else, in place of keys and values")


class _NoLayers(list[Any]):
    """Whoever asks for one layer's cache means to keep something else there."""

    __getitem__ = _refuse_index


class _Seen(Cache):  # type: ignore[misc]
    """A cache that has seen ``seen`` positions; keys and values are up to ``update``.

    Args:
        seen: positions.
        states: what layers that convolve or recur go on from, each ``[N, ...]``; nothing at a beginning. They
            may be written to.
    """

    update_indexer = _refuse_index

    def __init__(self, seen: int, states: Mapping[StateKey, Tensor] | None = None) -> None:
        super().__init__(layers=_NoLayers())
        self._seen = seen
        self.states: dict[StateKey, Tensor] = dict(states or {})

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._seen

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._seen + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return bool(self.states)

    def is_recording_past(self, layer_idx: int) -> bool:
        """Yes: one token alone is convolved as many are, and never in place."""
        return True

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.states.get(("conv", layer_idx, state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """A state, which some models write to when they read one token."""
        return self.states.get(("recurrent", layer_idx, state_idx))

    def update_conv_state(
        self, x: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        """x: [N, C, W] -> the same with the inputs before it, of which the last are kept."""
        before = self.get_conv_state(layer_idx, state_idx)
        if before is None:
            kept = conv_kernel_size or x.shape[-1]
            x = functional.pad(x, (max(0, kept - x.shape[-1]), 0))
        else:
            kept = before.shape[-1]
            x = torch.cat([before.to(x.dtype), x], dim=-1)
        self._keep(("conv", layer_idx, state_idx), x[..., -kept:])
        return x

    def update_recurrent_state(self, new: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        self._keep(("recurrent", layer_idx, state_idx), new)
        return new

    def _keep(self, key: StateKey, new: Tensor) -> None:
        self.states[key] = new


class Recorder(_Seen):
    """Keeps what a pass over a front computed: the raw material of a ``Prefix``."""

    def __init__(self) -> None:
        super().__init__(0)
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return False

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """k, v: [1, K, P, D], handed back as they are."""
        self.pairs[layer_idx] = (k, v)
        return k, v


def behind(
    pack: Pack, prefixes: Sequence[Prefix | None], *, record: bool = False
) -> BehindFronts | BehindOwnFronts:
    """The cache in which the rows of a pack find their fronts; see ``BehindFronts``."""
    if pack.keys is None:
        return BehindFronts(pack, prefixes, record=record)
    return BehindOwnFronts(pack, prefixes, record=record)


class BehindFronts(_Seen):
    """Sets before every bin of a pack the front its rows stand behind.

    A front is a finished prefix or, where there is ``None``, being read in this very pass, at the
    head of its group's first bin. What lies behind a front shorter than the longest is masked and
    never of another group, so not even a NaN passes from one group to the next.
    """

    def __init__(self, pack: Pack, prefixes: Sequence[Prefix | None], *, record: bool = False) -> None:
        """prefixes: one a group of the pack; record: keep the rows' own pairs and states, too."""
        # A state has no place in a bin that others share, so where there are any a bin is a row of one front.
        states = prefixes[0].states if prefixes[0] is not None else {}
        assert len(prefixes) == 1 or not states
        bins = len(pack.ids)
        super().__init__(pack.longest, {key: t.expand(bins, *t.shape).clone() for key, t in states.items()})
        self._finished = [prefix for prefix in prefixes if prefix is not None]
        self._inline = len(self._finished) < len(prefixes)
        self._record = record
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        behind_bins = count(len(pack.ids) if self._inline else 0)
        sources = [
            first if prefix is None else next(behind_bins)
            for first, prefix in zip(pack.firsts, prefixes, strict=True)
        ]
        # [N] where each bin finds its front: a bin of this pass, or a finished prefix counted after those.
        self._sources = torch.tensor(sources, device=pack.ids.device)[pack.of]

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """k, v: [N, K, W, D] -> [N, K, P + W, D]."""
        if self._record:
            self.pairs[layer_idx] = (k, v)
        keys = self._behind([prefix.keys[prefix.places[layer_idx]] for prefix in self._finished], k)
        return keys, self._behind([prefix.values[prefix.places[layer_idx]] for prefix in self._finished], v)

    def _keep(self, key: StateKey, new: Tensor) -> None:
        if self._record:
            super()._keep(key, new)

    def _behind(self, finished: Sequence[Tensor], text: Tensor) -> Tensor:
        """Finished fronts [K, P, D] and text [N, K, W, D] -> [N, K, P + W, D]."""
        inline = [text[:, :, : self._seen]] if self._inline else []
        found = [_padded(t, self._seen) for t in (*inline, *(f[None].to(text) for f in finished))]
        fronts = found[0] if len(found) == 1 else torch.cat(found)
        # Selected, not indexed: what goes back to a front that many bins share is then added up in one order.
        return torch.cat([fronts.index_select(0, self._sources.to(text.device)), text], dim=2)


class BehindOwnFronts(_Seen):
    """Gives every row of a pack a copy of its front's keys before its own; see ``packing.RepeatedKeys``."""

    def __init__(self, pack: Pack, prefixes: Sequence[Prefix | None], *, record: bool = False) -> None:
        """As of ``BehindFronts``."""
        assert pack.keys is not None
        super().__init__(pack.keys.width - pack.width)
        self._sources = pack.keys.sources  # [N, C]
        self._finished = [prefix for prefix in prefixes if prefix is not None]
        self._record = record
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """k, v: [N, K, W, D] -> [N, K, C, D]."""
        if self._record:
            self.pairs[layer_idx] = (k, v)
        keys = self._copied([prefix.keys[prefix.places[layer_idx]] for prefix in self._finished], k)
        return keys, self._copied([prefix.values[prefix.places[layer_idx]] for prefix in self._finished], v)

    def _copied(self, finished: Sequence[Tensor], text: Tensor) -> Tensor:
        """Finished fronts [K, P, D] and text [N, K, W, D] -> [N, K, C, D]."""
        every = [text.transpose(1, 2).flatten(0, 1), *(t.transpose(0, 1).to(text) for t in finished)]
        slots = every[0] if len(every) == 1 else torch.cat(every)  # [N x W + P + ..., K, D]
        found: Tensor = slots.index_select(0, self._sources.flatten().to(text.device))
        return found.view(*self._sources.shape, *found.shape[1:]).transpose(1, 2)


def _padded(fronts: Tensor, length: int) -> Tensor:
    """Fronts [S, K, P, D] with zeros up to ``length`` positions."""
    missing = length - fronts.shape[2]
    return functional.pad(fronts, (0, 0, 0, missing)) if missing else fronts


class DecodeCache(_Seen):
    """Room for B rows of at most C positions each, written in place, one position a step.

    Row b's prefix lies in slots 0..P_b-1 and its text behind it, so a slot's index is its
    position, whatever the lengths of the others.

    Args:
        keys, values: by layer, each ``[B, K, C, D]``.
        states: what the other layers go on from, each ``[B, ...]``.
        at: ``[B]``; row b's token is written to slot ``at[b]``.
        visible: how many slots are read.
    """

    def __init__(
        self,
        keys: Mapping[int, Tensor],
        values: Mapping[int, Tensor],
        states: Mapping[StateKey, Tensor],
        at: Tensor,
        visible: int,
    ) -> None:
        super().__init__(visible - 1, states)
        self._keys, self._values, self._at = keys, values, at
        self._rows = torch.arange(len(at), device=at.device)

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """k, v: [B, K, 1, D] -> views [B, K, visible, D]."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._rows, :, self._at] = k[:, :, 0]
        values[self._rows, :, self._at] = v[:, :, 0]
        end = self._seen + 1
        return keys[:, :, :end], values[:, :, :end]

    def _keep(self, key: StateKey, new: Tensor) -> None:
        self.states[key].copy_(new)


class PoolCache(_Seen):
    """Writes what a pass over tokens of many rows computed into the rows' own slots of a KV pool."""

    def __init__(
        self,
        spans: Sequence[PoolSpan],
        seen: int = 0,
        states: Mapping[StateKey, Tensor] | None = None,
        *,
        hand_out: bool = False,
    ) -> None:
        """spans: whose tokens are read; hand_out: give the layer all that its one slot holds."""
        super().__init__(seen, states)
        self._spans = spans
        self._hand_out = hand_out
        # [N] the slot of each token, one index for each bucket that is written to.
        self._rows = [torch.arange(span.first, span.last, device=span.at.device) for span in spans]

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """k, v: [1, K, N, D], handed back as they are, or with all [1, K, C, D] the slot holds."""
        for span, rows in zip(self._spans, self._rows, strict=True):
            for slots, new in ((span.keys[layer_idx], k), (span.values[layer_idx], v)):
                at = rows.to(k.device), slice(None), span.at.to(k.device)  # layers may lie on several devices
                slots[at] = new[0, :, span.start : span.stop].transpose(0, 1)
        if not self._hand_out:
            return k, v
        (span,) = self._spans
        sides = span.keys[layer_idx], span.values[layer_idx]
        keys, values = (side[span.first : span.last, :, : span.visible] for side in sides)
        return keys, values

    def _keep(self, key: StateKey, new: Tensor) -> None:
        self.states[key].copy_(new)
