"""Intervals against published and computed values."""

from __future__ import annotations

import pytest

from softprompt.evaluation.intervals import bootstrap_ratio, wilson


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    # from Newcombe 1998, table I, method 3, and R's prop.test(correct = FALSE)
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_no_knowledge() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_brackets_the_ratio_narrows_with_rows_and_repeats() -> None:
    few = bootstrap_ratio([1.0, 2, 3, 4] * 5, [1.0] * 20)
    many = bootstrap_ratio([1.0, 2, 3, 4] * 100, [1.0] * 400)
    assert few == bootstrap_ratio([1.0, 2, 3, 4] * 5, [1.0] * 20)
    assert few[0] < many[0] < 2.5 < many[1] < few[1]
    # the standard error of the mean is sd / sqrt(n) = 1.118 / 20
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * 0.0559, rel=0.15)


def test_bootstrap_weighs_rows_by_their_denominator() -> None:
    low, high = bootstrap_ratio([10.0, 1.0], [10.0, 1.0])
    assert low == high == 1.0
