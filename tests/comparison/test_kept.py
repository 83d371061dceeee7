"""The kept comparisons, counted again by formulas that share no code with softprompt."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy
import pytest

stats = pytest.importorskip("scipy.stats", reason="needs the extra 'compare'")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import keep  # noqa: E402 - the benchmarks are scripts, not a package
from softprompt.comparison.results import Results  # noqa: E402

FILES = sorted((ROOT / "results" / "compare").glob("*.json"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return values


def scores(found: dict[str, Any]) -> dict[str, Any]:
    """For each method [seeds, rows]."""
    return {m["name"]: numpy.array([run["row_scores"] for run in m["runs"]]) for m in found["methods"]}


def test_row_scores_are_what_the_predictions_say(found: dict[str, Any]) -> None:
    if found["labels"] is None:
        pytest.skip("texts are not kept")
    right = numpy.array([row["right"][0] for row in found["test_rows"]])
    for method in found["methods"]:
        for run in method["runs"]:
            assert run["row_scores"] == (right == numpy.array(run["predictions"])).astype(float).tolist()


def variance(rows: Any, *methods: Any) -> tuple[float, float]:
    """Of a mean over rows [rows] and over the seeds of each method, with its degrees of freedom."""
    seeds = [(m.mean(1).var(ddof=1) / len(m), len(m) - 1) for m in methods if len(m) > 1]
    total = rows.var() / len(rows) + sum(one for one, _ in seeds)
    below = sum(one**2 / free for one, free in seeds)
    return total, total**2 / below if below > 0 else numpy.inf


def test_intervals_are_those_of_two_variances(found: dict[str, Any]) -> None:
    """Student's t with Satterthwaite's degrees of freedom; a bootstrap of few rows is a little lopsided."""
    for method in found["methods"]:
        mine, kept = scores(found)[method["name"]], method["summary"][found["metric"]]
        total, freedom = variance(mine.mean(0), mine)
        half = stats.t.ppf(0.975, freedom) * total**0.5
        assert kept["mean"] == pytest.approx(mine.mean(), abs=1e-12)
        low, high = max(0, mine.mean() - half), min(1, mine.mean() + half)
        assert (kept["low"], kept["high"]) == pytest.approx((low, high), abs=0.1 * half + 0.003), method[
            "name"
        ]


def test_p_values_are_those_of_two_variances_and_holm_s(found: dict[str, Any]) -> None:
    mine = scores(found)
    pairs = found["pairs"]
    assert [(p["first"], p["second"]) for p in pairs] == list(combinations(mine, 2))
    for pair in pairs:
        first, second = mine[pair["first"]], mine[pair["second"]]
        gap = first.mean() - second.mean()
        total, freedom = variance(first.mean(0) - second.mean(0), first, second)
        expected = 2 * stats.t.sf(abs(gap) / total**0.5, freedom)
        assert pair["difference"] == pytest.approx(gap, abs=1e-12)
        assert pair["test"] == "bootstrap"
        # the bootstrap cannot see below 2 / 10,001, and a share of 60 rows is not quite normal
        assert pair["p"] == pytest.approx(max(expected, 2e-4), rel=0.15, abs=0.03), pair
        if expected < 0.01:
            assert pair["p"] < 0.02
    ordered = sorted(pairs, key=lambda pair: pair["p"])
    steps = [(len(pairs) - rank) * pair["p"] for rank, pair in enumerate(ordered)]
    for rank, pair in enumerate(ordered):
        assert pair["p_holm"] == pytest.approx(min(1.0, max(steps[: rank + 1])), rel=1e-9)


def test_they_are_what_the_code_makes_of_their_predictions_today() -> None:
    path = next(path for path in FILES if path.stem == "cb")  # the smallest with everything in it
    kept = Results.load(path)
    assert keep.summarised(kept).model_dump() == kept.model_dump()
