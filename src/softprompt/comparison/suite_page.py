"""The report of a suite as one HTML file: a table for each base, and means against the size of the base.

It knows the page; numbers and sentences are made elsewhere. Every member's own report is linked from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from softprompt.atomic import write_bytes
from softprompt.comparison.axes import cost_scale
from softprompt.comparison.suite_results import BaseFindings, Mean, MemberFindings, SuiteResults
from softprompt.comparison.suite_words import averages, missing_from, shown_base, verdicts
from softprompt.comparison.table import mark
from softprompt.comparison.words import unbroken
from softprompt.numbers import (
    count_text,
    interval_text,
    metric_name,
    metric_text,
    round_text,
    tick_text,
)
from softprompt.report.board import PAPER, SOFT, canvas, finish, heading, hue, panel, ticks
from softprompt.report.page import Trusted, fill, part

if TYPE_CHECKING:
    from softprompt.report.board import Axes

__all__ = ["render_suite", "write_suite_report"]

_HERE = "softprompt.comparison"


def write_suite_report(results: SuiteResults, path: Path) -> None:
    """Write the report whole or not at all.

    Raises:
        ResourceError: jinja2 or matplotlib is not installed, or the disk refuses.
    """
    write_bytes(path, render_suite(results).encode("utf-8", "backslashreplace"))


def render_suite(results: SuiteResults) -> str:
    """The report as the text of an HTML file."""
    numbers = {name: number for number, name in enumerate(results.ranked(results.bases[-1]))}
    return fill(
        _HERE,
        "suite.html.j2",
        results=results,
        metric=metric_name(results.metric),
        verdicts=[unbroken(sentence) for sentence in verdicts(results)],
        missing=missing_from(results),
        averages=averages(results),
        sizes=_sizes(results, numbers) if len(results.bases) > 1 else None,
        bases=[_base(results, base, numbers) for base in results.bases],
        mark=mark,
        style=part(_HERE, "report.css"),
    )


@dataclass(frozen=True)
class _Cell:
    """One score as the template takes it."""

    text: str = "–"
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class _Line:
    """A method with a score for every column."""

    number: int
    name: str
    learns: bool
    cells: list[_Cell]


@dataclass(frozen=True)
class _OnBase:
    """A base with its data sets.

    Attributes:
        heads: (name, what its score is, folder or nothing) of every column.
    """

    name: str
    parameters: str
    heads: list[tuple[str, str, str]]
    lines: list[_Line]


def _base(results: SuiteResults, base: BaseFindings, numbers: dict[str, int]) -> _OnBase:
    several = len(base.members) > 1
    heads = [(member.task or member.name, _about(member), member.name) for member in base.members]
    columns = [(member.metric, member.scores) for member in base.members]
    if several:
        heads.append(("mean", "of all data sets", ""))
        columns.append((results.shown, base.means))
    if base.official:
        heads.append(("official mean", "of the benchmark's own metrics", ""))
        official = {name: Mean(mean=value, low=value, high=value) for name, value in base.official.items()}
        columns.append(("accuracy", official))
    better = max if results.higher_is_better else min
    best = [better((one.mean for one in scores.values()), default=0.0) for _, scores in columns]
    lines = []
    for name in results.ranked(base):
        found = zip(columns, best, strict=True)
        cells = [_cell(metric, scores.get(name), top) for (metric, scores), top in found]
        lines.append(_Line(numbers[name], name, results.methods[name], cells))
    return _OnBase(shown_base(base.name), count_text(base.parameters), heads, lines)


def _about(member: MemberFindings) -> str:
    labels = f", {member.labels} labels" if member.labels else ""
    return f"{metric_name(member.metric)}, {count_text(member.rows)} rows{labels}"


def _cell(metric: str, found: Mean | None, best: float) -> _Cell:
    if found is None:
        return _Cell()
    interval = interval_text(metric, found.low, found.high) if found.low < found.high else ""
    return _Cell(metric_text(metric, found.mean), interval, found.mean == best)


# Against the size of the base --------------------------------------------------------------------

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 48, 500, 30, 300
_LETTER, _BESIDE = 14, 3.0


def _sizes(results: SuiteResults, numbers: dict[str, int]) -> Trusted:
    """Every method's mean against the parameters of the base, a line each, with its letter at the end."""
    drawing = canvas(_WIDTH, _BOTTOM + 45)
    axes = panel(drawing, _LEFT, _TOP, _RIGHT, _BOTTOM)
    width, metric = _RIGHT - _LEFT, results.shown
    scale = cost_scale([float(base.parameters) for base in results.bases], width)
    seen = [end for base in results.bases for one in base.means.values() for end in (one.low, one.high)]
    room = 0.06 * (max(seen) - min(seen)) or 0.1
    low, high = min(seen) - room, max(seen) + room
    axes.set(xlim=(0, width), ylim=(low, high))
    ticks(axes.yaxis, lambda value: tick_text(metric, value))
    axes.set_xticks([scale.place(v) for v in scale.ticks], [round_text(v, "") for v in scale.ticks])
    ends, told = [], []
    for name, number in numbers.items():
        shift = _BESIDE * (number - (len(numbers) - 1) / 2)  # so that intervals do not cover each other
        found = [(base.parameters, base.means[name]) for base in results.bases if name in base.means]
        _line(axes, number, [(scale.place(float(p)) + shift, one) for p, one in found], results.methods[name])
        ends += [(found[-1][1].mean, number)] if found else []
        told.append(
            f"{name} {', '.join(f'{metric_text(metric, o.mean)} at {count_text(p)}' for p, o in found)}"
        )
    _letters(axes, width + _BESIDE, sorted(ends), _LETTER * (high - low) / (_BOTTOM - _TOP))
    better = "higher" if results.higher_is_better else "lower"
    heading(axes, f"{metric_name(results.metric)}, {better} is better")
    axes.set_xlabel("parameters of the base", color=SOFT, fontsize=10, labelpad=6)
    return Trusted(finish(drawing, "sizes", f"Means against the parameters of the base: {'; '.join(told)}."))


