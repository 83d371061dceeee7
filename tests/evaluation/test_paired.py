"""Paired tests against exact numbers, scipy's, and what chance alone gives."""

from __future__ import annotations

import random
import statistics
import sys

import pytest
import torch

from softprompt.errors import ResourceError
from softprompt.evaluation.intervals import RESAMPLES, Sampled, sampled_mean
from softprompt.evaluation.metrics import macro_f1
from softprompt.evaluation.paired import (
    FLOOR,
    holm,
    mcnemar,
    over_seeds,
    paired_bootstrap,
    paired_difference,
    visible_difference,
)

stats = pytest.importorskip("scipy.stats", reason="needs the extra 'compare'")


def scores(rows: int, seed: int, shift: float = 0.0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(shift, 1) for _ in range(rows)]


@pytest.mark.parametrize(
    ("won", "lost", "both", "p"),
    [
        (9, 1, 5, 2 * (1 + 10) / 2**10),  # at most one of ten fair coins, either side
        (1, 9, 0, 2 * (1 + 10) / 2**10),
        (5, 5, 3, 1.0),
        (3, 0, 0, 0.25),
        (0, 0, 8, 1.0),
        (0, 0, 0, 1.0),
    ],
)
def test_mcnemar(won: int, lost: int, both: int, p: float) -> None:
    first = [True] * won + [False] * lost + [True] * both
    second = [False] * won + [True] * lost + [True] * both
    assert mcnemar(first, second) == pytest.approx(p, rel=1e-12)


def test_mcnemar_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ResourceError, match=r"pip install 'softprompt\[(compare|report)\]'"):
        mcnemar([True], [False])


def test_paired_bootstrap_agrees_with_the_paired_t_test() -> None:
    common = scores(300, 1)
    first = [c + 0.5 * n + 0.05 for c, n in zip(common, scores(300, 2), strict=True)]
    second = [c + 0.5 * n for c, n in zip(common, scores(300, 3), strict=True)]
    found = paired_bootstrap(first, second)
    expected = stats.ttest_rel(first, second)
    assert found.difference == pytest.approx(statistics.fmean(first) - statistics.fmean(second))
    assert found.p == pytest.approx(expected.pvalue, abs=0.02)
    low, high = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    # the rows' own differences, which both share, cancel
    assert high - low < 0.6 * (2 * 1.96 * statistics.stdev(first) * (2 / 300) ** 0.5)


def test_paired_bootstrap_is_deterministic_and_has_two_sides() -> None:
    first, second = scores(80, 4, 0.2), scores(80, 5)
    found = paired_bootstrap(first, second)
    assert found == paired_bootstrap(first, second)
    assert found != paired_bootstrap(first, second, seed=1)
    back = paired_bootstrap(second, first)
    assert (back.difference, back.low, back.high, back.p) == pytest.approx(
        (-found.difference, -found.high, -found.low, found.p)
    )


def test_equal_methods_do_not_differ_and_a_sure_gain_is_sure() -> None:
    some = scores(50, 6)
    assert paired_bootstrap(some, some) == (0.0, 0.0, 0.0, 1.0)
    thirds = [1 / 3, 2 / 3, 1.0] * 10  # means over three seeds, which no float holds
    moved = thirds[1:] + thirds[:1]
    assert paired_bootstrap(thirds, moved).p > 0.9
    better = paired_bootstrap([s + 1 for s in some], some)
    assert (better.difference, better.low, better.high) == pytest.approx((1, 1, 1))
    assert better.p == FLOOR == 2 / (RESAMPLES + 1) == pytest.approx(0.0002, abs=1e-7)
    assert 36 * FLOOR < 0.05  # so that nine methods can be told apart, all pairs together


def test_p_is_as_often_below_5_percent_as_it_says() -> None:
    trials = [paired_bootstrap(scores(60, 2 * i), scores(60, 2 * i + 1)) for i in range(150)]
    false_alarms = sum(t.p < 0.05 for t in trials)
    assert 2 <= false_alarms <= 17  # 7.5 expected; beyond this 1 in 1000 either way
    # the interval and p tell the same
    assert all((t.p < 0.05) == (t.low > 0 or t.high < 0) for t in trials if abs(t.p - 0.05) > 0.002)


RUNS = [[1.0, 0, 1, 1, 0, 1], [1.0, 1, 1, 1, 0, 1], [0.0, 0, 1, 1, 0, 1]]


def test_mean_and_spread_over_seeds() -> None:
    found = over_seeds([sampled_mean(rows) for rows in RUNS])
    assert found.mean == pytest.approx((4 + 5 + 3) / 18)
    assert found.spread == pytest.approx(1 / 6)  # of 4/6, 5/6, 3/6
    assert found == over_seeds([sampled_mean(rows) for rows in RUNS])


