"""95% intervals: Wilson's for shares, and the bootstrap over rows for everything else.

Pure arithmetic; it knows no labels, no texts and no model. Notation: B rows, F columns, R resamplings.

A metric here is a function of column sums: row b adds ``columns[b]``, and the metric is computed from what
the rows add up to. Its bootstrap then sums other rows. The draws depend on the number of rows and the seed
alone, so two metrics, methods or training seeds on the same rows meet the same resamplings and may be
subtracted or averaged draw by draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "RESAMPLES",
    "Interval",
    "Sampled",
    "Value",
    "average",
    "bootstrap_ratio",
    "resampled",
    "sampled_mean",
    "sampled_ratio",
    "wilson",
]

RESAMPLES = 10_000
"""R, how often the rows are drawn anew: a two-sided p then goes down to 2 / 10,001."""

Interval = tuple[float, float]

_Z = 1.959963984540054  # of a normal distribution, 95% lies within so many deviations
_TAILS = (0.025, 0.975)
_AT_ONCE = 500  # draws whose sums are held together, so that scoring a few rows takes no more than they do
_CELLS = 4_000_000  # (draw, row) pairs of a block: 4 MB as it is kept, 32 MB while it is drawn or used


class Value(NamedTuple):
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Sampled:
    """A metric, and what it comes to in each resampling.

    Attributes:
        value: the metric on the rows as they are.
        draws: ``[R]`` the metric on rows drawn with replacement, fp64.
    """

    value: float
    draws: Tensor

    def interval(self) -> Value:
        """The metric with its percentile bootstrap interval (Efron 1979)."""
        low, high = numpy.quantile(self.draws.numpy(), _TAILS).tolist()
        return Value(self.value, low, high)


def resampled(
    columns: Tensor, compute: Callable[[Tensor], Tensor], *, seed: int = 0, resamples: int = RESAMPLES
) -> Sampled:
    """A function of column sums, on all rows and on ``resamples`` resamplings of them.

    Args:
        columns: ``[B, F]`` what each row adds.
        compute: sums ``[R, F]`` (fp64) -> the metric of each, ``[R]``.
        seed: the draws.
        resamples: how many.
    """
    assert len(columns), "a metric needs rows"
    columns = columns.double()
    value, added = compute(columns.sum(0, keepdim=True)), columns.numpy(force=True)
    step = max(1, _CELLS // len(columns))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    draws, at = torch.empty(resamples, dtype=torch.float64), 0
    for block, size in enumerate(sizes):
        counts = _counts(len(columns), size, block, seed)
        for part in numpy.array_split(counts, -(-size // _AT_ONCE)):
            draws[at : at + len(part)] = compute(torch.from_numpy(part @ added))
            at += len(part)
    return Sampled(float(value), draws)


@lru_cache(maxsize=16)  # every metric of every run on the same rows asks for the same blocks
def _counts(rows: int, draws: int, block: int, seed: int) -> NDArray[numpy.uint8]:
    """How often each row is drawn, [draws, B] in bytes: no row of many comes 256 times."""
    drawn = numpy.random.default_rng([seed, block]).integers(rows, size=(draws, rows), dtype=numpy.int32)
    places = drawn + numpy.arange(draws)[:, None] * rows
    counts = numpy.bincount(places.ravel(), minlength=draws * rows)
    return counts.astype(numpy.uint8).reshape(draws, rows)


def sampled_mean(scores: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Sampled:
    """The mean of per-row scores, with its resamplings."""
    column = torch.tensor(scores, dtype=torch.float64)[:, None]
    return resampled(column, lambda sums: sums[:, 0] / len(scores), seed=seed, resamples=resamples)


def sampled_ratio(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0) -> Sampled:
    """sum(numerators) / sum(denominators), such as nats per token, with its resamplings."""
    pairs = torch.tensor([list(numerators), list(denominators)], dtype=torch.float64).T  # [B, 2]
    return resampled(pairs, lambda sums: sums[:, 0] / sums[:, 1].clamp(min=1e-12), seed=seed)


def bootstrap_ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """The interval of ``sampled_ratio``; everything for no rows."""
    if not numerators:
        return -math.inf, math.inf
    return sampled_ratio(numerators, denominators, seed=seed).interval()[1:]


def average(scores: Sequence[float], *, seed: int = 0) -> Value:
    """The mean of per-row scores with its interval.

    Where every score is 0 or 1 the interval is Wilson's, as for accuracy elsewhere: the bootstrap of a
    share of 0 or 1 has no width, whatever the number of rows. Otherwise it is the percentile bootstrap's.
    """
    assert len(scores), "a metric needs rows"
    if all(score in (0, 1) for score in scores):
        hits = int(sum(scores))
        return Value(hits / len(scores), *wilson(hits, len(scores)))
    return sampled_mean(scores, seed=seed).interval()


def wilson(hits: int, total: int) -> Interval:
    """Wilson's score interval of ``hits`` out of ``total`` (Wilson 1927); (0, 1) for no rows."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = hits / total, _Z * _Z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = _Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return 0.0 if hits == 0 else centre - spread, 1.0 if hits == total else centre + spread
