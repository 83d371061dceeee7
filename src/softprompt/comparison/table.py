"""The summary of a comparison as plain values: ranked methods, columns and cells.

It knows results and how they read best; it does not know where they are shown (terminal, Markdown, page).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median, stdev
from typing import Literal

from softprompt.comparison.results import MethodResult, Pair, Results, Run, Seeds
from softprompt.numbers import (
    NOTHING,
    bytes_text,
    count_text,
    interval_text,
    lower_is_better,
    metric_name,
    metric_text,
    seconds_text,
)

__all__ = [
    "GROUPS",
    "Cell",
    "Column",
    "SummaryRow",
    "columns",
    "comparison",
    "learnt",
    "mark",
    "ranked",
    "scores",
    "summary_rows",
    "turned",
]


_TOGETHER = "worst"
"""What a run calls the score of rows that stay right under every change."""


@dataclass(frozen=True)
class Column:
    """What one column holds.

    Attributes:
        key: its name for programs.
        head: its name for people.
        about: what the number is, in a sentence.
        better: which end is the best; "neither" has no best.
        among: whose best is marked: everybody's, or, for a cost that only training has, the trained methods'.
    """

    key: str
    head: str
    about: str
    better: Literal["higher", "lower", "neither"]
    among: Literal["all", "trained"] = "all"

    @property
    def group(self) -> str:
        """What kind of question it answers, in the manner of HELM (Liang et al. 2022): one of ``GROUPS``."""
        return _GROUP_OF.get(self.key, GROUPS[0])


GROUPS = ("accuracy", "calibration", "robustness", "efficiency")
_GROUP_OF = {"test.ece": "calibration", "perturbed": "robustness"}
_GROUP_OF |= dict.fromkeys(("parameters", "bytes", "seconds", "memory", "latency", "trials"), "efficiency")


@dataclass(frozen=True)
class Cell:
    """One number of one method.

    Attributes:
        text: as people read it; a dash where there is none.
        value: as programs read it; None where there is none.
        interval: its 95% interval, such as ``88.2-91.9`` (with an en dash), or nothing.
        spread: its standard deviation over seeds, such as ``±0.6``, or nothing.
        detail: a word on the number, such as which change of the texts was the worst.
        best: whether it is the best of its column.
    """

    text: str = NOTHING
    value: float | None = None
    interval: str = ""
    spread: str = ""
    detail: str = ""
    best: bool = False


@dataclass(frozen=True)
class SummaryRow:
    """One method; ``cells`` has one for each of ``columns(results)``, by key.

    Attributes:
        mark: the letters that stand for the method in plots and matrices.
        seeds: how many runs there are.
        trouble: why there are no runs, in a sentence; else empty.
    """

    mark: str
    name: str
    kind: str
    trained: bool
    seeds: int
    trouble: str
    cells: dict[str, Cell] = field(default_factory=dict)


# Methods -----------------------------------------------------------------------------------------


def mark(number: int) -> str:
    """The letters of the method of that rank: A, B, ... Z, AA, ..."""
    head, last = divmod(number, 26)
    return (mark(head - 1) if head else "") + chr(ord("A") + last)


def ranked(results: Results) -> list[MethodResult]:
    """Methods, the best headline score first; those without one last, in their own order."""
    sign = -1 if results.higher_is_better else 1

    def key(method: MethodResult) -> float:
        found = scores(method, results.metric)
        return math.inf if found is None or not math.isfinite(found.mean) else sign * found.mean

    return sorted(results.methods, key=key)


def learnt(method: MethodResult) -> bool:
    """Whether something was learnt for it: by itself, or by those whose votes it counts."""
    return method.trained or any(run.costs.trained_parameters for run in method.runs)


def scores(method: MethodResult, metric: str) -> Seeds | None:
    """A test metric over seeds; where the summary is not made yet, the mean of the runs so far."""
    if metric in method.summary:
        return method.summary[metric]
    found = [run.test[metric] for run in method.runs if metric in run.test]
    if not found:
        return None
    alone = found[0] if len(found) == 1 else None
    low, high = (alone.low, alone.high) if alone else (None, None)
    values = [one.value for one in found]
    unknown = math.nan
    return Seeds(
        mean=fmean(values),
        spread=_spread(values),
        low=unknown if low is None else low,
        high=unknown if high is None else high,
    )


def comparison(results: Results, first: str, second: str) -> Pair | None:
    """The pair of two methods, turned so that the difference is the first's minus the second's."""
    for pair in results.pairs:
        if (pair.first, pair.second) == (first, second):
            return pair
        if (pair.first, pair.second) == (second, first):
            return turned(pair)
    return None


def turned(pair: Pair) -> Pair:
    """The same two methods the other way round."""
    names = {"first": pair.second, "second": pair.first}
    return pair.model_copy(
        update={**names, "difference": -pair.difference, "low": -pair.high, "high": -pair.low}
    )


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


# Columns and rows --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cost:
    """A column of what runs took: how it is read off a run, joined over seeds and written."""

    column: Column
    of: Callable[[Run], float | None]
    joined: Callable[[list[float]], float]
    text: Callable[[float], str]


_COSTS = (
    _Cost(
        Column("parameters", "trained parameters", "Numbers that training changes.", "lower", "trained"),
        lambda run: run.costs.trained_parameters,
        max,
        count_text,
    ),
    _Cost(
        Column("bytes", "artifact", "Size of what is saved.", "lower", "trained"),
        lambda run: run.costs.artifact_bytes,
        fmean,
        bytes_text,
    ),
    _Cost(
        Column("seconds", "training", "Time to train once, mean over seeds.", "lower", "trained"),
        lambda run: run.costs.train_seconds,
        fmean,
        seconds_text,
    ),
    _Cost(
        Column("memory", "peak memory", "The most memory held while training.", "lower", "trained"),
        lambda run: run.costs.peak_memory_bytes,
        max,
        bytes_text,
    ),
    _Cost(
        Column("latency", "latency", "Median time of one request answered alone.", "lower"),
        lambda run: run.costs.latency_seconds,
        median,
        seconds_text,
    ),
)


def columns(results: Results) -> list[Column]:
    """The columns that hold something, group by group, the headline metric first."""
    runs = [run for method in results.methods for run in method.runs]
    found = [_metric_column(results, metric) for metric in _metrics(results)]
    better = _better(results, results.metric)
    about = f"The {metric_name(results.metric)} on validation rows that choices were made on."
    found.append(Column("validation", "validation", about, better))
    if any(run.perturbed for run in runs):
        about = "Test rows changed: the worst change, or right under all of them; seeds that were tested so."
        found.append(Column("perturbed", "worst perturbed", about, better))
    found += [cost.column for cost in _COSTS if any(cost.of(run) is not None for run in runs)]
    found.append(Column("trials", "trials", "Settings tried on the first seed.", "neither"))
    return sorted(found, key=lambda column: GROUPS.index(column.group))


def summary_rows(results: Results) -> list[SummaryRow]:
    """A row for each method, the best headline score first, with a cell for each of ``columns(results)``."""
    heads = columns(results)
    rows = [
        SummaryRow(
            mark=mark(number),
            name=method.name,
            kind=method.kind,
            trained=learnt(method),
            seeds=len(method.runs),
            trouble=method.trouble,
            cells={column.key: _cell(results, method, column.key) for column in heads},
        )
        for number, method in enumerate(ranked(results))
    ]
    return _with_best(rows, heads)


def _metrics(results: Results) -> list[str]:
    """Test metrics, the headline one first."""
    found = {results.metric: None}
    for method in results.methods:
        found |= dict.fromkeys(method.summary)
        found |= dict.fromkeys(name for run in method.runs for name in run.test)
    return list(found)


def _metric_column(results: Results, metric: str) -> Column:
    about = (
        "On test rows: mean over seeds, 95% interval over rows and seeds, ± standard deviation over seeds."
    )
    return Column(f"test.{metric}", metric_name(metric), about, _better(results, metric))


def _better(results: Results, metric: str) -> Literal["higher", "lower"]:
    """Which end of a metric is the best; the headline metric says so itself."""
    lower = not results.higher_is_better if metric == results.metric else lower_is_better(metric)
    return "lower" if lower else "higher"


def _cell(results: Results, method: MethodResult, key: str) -> Cell:
    if key.startswith("test."):
        metric = key.removeprefix("test.")
        found = scores(method, metric)
        return _score_cell(metric, found, len(method.runs)) if found else Cell()
    if key == "validation":
        return _validation_cell(results.metric, method.runs)
    if key == "perturbed":
        return _perturbed_cell(results, method.runs)
    if key == "trials":
        return _trials_cell(method)
    cost = next(cost for cost in _COSTS if cost.column.key == key)
    return _cost_cell(cost, method.runs)


def _cost_cell(cost: _Cost, runs: Sequence[Run]) -> Cell:
    values = [float(value) for run in runs if (value := cost.of(run)) is not None]
    return Cell(cost.text(cost.joined(values)), cost.joined(values)) if values else Cell()


def _score_cell(metric: str, found: Seeds, seeds: int) -> Cell:
    if not math.isfinite(found.mean):
        return Cell()
    spread = f"±{metric_text(metric, found.spread, unit=False)}" if seeds > 1 else ""
    interval = interval_text(metric, found.low, found.high)
    return Cell(metric_text(metric, found.mean), found.mean, interval, spread)


def _validation_cell(metric: str, runs: Sequence[Run]) -> Cell:
    values = [run.validation[metric].value for run in runs if metric in run.validation]
    if not values or not math.isfinite(fmean(values)):
        return Cell()
    spread = f"±{metric_text(metric, _spread(values), unit=False)}" if len(values) > 1 else ""
    return Cell(metric_text(metric, fmean(values)), fmean(values), spread=spread)


def _perturbed_cell(results: Results, runs: Sequence[Run]) -> Cell:
    """The change that is worst on average over seeds."""
    changes = dict.fromkeys(name for run in runs for name in run.perturbed)
    means = {c: fmean(run.perturbed[c] for run in runs if c in run.perturbed) for c in changes}
    means = {change: value for change, value in means.items() if math.isfinite(value)}
    if not means:
        return Cell()
    pick = min if results.higher_is_better else max
    worst = pick(means, key=lambda change: means[change])
    detail = "all changes" if worst == _TOGETHER else worst
    return Cell(metric_text(results.metric, means[worst]), means[worst], detail=detail)


def _trials_cell(method: MethodResult) -> Cell:
    failed = sum(bool(trial.trouble) for trial in method.trials)
    return Cell(str(len(method.trials)), len(method.trials), detail=f"{failed} failed" if failed else "")


def _with_best(rows: list[SummaryRow], heads: Sequence[Column]) -> list[SummaryRow]:
    """Rows with the best of each column marked."""
    for column in heads:
        best = _best_text(rows, column)
        if best is not None:
            rows = [_marked(row, column) if row.cells[column.key].text == best else row for row in rows]
    return rows


def _best_text(rows: Sequence[SummaryRow], column: Column) -> str | None:
    """How the best of a column reads, for what reads the same is equally good; None where nothing differs."""
    rivals = [row.cells[column.key] for row in rows if column.among == "all" or row.trained]
    rivals = [cell for cell in rivals if cell.value is not None]
    if column.better == "neither" or len({cell.text for cell in rivals}) < 2:
        return None
    pick = max if column.better == "higher" else min
    return pick(rivals, key=lambda cell: cell.value or 0.0).text


def _marked(row: SummaryRow, column: Column) -> SummaryRow:
    if column.among == "trained" and not row.trained:
        return row
    return replace(row, cells=row.cells | {column.key: replace(row.cells[column.key], best=True)})
