"""The attention that rows pay to each position of a prompt, layer by layer.

It knows fronts, rows and transformers' own eager attention; it does not know scores. Notation: P positions, B
rows, N bins of W slots, L layers, H heads.

Attention is where a layer looks, not what it takes from there: a position may be looked at and change nothing
(Jain and Wallace 2019, "Attention is not Explanation"). Ablation tells what is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.base.looking import Looking
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow, batches
from softprompt.data.rows import Encoded
from softprompt.errors import DataError
from softprompt.interpretation.finding import Finding
from softprompt.prefix import Front

__all__ = ["Attention", "attention"]

_TOKENS = 512
"""Text tokens read in one pass: every layer's weights are held, L x N x H x W x (P + W) of them."""

Shares = tuple[tuple[float, ...], ...]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Attention(Finding):
    """Shares of attention, mean over heads and rows.

    Attributes:
        last: ``[L][P]`` what the last token of a row's input pays to each position.
        mean: ``[L][P]`` what its tokens pay on average.
        even_last: what each position would get of the last token if it looked at everything alike.
        even_mean: the same of its tokens on average.
        rows: how many rows had an input to look from.
    """

    last: Shares
    mean: Shares
    even_last: float
    even_mean: float
    rows: int

    @property
    def layers(self) -> int:
        """L."""
        return len(self.last)

    def positions(self, of: Shares | None = None) -> tuple[float, ...]:
        """Mean over layers of what each position gets, of the last token by default."""
        return tuple(sum(column) / len(column) for column in zip(*(of or self.last), strict=True))


def attention(base: Base, front: Front, encoded: Encoded, *, progress: Progress | None = None) -> Attention:
    """Where the inputs of rows look in a front.

    Read with transformers' eager attention on a model of its own over the base's weights; the base stays
    as it is.

    Args:
        base: the model the rows are read with.
        front: embeddings ``[P, E]`` or a prefix.
        encoded: the rows; only their inputs are read, without any answer.
        progress: told (rows done, all).

    Raises:
        DataError: no row has an input.
        BaseModelError: a model whose layers do not hand out their attention.
    """
    rows = [TokenRow(example.input_ids) for example in encoded.examples if example.input_ids]
    if not rows:
        raise DataError("No row has an input, so there is nothing to look from; leave attention out.")
    with torch.no_grad():
        prefix = base.prefill(front)
        looking = Looking(base)
        last, mean, even = Tensor(), Tensor(), torch.zeros(2, dtype=torch.float64)
        done = 0
        for numbers in batches(rows, _TOKENS):
            chosen = [rows[number] for number in numbers]
            found = looking.weights(prefix, chosen)  # per row [L, T, P]
            ends = torch.stack([weights[:, -1] for weights in found]).sum(0)  # [L, P], as below
            means = torch.stack([weights.mean(1) for weights in found]).sum(0)
            last, mean = (ends, means) if not done else (last + ends, mean + means)
            for row in chosen:  # a position's part if every token looked at all that it sees alike
                each = [1 / (prefix.length + t + 1) for t in range(len(row.ids))]
                even += torch.tensor((each[-1], sum(each) / len(each)), dtype=torch.float64)
            done += len(chosen)
            if progress is not None:
                progress(done, len(rows))
    return Attention(
        last=_shares(last / done),
        mean=_shares(mean / done),
        even_last=float(even[0] / done),
        even_mean=float(even[1] / done),
        rows=done,
    )


def _shares(weights: Tensor) -> Shares:
    return tuple(tuple(row) for row in weights.tolist())
