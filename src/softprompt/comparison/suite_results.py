"""What the comparisons of a suite found together: every method's mean over data sets, base by base.

Plain values that go to ``results.json`` and come back, and the arithmetic between them; it knows results, and
nothing of how they came to be or where they are shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import Field

from softprompt.atomic import write_bytes
from softprompt.comparison.results import Pair, Results, ResultValue
from softprompt.comparison.table import comparison, scores
from softprompt.evaluation.paired import combined, holm
from softprompt.numbers import interval_text, is_share, metric_text
from softprompt.report.notebook import grid_html

__all__ = ["BaseFindings", "Mean", "MemberFindings", "SuiteResults", "summed"]

_OFFICIAL = "official "


class Mean(ResultValue):
    """A metric with the 95% interval of its mean."""

    mean: float
    low: float
    high: float


class MemberFindings(ResultValue):
    """One comparison of the suite, in short."""

    name: str
    """Its name and the name of its folder, beside this file."""
    task: str
    """Its data set; empty where the file has one."""
    metric: str
    """Its headline metric."""
    rows: int
    """Test rows."""
    labels: int | None
    finished: bool
    scores: dict[str, Mean]
    """The headline metric on test of every method that has one."""
    official: dict[str, float] = Field(default_factory=dict)
    """The mean of a benchmark's own metrics of every method, where there are any."""


class BaseFindings(ResultValue):
    """Every method on one base, over all data sets."""

    name: str
    parameters: int
    members: list[MemberFindings]
    means: dict[str, Mean] = Field(default_factory=dict)
    """The mean over data sets of each method that has a score on all of them."""
    official: dict[str, float] = Field(default_factory=dict)
    """The same of a benchmark's own metrics, where all data sets have some."""
    pairs: list[Pair] = Field(default_factory=list)
    """Two methods each, on the mean over data sets."""


class SuiteResults(ResultValue):
    """Everything a suite found."""

    format: Literal["suite 1"] = "suite 1"
    name: str
    created: str
    """ISO 8601, UTC."""
    finished: bool
    """Whether every run of every comparison is in it."""
    tasks: list[str]
    """Data sets in the order of the file; one without a name where it has no list."""
    metric: str
    """The metric that is averaged; ``score`` where data sets have different ones, all shares of 1."""
    higher_is_better: bool
    methods: dict[str, bool]
    """Names in the order of the file, and whether each learns anything."""
    bases: list[BaseFindings]
    """From the fewest parameters to the most."""
    left_out: list[str] = Field(default_factory=list)
    """Comparisons whose metric cannot be averaged with the others'."""

    def __repr__(self) -> str:
        on = ", ".join(base.name for base in self.bases)
        return (
            f"<SuiteResults {self.name}: {len(self.methods)} methods, {len(self.tasks)} data sets, on {on}>"
        )

    def _repr_html_(self) -> str:
        rows = [(method, *(self._mean(base, method) for base in self.bases)) for method in self.methods]
        heads = ("method", *(base.name for base in self.bases))
        return grid_html(self.name, heads, rows, "95% intervals in brackets.")

    def _mean(self, base: BaseFindings, method: str) -> str:
        found = base.means.get(method)
        if found is None:
            return "-"
        metric = self.shown
        return f"{metric_text(metric, found.mean)} ({interval_text(metric, found.low, found.high)})"

    @property
    def shown(self) -> str:
        """The metric by whose rules means are written."""
        return "accuracy" if self.metric == "score" else self.metric

    def ranked(self, base: BaseFindings) -> list[str]:
        """The methods on a base, the best mean first; those without one last."""
        sign, means = -1 if self.higher_is_better else 1, base.means
        return sorted(
            self.methods, key=lambda m: (m not in means, sign * means[m].mean if m in means else 0.0)
        )

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        write_bytes(path, (json.dumps(self.model_dump(), ensure_ascii=False, indent=1) + "\n").encode())


def summed(name: str, tasks: Sequence[str], found: Sequence[Results]) -> SuiteResults:
    """What the comparisons done so far say together.

    Args:
        name: of the suite.
        tasks: the data set of every comparison of the suite, in the order they run.
        found: those that have run, in that order.
    """
    pairs = list(zip(tasks, found, strict=False))
    metric, averaged = _averaged(found)
    by_base: dict[str, list[tuple[str, Results]]] = {}
    for task, results in pairs:
        by_base.setdefault(results.base["fingerprint"], []).append((task, results))
    bases = sorted((_on_base(one, averaged) for one in by_base.values()), key=lambda base: base.parameters)
    return SuiteResults(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        finished=len(found) == len(tasks) and all(results.finished for results in found),
        tasks=list(dict.fromkeys(tasks)),
        metric=metric,
        higher_is_better=all(results.higher_is_better for results in averaged),
        methods={m.name: m.trained for results in found for m in results.methods},
        bases=bases,
        left_out=[results.name for results in found if results not in averaged],
    )


def _averaged(found: Sequence[Results]) -> tuple[str, list[Results]]:
    """The comparisons whose headline metrics can be averaged, and what the mean is of."""
    metrics = {results.metric for results in found}
    if len(metrics) == 1:
        return metrics.pop(), list(found)
    return "score", [results for results in found if is_share(results.metric)]


def _on_base(found: Sequence[tuple[str, Results]], averaged: Sequence[Results]) -> BaseFindings:
    about = found[0][1].base
    shared = [results for _, results in found if results in averaged]
    members = [_member(task, results) for task, results in found]
    counted = [member for member in members if member.name in {results.name for results in shared}]
    everywhere = (
        [m for m in counted[0].scores if all(m in member.scores for member in counted)] if counted else []
    )
    official = [m for m in everywhere if all(m in member.official for member in members)]
    return BaseFindings(
        name=about["name"],
        parameters=about["parameters"],
        members=members,
        means={method: _mean([member.scores[method] for member in counted]) for method in everywhere},
        official={method: fmean(member.official[method] for member in members) for method in official},
        pairs=_pairs(everywhere, shared),
    )


def _member(task: str, results: Results) -> MemberFindings:
    official = {
        method.name: fmean(own)
        for method in results.methods
        if (own := [s.mean for metric, s in method.summary.items() if metric.startswith(_OFFICIAL)])
    }
    seen = {method.name: scores(method, results.metric) for method in results.methods}
    return MemberFindings(
        name=results.name,
        task=task,
        metric=results.metric,
        rows=len(results.test_rows),
        labels=len(results.labels) if results.labels else None,
        finished=results.finished,
        scores={name: Mean(mean=s.mean, low=s.low, high=s.high) for name, s in seen.items() if s},
        official=official,
    )


def _mean(found: Sequence[Mean]) -> Mean:
    """The mean over data sets with its interval; of one, that itself."""
    mean, low, high, _ = combined([(one.mean, one.low, one.high) for one in found])
    return found[0] if len(found) == 1 else Mean(mean=mean, low=low, high=high)


def _pairs(methods: Sequence[str], shared: Sequence[Results]) -> list[Pair]:
    """Every two methods on the mean over data sets, corrected for all of them."""
    found = []
    for first, second in combinations(methods, 2):
        parts = [comparison(results, first, second) for results in shared]
        if any(part is None for part in parts):
            continue
        known = [part for part in parts if part is not None]
        if len(known) == 1:
            found.append(known[0])
            continue
        gap = combined([(part.difference, part.low, part.high) for part in known])
        found.append(Pair(first=first, second=second, **gap._asdict(), test="combined"))
    corrected = holm([pair.p for pair in found])
    return [pair.model_copy(update={"p_holm": p}) for pair, p in zip(found, corrected, strict=True)]
