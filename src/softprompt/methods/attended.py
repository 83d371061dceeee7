"""Which positions of a long prefix are worth keeping: how much rows look at each, layer by layer.

It knows attention and positions; it does not know what is made of them. SnapKV's way (Li et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.base.looking import Looking, with_tokens
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow, batches
from softprompt.prefix import Prefix

__all__ = ["attention_to"]

ROWS = 16
"""So many rows say where to look."""

_LAST = 4
"""Where a row's own end is all there is to predict from, so many of its last tokens look."""

_WEIGHTS = 256 * 512
"""Tokens times positions of a pass, for every layer's weights are held."""


def attention_to(base: Base, prefix: Prefix, rows: Sequence[TokenRow]) -> Tensor:
    """How much rows look at each position of a prefix, ``[L, P]``, fp64 on the CPU.

    They look from the tokens that predict a row's scored ones, and from its last few.

    Raises:
        DataError: there are no rows to look from.
        BaseModelError: a model whose layers do not hand out their attention.
    """
    chosen = with_tokens(rows)[:ROWS]
    looking, total = Looking(base), torch.zeros(len(prefix.keys), prefix.length, dtype=torch.float64)
    for numbers in batches(chosen, max(64, _WEIGHTS // prefix.length)):
        part = [chosen[number] for number in numbers]
        for row, weights in zip(part, looking.weights(prefix, part), strict=True):
            first = min(max(0, row.scored_from - 1), max(0, len(row.ids) - _LAST))
            total += weights[:, first:].mean(1)
    return total
