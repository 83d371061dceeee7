"""A long prefix brought down to few positions, behind which rows attend as they do behind all of it.

In closed form, without a gradient: every head keeps the keys that rows look at most and gets the values with
which, by least squares, what it finds comes nearest to what it found in the whole prefix (attention matching,
Zweiger et al. 2026, arXiv 2602.16284). Layers are matched in one pass, each behind those that have been, so
that what one misses the next can mend. It knows a model, a prefix and rows; it does not know what the prefix
says. Notation: P positions, C of them kept, M tokens of all rows, N bins of W slots, K key/value heads with
G query heads each, H = K x G, D head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from softprompt.base.looking import Looking, most_attended, with_tokens
from softprompt.base.model import Base
from softprompt.base.packing import Pack, TokenRow, batches
from softprompt.base.turning import picked
from softprompt.errors import BaseModelError
from softprompt.prefix import Prefix

__all__ = ["Matching"]

_TOKENS = 2048
"""So many tokens of rows are matched at most: what every layer found for each of them is held."""

_WEIGHTS = 2048 * 512
"""Tokens times positions of a pass behind the whole prefix, of which one layer's weights are held."""

_ELSEWHERE = 0.05
"""How much a token counts that predicts none of a row's scored ones."""

_RIDGE = 1e-3
"""How firmly values are held to where they were, beside the mean square of the weights on them."""

_Witness = Callable[[int, Tensor, int, Tensor], Tensor]
"""Layer, weights [N, H, W, P + W], K, what was found [N, W, H, D] -> what is to be found instead."""

_witness: ContextVar[_Witness] = ContextVar("witness")