def _line(axes: Axes, number: int, places: Sequence[tuple[float, Mean]], learns: bool) -> None:
    """One method through its bases, discs if it learnt something and squares if not, with intervals."""
    xs, ys = [x for x, _ in places], [one.mean for _, one in places]
    style: dict[str, Any] = {"markersize": 7, "markeredgecolor": PAPER, "markeredgewidth": 1, "zorder": 5}
    axes.plot(xs, ys, color=hue(number), linewidth=1.6, marker="o" if learns else "s", **style)
    for x, one in places:
        axes.plot([x, x], [one.low, one.high], color=hue(number), linewidth=1, alpha=0.5, zorder=2)


def _letters(axes: Axes, x: float, ends: Sequence[tuple[float, int]], least: float) -> None:
    """The letter of each method beside where its line ends, moved up or down where two would touch."""
    style: dict[str, Any] = {"fontsize": 11, "weight": "bold", "parse_math": False, "va": "center_baseline"}
    for (_, number), y in zip(ends, _spaced([end for end, _ in ends], least), strict=True):
        axes.annotate(mark(number), (x, y), color=hue(number), annotation_clip=False, **style)


def _spaced(places: Sequence[float], least: float) -> list[float]:
    """Ascending places moved apart where they are closer than ``least``, each group around its own middle."""
    groups: list[list[float]] = []
    for place in places:
        group = [place]
        while groups and _spread(group, least)[0] - _spread(groups[-1], least)[-1] < least:
            group = groups.pop() + group
        groups.append(group)
    return [place for group in groups for place in _spread(group, least)]


def _spread(group: Sequence[float], least: float) -> list[float]:
    middle = fmean(group) - least * (len(group) - 1) / 2
    return [middle + least * number for number in range(len(group))]
