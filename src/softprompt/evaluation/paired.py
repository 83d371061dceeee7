"""Methods on the same rows, over training seeds: means, differences, p values and their 95% intervals.

It knows resampled metrics; it does not know what was compared.

**What an interval covers.** Test rows and training seeds are two samples, crossed: every seed of every
method meets the same rows, and a seed is one method's own. Rows are drawn anew (the bootstrap, with the same
draws for every run, so that what rows do to two methods alike cancels). Seeds are too few to be drawn from:
three of them have ten different resamples, whose variance is (n - 1) / n of what it should be and whose ends
lie too close. So the mean over n seeds moves in every draw by a normal of variance s2 / n, with s2 the
variance over seeds (n - 1), and the whole draw is stretched as Student's t is: by the root of f / chi2(f),
with f Satterthwaite's (1946) degrees of freedom of the sum of both variances. Without a variance over seeds f
is infinite and what is left is the plain bootstrap over rows: for seeds that agree because nothing is random,
and for a single seed, whose variance nobody knows. ``benchmarks/coverage_of_intervals.py`` counts how often
it holds the truth.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from softprompt.evaluation.intervals import RESAMPLES, Sampled, sampled_mean
from softprompt.packages import require

__all__ = [
    "FLOOR",
    "Difference",
    "OverSeeds",
    "combined",
    "holm",
    "mcnemar",
    "over_seeds",
    "paired_bootstrap",
    "paired_difference",
    "visible_difference",
]

FLOOR = 2 / (RESAMPLES + 1)
"""No bootstrap's p is below this, however far apart two methods are."""

_SIDE = 1.959963984540054
"""Standard errors from the middle of a 95% interval to its end, by normal theory."""

_SEEN = _SIDE + 0.8416212335729143
"""So many standard errors apart, two methods have p < 0.05 in 4 of 5 comparisons."""

_NOTHING = 1e-12  # a difference of sums that rounding alone may leave


class Difference(NamedTuple):
    """The first minus the second, with its 95% interval and two-sided p."""

    difference: float
    low: float
    high: float
    p: float


class OverSeeds(NamedTuple):
    """A metric over training seeds.

    ``spread`` is the standard deviation over seeds (n - 1; 0 for one seed): how much a further seed may
    differ. ``low`` and ``high`` are the 95% interval of the mean, over other rows and other seeds.
    """

    mean: float
    spread: float
    low: float
    high: float


def over_seeds(runs: Sequence[Sampled]) -> OverSeeds:
    """Any metric over the seeds of one method, all resampled with one seed of draws on the same rows."""
    values = [run.value for run in runs]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    rows = torch.stack([run.draws for run in runs]).mean(0)
    found = _over_seeds_too(statistics.fmean(values), rows, [values])
    return OverSeeds(found.value, spread, *found.interval()[1:])


def paired_difference(first: Sequence[Sampled], second: Sequence[Sampled]) -> Difference:
    """The difference of any metric, such as BLEU (Koehn 2004), between two methods' means over seeds.

    Args:
        first: the metric of each seed of one method, all resampled with one seed of draws.
        second: that of the other method, on the same rows with the same seed of draws.
    """
    values = [[run.value for run in runs] for runs in (first, second)]
    rows = [torch.stack([run.draws for run in runs]).mean(0) for runs in (first, second)]
    gap = statistics.fmean(values[0]) - statistics.fmean(values[1])
    return _difference(_over_seeds_too(gap, rows[0] - rows[1], values))


def paired_bootstrap(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Difference:
    """The difference of two means over the same rows, by resampling the rows.

    Args:
        first: a score for each row, higher or lower is better.
        second: the same of the other method.
        seed: of the draws.
    """
    return _difference(sampled_mean([a - b for a, b in zip(first, second, strict=True)], seed=seed))


def visible_difference(rows: int, seeds: int, *, apart: float = 0.2, spread: float = 0.015) -> float:
    """About how far apart two accuracies must be to be told apart (p < 0.05 by itself) in 4 of 5 comparisons.

    Normal theory for the variances that ``paired_difference`` adds; a few seeds need a little more.

    Args:
        rows: test rows.
        seeds: of each method.
        apart: the share of rows on which one of the two is right and the other wrong.
        spread: the standard deviation over seeds of each; unknown, and left out, where there is one seed.
    """
    return _SEEN * math.sqrt(apart / rows + (2 * spread**2 / seeds if seeds > 1 else 0.0))


def combined(parts: Sequence[tuple[float, float, float]]) -> Difference:
    """The mean of independent estimates, such as a difference on several data sets, by their intervals.

    Distances to the ends of the intervals add up as squares, on either side by itself (Zou & Donner 2008), so
    skewed intervals stay skewed. P is the normal one of the side that zero is on.

    Args:
        parts: value, low, high of each.
    """
    count = len(parts)
    mean = math.fsum(value for value, _, _ in parts) / count
    below = math.hypot(*(value - low for value, low, _ in parts)) / count
    above = math.hypot(*(high - value for value, _, high in parts)) / count
    towards = below if mean > 0 else above
    p = math.erfc(abs(mean) / towards * _SIDE / math.sqrt(2)) if towards else float(mean == 0)
    return Difference(mean, mean - below, mean + above, p)


def _over_seeds_too(value: float, rows: Tensor, seeds: Sequence[Sequence[float]]) -> Sampled:
    """Draws ``[R]`` over rows made draws over rows and seeds; ``seeds`` has each method's value by seed."""
    several = [values for values in seeds if len(values) > 1]
    shares = [(statistics.variance(values) / len(values), len(values) - 1) for values in several]
    variance = math.fsum(share for share, _ in shares)
    if variance < _NOTHING**2:
        return Sampled(value, rows)
    total = float(rows.var()) + variance
    freedom = total**2 / math.fsum(share**2 / free for share, free in shares)
    chance = numpy.random.default_rng(len(rows))
    moved = torch.from_numpy(chance.normal(0.0, math.sqrt(variance), len(rows)))
    stretch = torch.from_numpy(numpy.sqrt(freedom / chance.chisquare(freedom, len(rows))))
    return Sampled(value, value + (rows - value + moved) * stretch)


def _difference(found: Sampled) -> Difference:
    """P is twice the smaller share of draws at 0 or to one side of it; one draw more keeps it above 0."""
    below, above = (int((sign * found.draws < _NOTHING).sum()) for sign in (1, -1))
    return Difference(*found.interval(), min(1.0, 2 * (1 + min(below, above)) / (1 + len(found.draws))))


def holm(values: Sequence[float]) -> list[float]:
    """P values of several tests, each so corrected that all below 5% hold together with 95% (Holm 1979).

    The smallest is multiplied by the number of tests, the next by one less, and so on; none becomes smaller
    than one before it.
    """
    corrected = [1.0] * len(values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda place: values[place])):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = least
    return corrected


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
