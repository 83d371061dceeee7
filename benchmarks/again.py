"""Makes the intervals and p values of kept comparisons anew, from what each run said of each test row.

    python benchmarks/again.py             # some seconds; rewrites results/compare/*.json

Nothing is trained or scored. The headline metric is drawn again from the kept rows. Of the other metrics the
rows were not kept: the spread over rows is read from the interval of each run, as if all runs moved together,
that over seeds from the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from softprompt.comparison.results import MethodResult, Metric, Results
from softprompt.comparison.summary import over_all_seeds, pairs
from softprompt.evaluation.intervals import RESAMPLES, Sampled, sampled_mean

KEPT = Path(__file__).parent.parent / "results" / "compare"
WIDTH = 2 * 1.959964  # of a 95% interval, in standard deviations


def main() -> None:
    """Rewrite every kept comparison, and tell which pairs changed sides."""
    for path in sorted(KEPT.glob("*.json")):
        before = Results.load(path)
        after = again(before)
        after.save(path)
        print(f"{path.stem}: {changed(before, after)}")


def again(results: Results) -> Results:
    """The same observations with today's intervals and p values."""
    headline = {m.name: [sampled_mean(run.row_scores) for run in m.runs] for m in results.methods if m.runs}
    methods = [
        method.model_copy(update={"summary": _summary(method, results.metric, headline.get(method.name, []))})
        for method in results.methods
    ]
    hits = {m.name: [score == 1.0 for score in m.runs[0].row_scores] for m in results.methods if m.runs}
    return results.model_copy(update={"methods": methods, "pairs": pairs(results.metric, headline, hits)})


def _summary(method: MethodResult, headline: str, drawn: Sequence[Sampled]) -> dict[str, object]:
    found: dict[str, object] = {}
    for metric in method.summary:
        each = drawn if metric == headline else _read_off([run.test[metric] for run in method.runs])
        found |= over_all_seeds([{metric: one} for one in each])
    return found


def _read_off(runs: Sequence[Metric]) -> list[Sampled]:
    """Draws as wide as each run's interval over rows; one chance for all, since they share the rows."""
    chance = torch.randn(RESAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spreads = [0.0 if run.low is None or run.high is None else (run.high - run.low) / WIDTH for run in runs]
    return [
        Sampled(run.value, run.value + spread * chance) for run, spread in zip(runs, spreads, strict=True)
    ]


def changed(before: Results, after: Results) -> str:
    """How many pairs were significant, and are."""
    old = {(pair.first, pair.second): pair for pair in before.pairs}
    lost = [
        f"{pair.first} / {pair.second}: p {old[pair.first, pair.second].p:.4f}, "
        f"now {pair.p:.4f} and corrected {pair.corrected:.4f}"
        for pair in after.pairs
        if (old[pair.first, pair.second].p < 0.05) != (pair.corrected < 0.05)
    ]
    clear = sum(pair.corrected < 0.05 for pair in after.pairs)
    were = sum(pair.p < 0.05 for pair in before.pairs)
    smallest = min((pair.p for pair in after.pairs), default=math.nan)
    return (
        f"{were} of {len(before.pairs)} pairs below 0.05 before, {clear} now (smallest p {smallest:.5f})\n  "
        + ("\n  ".join(lost) or "no pair changed sides")
    )


if __name__ == "__main__":
    main()
