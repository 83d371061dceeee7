"""Keeps a comparison's results for the repository, without the texts of its rows, which belong to others.

    python benchmarks/keep.py comparisons/sst2/results.json
    python benchmarks/keep.py results/compare/*.json    # intervals and p values of kept results anew

Every prediction stays; what the rows said goes, and so do the folders they lay in. Summaries over seeds and
pairs are made again from the predictions, so that what is kept is what the code says today. Writes
``results/compare/NAME.json``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from softprompt.comparison.results import Metric, Results, Run
from softprompt.comparison.summary import over_all_seeds, pairs
from softprompt.evaluation.intervals import RESAMPLES, Sampled, sampled_mean
from softprompt.evaluation.metrics import calibration_error, macro_f1

FOLDER = Path(__file__).parent.parent / "results" / "compare"


def kept(results: Results) -> Results:
    """The results with the right label of every row, but neither its text nor an answer that is one."""
    without = {"input": ""} if results.labels else {"input": "", "answer": ""}
    rows = [row.model_copy(update=without) for row in results.test_rows]
    data = {split: {**about, "origin": _placeless(about["origin"])} for split, about in results.data.items()}
    return results.model_copy(update={"test_rows": rows, "data": data})


def summarised(results: Results) -> Results:
    """The results with summaries and pairs computed from their predictions once more."""
    runs = {m.name: [_sampled(results, run) for run in m.runs] for m in results.methods if m.runs}
    methods = [
        m.model_copy(update={"summary": m.summary | over_all_seeds(_where_it_counts(runs[m.name]))})
        if m.runs
        else m
        for m in results.methods
    ]
    headline = {name: [run[results.metric] for run in found] for name, found in runs.items()}
    hits = {m.name: [score == 1 for score in m.runs[0].row_scores] for m in results.methods if m.runs}
    return results.model_copy(update={"methods": methods, "pairs": pairs(results.metric, headline, hits)})


def _where_it_counts(runs: Sequence[Mapping[str, Sampled]]) -> list[dict[str, Sampled]]:
    """Without the metrics of a single run that its predictions do not tell: there they stay as they were."""
    unknown = {name for name in runs[0] if len(runs) == 1 and isinstance(runs[0][name], _Assumed)}
    return [{name: one for name, one in run.items() if name not in unknown} for run in runs]


class _Assumed(Sampled):
    """A metric whose rows were not kept, such as the loss: normal draws as wide as its interval over rows."""

    @classmethod
    def of(cls, metric: Metric) -> _Assumed:
        low, high = metric.low, metric.high
        error = 0.0 if low is None or high is None else (high - low) / (2 * _Z)
        levels = (torch.arange(RESAMPLES, dtype=torch.float64) + 0.5) / RESAMPLES
        return cls(metric.value, metric.value + error * torch.special.ndtri(levels))


_Z = 1.959963984540054


def _sampled(results: Results, run: Run) -> dict[str, Sampled]:
    """Every test metric of a run with its resamplings, from what is kept of it."""
    found: dict[str, Sampled] = {name: _Assumed.of(metric) for name, metric in run.test.items()}
    if run.row_scores:
        found[results.metric] = sampled_mean(run.row_scores)
    if results.labels is None or not all(isinstance(p, int) for p in run.predictions):
        return found
    truth = [row.right[0] for row in results.test_rows]
    told = {
        "accuracy": lambda: sampled_mean(
            [float(t == p) for t, p in zip(truth, run.predictions, strict=True)]
        ),
        "macro_f1": lambda: macro_f1(truth, run.predictions),
        "ece": lambda: calibration_error(
            run.confidences, [t == p for t, p in zip(truth, run.predictions, strict=True)]
        ),
    }
    told |= {"official accuracy": told["accuracy"], "official f1": told["macro_f1"]}
    found |= {name: told[name]() for name in run.test if name in told}
    for name, one in found.items():
        assert math.isclose(one.value, run.test[name].value, abs_tol=1e-9), name
    return found


def _placeless(origin: str) -> str:
    """A file by its name and its folder's; what leads there means nothing on another machine."""
    path, space, note = origin.partition(" (")
    return "/".join(Path(path).parts[-2:]) + space + note


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in map(Path, sys.argv[1:]):
        results = summarised(kept(Results.load(path)))
        results.save(FOLDER / f"{results.name}.json")


if __name__ == "__main__":
    main()
