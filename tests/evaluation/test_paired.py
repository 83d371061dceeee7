"""Paired tests against exact numbers, scipy's, and what chance alone gives."""

from __future__ import annotations

import random
import statistics
import sys

import pytest

from softprompt.errors import ResourceError
from softprompt.evaluation.metrics import macro_f1, sampled_mean
from softprompt.evaluation.paired import (
    mcnemar,
    over_seeds,
    paired_bootstrap,
    paired_difference,
    seeds_interval,
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
    with pytest.raises(ResourceError, match=r"pip install 'softprompt\[compare\]'"):
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
    assert better.p == pytest.approx(2 / 10_001)


def test_p_is_as_often_below_5_percent_as_it_says() -> None:
    trials = [paired_bootstrap(scores(60, 2 * i), scores(60, 2 * i + 1)) for i in range(150)]
    false_alarms = sum(t.p < 0.05 for t in trials)
    assert 2 <= false_alarms <= 17  # 7.5 expected; beyond this 1 in 1000 either way
    # the interval and p tell the same
    assert all((t.p < 0.05) == (t.low > 0 or t.high < 0) for t in trials if abs(t.p - 0.05) > 0.002)


def test_seeds_interval() -> None:
    runs = [[1.0, 0, 1, 1, 0, 1], [1.0, 1, 1, 1, 0, 1], [0.0, 0, 1, 1, 0, 1]]
    found = seeds_interval(runs)
    assert found.mean == pytest.approx((4 + 5 + 3) / 18)
    assert found.spread == pytest.approx(1 / 6)  # of 4/6, 5/6, 3/6
    per_row = [sum(row) / 3 for row in zip(*runs, strict=True)]
    assert (found.low, found.high) == pytest.approx(sampled_mean(per_row).interval()[1:])
    assert found == seeds_interval(runs)
    assert seeds_interval(runs[:1])[1:] == pytest.approx((0.0, *sampled_mean(runs[0]).interval()[1:]))


def test_any_metric_over_seeds_and_between_methods() -> None:
    draw = random.Random(8)
    truth = [draw.randrange(3) for _ in range(200)]

    def run(right: float) -> list[int]:
        return [t if draw.random() < right else draw.randrange(3) for t in truth]

    good, bad = ([macro_f1(truth, run(right)) for _ in range(3)] for right in (0.8, 0.5))
    found = over_seeds(good)
    assert found.mean == pytest.approx(sum(g.value for g in good) / 3)
    assert found.low < found.mean < found.high
    # the mean of three varies less than one of them
    assert found.high - found.low < max(g.interval().high - g.interval().low for g in good)
    gap = paired_difference(good, bad)
    assert gap.difference == pytest.approx(found.mean - over_seeds(bad).mean)
    assert 0 < gap.low < gap.difference < gap.high
    assert gap.p < 0.01
    assert paired_difference(good, good) == (0.0, 0.0, 0.0, 1.0)


def test_a_difference_of_means_is_the_same_either_way() -> None:
    first, second = scores(100, 9, 0.3), scores(100, 10)
    rows = paired_bootstrap(first, second)
    draws = paired_difference([sampled_mean(first)], [sampled_mean(second)])
    assert draws == pytest.approx(rows, abs=0.04)
