"""Two methods on the same rows, and one method over several seeds: differences, p values and intervals.

It knows per-row scores and resampled metrics; it does not know what was compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softprompt.evaluation.metrics import Sampled, sampled_mean
from softprompt.packages import require

__all__ = [
    "Difference",
    "OverSeeds",
    "mcnemar",
    "over_seeds",
    "paired_bootstrap",
    "paired_difference",
    "seeds_interval",
]

_RESAMPLES = 10_000  # so that p can be as low as 0.0002
_NOTHING = 1e-12  # a difference of sums that rounding alone may leave


class Difference(NamedTuple):
    """The first minus the second, with its 95% interval and two-sided p."""

    difference: float
    low: float
    high: float
    p: float


class OverSeeds(NamedTuple):
    """A metric over training seeds.

    ``spread`` is the standard deviation over seeds (n - 1; 0 for one seed); ``low`` and ``high`` are the 95%
    bootstrap interval over test rows of the mean over these seeds. So the first tells how much a further
    seed may differ, the second how much other test rows may.
    """

    mean: float
    spread: float
    low: float
    high: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p that two methods are right equally often (McNemar 1947).

    Only rows that one gets right and the other wrong tell: under the hypothesis either is as likely to be
    the one that is right. Without such rows p is 1.

    Args:
        first: whether the first method is right, row by row.
        second: the same of the second, on the same rows.

    Raises:
        ResourceError: scipy is not installed.
    """
    pairs = list(zip(first, second, strict=True))
    won, lost = (sum(bool(a) == side and bool(b) != side for a, b in pairs) for side in (True, False))
    if not won + lost:
        return 1.0
    require("McNemar's test")
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost).pvalue)


def paired_bootstrap(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Difference:
    """The difference of two means over the same rows, by 10,000 resamplings of the rows.

    Args:
        first: a score for each row, higher or lower is better; its mean over seeds where there are several.
        second: the same of the other method.
        seed: of the draws.
    """
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    found = sampled_mean(gaps, seed=seed, resamples=_RESAMPLES)
    return _difference(found.value, found.draws)


def paired_difference(first: Sequence[Sampled], second: Sequence[Sampled]) -> Difference:
    """The difference of any metric, such as BLEU (Koehn 2004), mean over seeds.

    Args:
        first: the metric of each seed of one method, all resampled with one seed of draws.
        second: that of the other method, on the same rows with the same seed of draws.
    """
    (mean, draws), (other, others) = _mean(first), _mean(second)
    return _difference(mean - other, draws - others)


def _difference(value: float, draws: Tensor) -> Difference:
    """P is twice the smaller share of draws at 0 or to one side of it; one draw more keeps it above 0."""
    low, high = Sampled(value, draws).interval()[1:]
    below, above = (int((sign * draws < _NOTHING).sum()) for sign in (1, -1))
    return Difference(value, low, high, min(1.0, 2 * (1 + min(below, above)) / (1 + len(draws))))


def over_seeds(runs: Sequence[Sampled]) -> OverSeeds:
    """Any metric over the seeds of one method, all resampled with one seed of draws on the same rows."""
    mean, draws = _mean(runs)
    values = [run.value for run in runs]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return OverSeeds(mean, spread, *Sampled(mean, draws).interval()[1:])


def seeds_interval(scores: Sequence[Sequence[float]], *, seed: int = 0) -> OverSeeds:
    """A mean over rows, over seeds.

    Args:
        scores: for each training seed the score of every test row.
        seed: of the draws.
    """
    return over_seeds([sampled_mean(rows, seed=seed) for rows in scores])


def _mean(runs: Sequence[Sampled]) -> tuple[float, Tensor]:
    return statistics.fmean(run.value for run in runs), torch.stack([run.draws for run in runs]).mean(0)