def test_without_a_variance_over_seeds_the_interval_is_that_of_the_rows() -> None:
    alone = sampled_mean(RUNS[0]).interval()
    assert over_seeds([sampled_mean(RUNS[0])]) == (alone.value, 0.0, alone.low, alone.high)
    assert over_seeds([sampled_mean(RUNS[0])] * 3) == pytest.approx((alone.value, 0.0, alone.low, alone.high))
    other = RUNS[0][::-1]
    gap = paired_bootstrap(RUNS[0], other)
    assert paired_difference([sampled_mean(RUNS[0])] * 3, [sampled_mean(other)]) == pytest.approx(gap)


def fixed(*values: float, rows: float = 0.0) -> list[Sampled]:
    """Runs of one method: rows of this standard error, the same draws for all."""
    noise = rows * torch.randn(RESAMPLES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [Sampled(value, value + noise) for value in values]


def test_where_rows_do_not_matter_the_interval_is_student_s() -> None:
    values = [0.61, 0.7, 0.72]
    found = over_seeds(fixed(*values))
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_where_rows_do_not_matter_two_methods_differ_as_by_welch_s_test() -> None:
    first, second = [0.61, 0.70, 0.72], [0.52, 0.55, 0.51, 0.57]
    found = paired_difference(fixed(*first), fixed(*second))
    expected = stats.ttest_ind(first, second, equal_var=False)
    low, high = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=0.15)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    back = paired_difference(fixed(*second), fixed(*first))
    assert back == pytest.approx((-found.difference, -found.high, -found.low, found.p), abs=0.005)


def test_variances_of_rows_and_seeds_add_up() -> None:
    values = [0.69, 0.70, 0.71]  # a standard error of 0.00577
    rows = 0.02
    found = over_seeds(fixed(*values, rows=rows))
    seeds = statistics.variance(values) / 3
    freedom = (rows**2 + seeds) ** 2 / (seeds**2 / 2)
    half = stats.t.ppf(0.975, freedom) * (rows**2 + seeds) ** 0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.03)


def test_holm() -> None:
    # by hand: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.9 x 1
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    # Holm 1979: none is smaller than one before it, and none above 1
    assert holm([0.01, 0.011, 0.6, 0.7]) == pytest.approx([0.04, 0.04, 1.0, 1.0])
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_any_metric_over_seeds_and_between_methods() -> None:
    draw = random.Random(8)
    truth = [draw.randrange(3) for _ in range(200)]

    def run(right: float) -> list[int]:
        return [t if draw.random() < right else draw.randrange(3) for t in truth]

    good, bad = ([macro_f1(truth, run(right)) for _ in range(3)] for right in (0.8, 0.5))
    found = over_seeds(good)
    assert found.mean == pytest.approx(sum(g.value for g in good) / 3)
    assert found.low < found.mean < found.high
    _, low, high = Sampled(0.0, torch.stack([g.draws for g in good]).mean(0)).interval()
    assert found.low < low < high < found.high  # other seeds may change it, too
    gap = paired_difference(good, bad)
    assert gap.difference == pytest.approx(found.mean - over_seeds(bad).mean)
    assert 0 < gap.low < gap.difference < gap.high
    assert gap.p < 0.02
    assert paired_difference(good, good).p > 0.95
    assert paired_difference(good[:1], good[:1]) == (0.0, 0.0, 0.0, 1.0)


def test_a_difference_of_means_is_the_same_either_way() -> None:
    first, second = scores(100, 9, 0.3), scores(100, 10)
    rows = paired_bootstrap(first, second)
    draws = paired_difference([sampled_mean(first)], [sampled_mean(second)])
    assert draws == pytest.approx(rows, abs=0.04)


@pytest.mark.parametrize(("rows", "seeds"), [(300, 1), (400, 12)])
def test_a_visible_difference_is_seen_in_four_of_five_comparisons(rows: int, seeds: int) -> None:
    """By simulation: two methods that disagree on a fifth of the rows, and seeds apart by 1.5 points."""
    gap = visible_difference(rows, seeds)
    chance = random.Random(0)
    seen = 0
    for _ in range(200):
        better = [0.1 + gap / 2, 0.1 - gap / 2, 0.8]
        signs = chance.choices((1.0, -1.0, 0.0), better, k=rows)
        error = statistics.pstdev(signs) ** 2 / rows
        moved = 0.0
        if seeds > 1:
            sides = [[chance.gauss(0, 0.015) for _ in range(seeds)] for _ in range(2)]
            moved = statistics.fmean(sides[0]) - statistics.fmean(sides[1])
            error += sum(statistics.variance(side) / seeds for side in sides)
        seen += abs(statistics.fmean(signs) + moved) > 1.96 * error**0.5
    assert 0.72 < seen / 200 < 0.88
    assert visible_difference(4 * rows, seeds) < gap
