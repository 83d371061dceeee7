"""Intervals against published values, a recount of resampled rows and the normal approximation."""

from __future__ import annotations

import random

import pytest
import torch

from evaluation.draws import drawn
from softprompt.evaluation import intervals
from softprompt.evaluation.intervals import RESAMPLES, bootstrap_ratio, sampled_mean, sampled_ratio, wilson


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    # from Newcombe 1998, table I, method 3, and R's prop.test(correct = FALSE)
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_no_knowledge() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_an_interval_is_that_of_the_middle_95_percent_of_draws() -> None:
    scores = [0.1, 0.9, 0.4, 0.7, 0.3, 0.8]
    means = sorted(sum(scores[i] for i in picked) / 6 for picked in drawn(6, seed=3))
    value, low, high = sampled_mean(scores, seed=3).interval()
    assert value == pytest.approx(sum(scores) / 6)
    # 2.5% and 97.5% lie between the 250th and 251st of 10,000 from either end
    assert means[249] - 1e-12 <= low <= means[250] + 1e-12 < value
    assert value < means[9749] - 1e-12 <= high <= means[9750] + 1e-12
    assert sampled_mean(scores, seed=3).interval() == (value, low, high)
    assert not torch.equal(sampled_mean(scores, seed=4).draws, sampled_mean(scores, seed=3).draws)


def test_the_mean_of_draws_has_the_standard_error_of_the_mean() -> None:
    scores = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    found = sampled_mean(scores)
    assert len(found.draws) == RESAMPLES
    expected = torch.tensor(scores).std(correction=0) / 200**0.5
    assert float(found.draws.std()) == pytest.approx(float(expected), rel=0.03)


def test_blocks_that_fit_into_memory_are_as_good_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    scores = [chance.random() for _ in range(40)]
    whole = sampled_mean(scores)
    monkeypatch.setattr(intervals, "_CELLS", 40 * 64)
    parts = sampled_mean(scores)
    assert len(parts.draws) == len(whole.draws)
    assert torch.equal(parts.draws[:64], whole.draws[:64])
    assert len({float(parts.draws[at]) for at in range(0, RESAMPLES, 64)}) > 150  # no block is another's copy
    assert parts.interval() == pytest.approx(whole.interval(), abs=0.005)


def test_a_ratio_s_interval_narrows_with_rows_and_repeats() -> None:
    few = bootstrap_ratio([1.0, 2, 3, 4] * 5, [1.0] * 20)
    many = bootstrap_ratio([1.0, 2, 3, 4] * 100, [1.0] * 400)
    assert few == bootstrap_ratio([1.0, 2, 3, 4] * 5, [1.0] * 20)
    assert few[0] < many[0] < 2.5 < many[1] < few[1]
    # the standard error of the mean is sd / sqrt(n) = 1.118 / 20
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * 0.0559, rel=0.15)


def test_a_ratio_weighs_rows_by_their_denominator_and_draws_the_rows_all_others_draw() -> None:
    low, high = bootstrap_ratio([10.0, 1.0], [10.0, 1.0])
    assert low == high == 1.0
    chance = random.Random(2)
    losses = [chance.random() for _ in range(30)]
    assert torch.allclose(sampled_ratio(losses, [1.0] * 30).draws, sampled_mean(losses).draws)