class Matching:
    """What rows look at in a prefix and find there; from that any number of its positions can be matched.

    Args:
        base: the model of the prefix.
        prefix: of P positions.
        rows: who looks; the tokens that predict their scored ones count most.

    Raises:
        DataError: there are no rows to look from.
        BaseModelError: a model whose attention cannot be looked into.
    """

    @torch.no_grad()
    def __init__(self, base: Base, prefix: Prefix, rows: Sequence[TokenRow]) -> None:
        rows = with_tokens(rows)
        reach = accumulate(len(row.ids) for row in rows)
        rows = [row for row, tokens in zip(rows, reach, strict=True) if tokens <= _TOKENS] or rows[:1]
        if not any(map(_plain, base.model.modules())):
            raise BaseModelError(f"{base.name} does not hand out its attention.")
        self._base, self._whole = base, prefix
        self._looking = Looking(base, _registered())
        self._looks = [torch.zeros(k.shape[:2], device=k.device) for k in prefix.keys]  # [K, P] each
        self._found: list[list[Tensor]] = [[] for _ in prefix.keys]  # [M, H, D] each, in parts, on the CPU
        self._rows: list[TokenRow] = []
        for numbers in batches(rows, max(64, _WEIGHTS // prefix.length)):
            part = [rows[number] for number in numbers]
            self._see(part)
            self._rows += part
        if not all(self._found):
            raise BaseModelError(f"{base.name} does not hand out its attention.")

    def _see(self, rows: Sequence[TokenRow]) -> None:
        """Add up where rows look in the whole prefix, and keep what they find."""
        packed = self._looking.pack(self._whole, rows)
        slots, emphasis = _slots(packed, rows), _emphasis(rows)

        def see(layer: int, weights: Tensor, heads: int, out: Tensor) -> Tensor:
            if (place := self._whole.places.get(layer)) is not None:
                if (heads, out.shape[3]) != (len(self._looks[place]), self._whole.values[place].shape[2]):
                    raise BaseModelError(f"{self._base.name} attends to other values than it keeps.")
                seen = weights[..., : self._whole.length].transpose(1, 2).flatten(0, 1)[slots]  # [M, H, P]
                looks = torch.einsum("m,mhp->hp", emphasis.to(seen.device), seen.float())
                self._looks[place] += looks.unflatten(0, (heads, -1)).sum(1)
                self._found[place].append(out.flatten(0, 1)[slots].cpu())
            return out

        self._read(packed, self._whole, see)

    @torch.no_grad()
    def to(self, count: int) -> Prefix:
        """The prefix brought down to ``count`` positions, its first one among them.

        Raises:
            BaseModelError: the model's keys cannot be moved.
        """
        start = picked(self._base, self._whole, [most_attended(looks, count) for looks in self._looks])
        packed = self._looking.pack(start, self._rows)
        slots, emphasis = _slots(packed, self._rows), _emphasis(self._rows)
        values = list(start.values)

        def match(layer: int, weights: Tensor, heads: int, out: Tensor) -> Tensor:
            if (place := start.places.get(layer)) is None:
                return out
            seen = weights[..., :count]  # [N, H, W, C]
            missed = torch.cat(self._found[place]).to(out.device) - out.flatten(0, 1)[slots]  # [M, H, D]
            on_kept = seen.transpose(1, 2).flatten(0, 1)[slots]  # [M, H, C]
            more = _least_squares(_by_head(on_kept, heads), _by_head(missed, heads), emphasis)  # [K, C, D]
            more = more.to(out.dtype)
            values[place] = start.values[place] + more
            return out + (seen @ more.repeat_interleave(out.shape[2] // heads, 0)).transpose(1, 2)

        self._read(packed, start, match)
        return start.over(start.keys, values)

    def _read(self, packed: Pack, prefix: Prefix, witness: _Witness) -> None:
        token = _witness.set(witness)
        try:
            self._looking.read(packed, prefix)
        finally:
            _witness.reset(token)


@cache
def _registered() -> str:
    """The name under which transformers knows an attention that shows a witness what each layer does."""
    AttentionInterface.register("softprompt-witnessed", _attend)
    AttentionMaskInterface.register("softprompt-witnessed", eager_mask)
    return "softprompt-witnessed"


def _plain(layer: nn.Module) -> Callable[..., Any] | None:
    """The attention that the code of a layer falls back on, by the name all of transformers gives it."""
    return getattr(sys.modules[type(layer).__module__], "eager_attention_forward", None)


def _attend(layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **how: Any) -> Any:
    """What the layer's own plain attention finds, or what the witness has it find instead."""
    plain = _plain(layer)
    assert plain is not None
    out, weights = plain(layer, q, k, v, mask, **how)
    return _witness.get()(layer.layer_idx, weights, k.shape[1], out), weights  # type: ignore[arg-type]


def _slots(packed: Pack, rows: Sequence[TokenRow]) -> Tensor:
    """[M] where the tokens of rows, one after the other, stand among the N x W slots of their pass."""
    each = zip(packed.starts[0], rows, strict=True)
    return torch.cat([torch.arange(start, start + len(row.ids)) for start, row in each])


def _emphasis(rows: Sequence[TokenRow]) -> Tensor:
    """[M] how much each token of rows counts: fully where it predicts a scored one or ends its row."""
    counts = [torch.full((len(row.ids),), _ELSEWHERE) for row in rows]
    for row, count in zip(rows, counts, strict=True):
        count[max(0, min(row.scored_from, len(row.ids)) - 1) :] = 1
    return torch.cat(counts)


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    """[M, H, X] -> [K, G * M, X]: what all query heads of a key/value head say of it."""
    grouped: Tensor = tokens.unflatten(1, (heads, -1))
    return grouped.permute(1, 2, 0, 3).flatten(1, 2)


def _least_squares(weights: Tensor, missed: Tensor, emphasis: Tensor) -> Tensor:
    """What to add to values, [K, C, D], for ``weights`` of them to make up for what is ``missed``.

    Weights are [K, G * M, C], what is missed [K, G * M, D], and emphasis [M] says how much each token counts.
    In fp64, and with a ridge: no value moves without need.
    """
    a, b = weights.double(), missed.double()
    counting = a * emphasis.to(a).repeat(a.shape[1] // len(emphasis))[:, None]
    square = counting.mT @ a  # [K, C, C]
    ridge = _RIDGE * square.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    eye = torch.eye(a.shape[2], dtype=a.dtype, device=a.device)
    found: Tensor = torch.linalg.solve(square + ridge[:, None, None] * eye, counting.mT @ b)
    return found
