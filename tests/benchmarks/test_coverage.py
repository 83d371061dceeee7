"""A comparison's intervals hold the truth of a world whose truth is known about as often as they say."""

from __future__ import annotations

import pytest

import coverage_of_intervals as coverage


@pytest.mark.parametrize("of_seeds", [0.0, 1.0])
def test_nominal_95_percent_are_about_95(of_seeds: float) -> None:
    world = coverage.World(rows=60, of_seeds=of_seeds)
    found = coverage.counted(world, trials=150, resamples=400)
    assert found["held, ours"] > 0.87  # 95% less four standard errors
    assert found["alarms, ours"] < 0.12
    if of_seeds:  # what is left out is missed
        ways = [found[f"held, {way}"] for way in ("rows", "drawn", "drawn, widened", "ours")]
        assert ways == sorted(ways)
        assert ways[0] < 0.7
        assert found["alarms, rows"] > 0.4
