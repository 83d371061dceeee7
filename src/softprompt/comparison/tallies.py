"""Counts over predictions: right and wrong rows, confusions, reliability, changes between two methods.

Plain arithmetic on results; it knows nothing of plots or pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from softprompt.comparison.results import MethodResult, Results, Run
from softprompt.evaluation.intervals import wilson

__all__ = [
    "Bin",
    "answers",
    "confusions",
    "curve",
    "curve_metric",
    "has_answers",
    "marks",
    "reliability",
    "share_of",
    "smoothed",
    "totals",
]

_BINS = 10
_EXACT = {"accuracy", "exact_match"}


def answers(results: Results) -> list[int | None]:
    """For each test row the number of its label; None where its answer is no label.

    An answer may be a label's word rather than its name. Which it is, rows that were answered rightly tell.
    """
    known = {label.strip(): number for number, label in enumerate(results.labels or [])}
    texts = [row.answer.strip() for row in results.test_rows]
    for method in results.methods:
        for run in method.runs if results.labels else ():
            known |= {
                text: prediction
                for text, prediction, hit in zip(texts, run.predictions, _hits(results, run), strict=False)
                if hit and isinstance(prediction, int)
            }
    return [known.get(text) for text in texts]


def _hits(results: Results, run: Run) -> list[bool]:
    """For each test row whether it was right, where the headline metric is just that; else nothing."""
    return [score == 1 for score in run.row_scores] if results.metric in _EXACT else []


def has_answers(results: Results) -> bool:
    """Whether predictions are known to be right or wrong, rather than better or worse."""
    runs = [run for method in results.methods for run in method.runs[:1]]
    return any(mark is not None for run in runs for mark in marks(results, run))


def marks(results: Results, run: Run) -> list[bool | None]:
    """For each test row whether the run was right; None where nobody can say."""
    if hits := _hits(results, run):
        return list(hits)
    if results.labels is None:
        return [None] * len(run.predictions)
    pairs = zip(answers(results), run.predictions, strict=False)
    return [
        None if answer is None or isinstance(prediction, str) else answer == prediction
        for answer, prediction in pairs
    ]


def curve_metric(results: Results) -> str:
    """What validation curves show: a share of right labels or choices, or the loss of texts."""
    runs = [run for method in results.methods for run in method.runs if run.predictions]
    return "accuracy" if any(isinstance(run.predictions[0], int) for run in runs) else "nll"


def confusions(results: Results, method: MethodResult) -> Counter[tuple[int, int]]:
    """How often (true label, predicted label) met, over all test rows and seeds."""
    true = answers(results)
    return Counter(
        (answer, prediction)
        for run in method.runs
        for answer, prediction in zip(true, run.predictions, strict=False)
        if answer is not None and isinstance(prediction, int)
    )


def totals(counts: Counter[tuple[int, int]]) -> Counter[int]:
    """How many rows each true label has."""
    found: Counter[int] = Counter()
    for (true, _), count in counts.items():
        found[true] += count
    return found


def share_of(count: float, total: float) -> float:
    """A part of a whole; none of nothing."""
    return count / total if total else 0.0


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence: how sure they were and how often right (95% Wilson)."""

    confidence: float
    accuracy: float
    low: float
    high: float
    count: int


def reliability(results: Results, method: MethodResult) -> list[Bin]:
    """Bins of equal width over confidence, all seeds together; empty ones are left out."""
    found: list[list[tuple[float, bool]]] = [[] for _ in range(_BINS)]
    for run in method.runs:
        for sure, right in zip(run.confidences, marks(results, run), strict=False):
            if right is not None and 0 <= sure <= 1:
                found[min(_BINS - 1, int(sure * _BINS))].append((sure, right))
    return [_bin(members) for members in found if members]


def _bin(members: Sequence[tuple[float, bool]]) -> Bin:
    hits, total = sum(right for _, right in members), len(members)
    return Bin(fmean(sure for sure, _ in members), hits / total, *wilson(hits, total), total)


def curve(seeds: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[float, float]]:
    """The mean over seeds at every step that all of them have; empty for a single seed."""
    if len(seeds) < 2:
        return []
    by_step = [dict(points) for points in seeds]
    shared = sorted(set.intersection(*(set(points) for points in by_step)))
    return [(step, fmean(points[step] for points in by_step)) for step in shared]


def smoothed(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points: means of equally many neighbours; the first and last stay."""
    if len(points) <= most or most < 3:
        return list(points)
    inner, size = points[1:-1], most - 2
    groups = [inner[i * len(inner) // size : (i + 1) * len(inner) // size] for i in range(size)]
    means = [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]
    return [points[0], *means, points[-1]]
