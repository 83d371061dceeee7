"""The plots of scores and of training: what a score costs, how runs learnt, what trials found.

They know results and how to draw them, not how a page shows them. Methods are told apart by letters and
shapes; no name of a method stands inside a plot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from softprompt.comparison import tallies
from softprompt.comparison.axes import Scale, apart, cost_scale
from softprompt.comparison.results import MethodResult, Results, Trial
from softprompt.comparison.table import learnt, mark, ranked, scores
from softprompt.harmless import clipped
from softprompt.numbers import (
    bytes_text,
    count_text,
    metric_name,
    metric_text,
    round_text,
    seconds_text,
    tick_text,
)
from softprompt.report.board import (
    PAPER,
    RULE,
    SOFT,
    canvas,
    finish,
    heading,
    hue,
    panel,
    ticks,
    write,
)

if TYPE_CHECKING:
    from softprompt.report.board import Axes, Axis

__all__ = [
    "WIDTH",
    "Plot",
    "cost_plots",
    "learning_plots",
    "trial_plots",
]

WIDTH = 340
"""Of every plot, in pixels."""


@dataclass(frozen=True)
class Plot:
    """One drawing.

    Attributes:
        svg: an element for a page.
        title: what it is of: a cost, or a method's name.
        number: the method's rank, from 0; None where it is of all methods.
        note: a line for under it.
    """

    svg: str
    title: str
    number: int | None = None
    note: str = ""


def _point(axes: Axes, x: float, y: float, number: int, trained: bool) -> None:
    """A method's point, a disc if it learnt something and a square if not, with its letter beside it."""
    shape = "o" if trained else "s"
    style: dict[str, Any] = {"markersize": 8, "markeredgecolor": PAPER, "markeredgewidth": 1, "zorder": 5}
    axes.plot([x], [y], marker=shape, color=hue(number), clip_on=False, **style)
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center_baseline", "zorder": 6}
    beside |= {"color": hue(number), "fontsize": 11, "weight": "bold", "parse_math": False}
    axes.annotate(mark(number), (x, y), (6, 0), **beside)


def _score_ticks(axis: Axis, metric: str, *, inner: bool = False) -> None:
    """Round scores along an axis; with ``inner`` none at its ends."""
    ticks(axis, lambda value: tick_text(metric, value), inner=inner)


# What a score costs -------------------------------------------------------------------------------

_LEFT, _RIGHT, _TOP, _BOTTOM = 48, WIDTH - 14, 30, 235
_APART = 21


@dataclass(frozen=True)
class _CostAxis:
    """What may be on the x axis."""

    name: str
    unit: str
    of: Callable[[MethodResult], float]
    text: Callable[[float], str]


_COSTS = (
    _CostAxis("trained parameters", "", lambda m: float(m.runs[0].costs.trained_parameters), count_text),
    _CostAxis("training time", "s", lambda m: fmean(run.costs.train_seconds for run in m.runs), seconds_text),
    _CostAxis("artifact size", "B", lambda m: fmean(run.costs.artifact_bytes for run in m.runs), bytes_text),
)


@dataclass(frozen=True)
class _Scored:
    """A method with its headline score and interval; the bounds are the score where there are none."""

    number: int
    method: MethodResult
    score: float
    low: float
    high: float


def cost_plots(results: Results) -> list[Plot]:
    """The headline test score against trained parameters, training time and artifact size."""
    shown = []
    for number, method in enumerate(ranked(results)):
        found = scores(method, results.metric)
        if method.runs and found is not None and math.isfinite(found.mean):
            low, high = (b if math.isfinite(b) else found.mean for b in (found.low, found.high))
            shown.append(_Scored(number, method, found.mean, low, high))
    if not shown:
        return []
    return [
        Plot(_cost_plot(results, shown, cost, f"cost{at}"), f"Against {cost.name}")
        for at, cost in enumerate(_COSTS)
    ]


def _cost_plot(results: Results, shown: Sequence[_Scored], cost: _CostAxis, prefix: str) -> str:
    drawing = canvas(WIDTH, _BOTTOM + 45)
    axes = panel(drawing, _LEFT, _TOP, _RIGHT, _BOTTOM)
    width = _RIGHT - _LEFT
    scale = cost_scale([cost.of(one.method) for one in shown], width)
    low, high = min(one.low for one in shown), max(one.high for one in shown)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set(xlim=(0, width), ylim=(low - room, high + room))
    _score_ticks(axes.yaxis, results.metric)
    _cost_ticks(axes, scale, cost.unit)
    per_pixel = (_BOTTOM - _TOP) / (high - low + 2 * room)
    places = [(scale.place(cost.of(one.method)), one.score * per_pixel) for one in shown]
    for one, x in zip(shown, apart(places, _APART, width), strict=True):
        axes.plot([x, x], [one.low, one.high], color=hue(one.number), linewidth=1.6, solid_capstyle="butt")
        _point(axes, x, one.score, one.number, learnt(one.method))
    metric = metric_name(results.metric)
    heading(axes, f"{metric}, {'higher' if results.higher_is_better else 'lower'} is better")
    axes.set_xlabel(cost.name, color=SOFT, fontsize=10, labelpad=6)
    return finish(drawing, prefix, f"{metric} against {cost.name}: {_told(results, shown, cost)}.")


def _told(results: Results, shown: Sequence[_Scored], cost: _CostAxis) -> str:
    return "; ".join(
        f"{one.method.name} {metric_text(results.metric, one.score)} at {cost.text(cost.of(one.method))}"
        for one in shown
    )


def _cost_ticks(axes: Axes, scale: Scale, unit: str) -> None:
    places = [scale.place(value) for value in scale.ticks]
    axes.set_xticks(places, [round_text(value, unit) for value in scale.ticks])
    if scale.gap is None:
        return
    for shift in (-2.5, 2.5):  # the axis is broken between nothing and the smallest cost
        ends = (scale.gap + shift - 2, scale.gap + shift + 2), (-0.02, 0.02)
        axes.plot(*ends, transform=axes.get_xaxis_transform(), color=SOFT, linewidth=1, clip_on=False)


# How runs learnt ----------------------------------------------------------------------------------

_MOST_POINTS = 120
_MOST_TRIALS = 24


def learning_plots(results: Results) -> list[Plot]:
    """Training loss and validation by step, a plot for each method that has them."""
    shown = [
        (n, m)
        for n, m in enumerate(ranked(results))
        if any(r.losses or len(r.validations) > 1 for r in m.runs)
    ]
    losses = [value for _, m in shown for run in m.runs for _, value in run.losses]
    valid = [value for _, m in shown for run in m.runs for _, value in run.validations]
    ranges = _range(losses, calm=True), _range(valid)
    return [
        Plot(_learning_plot(results, number, method, ranges), method.name, number) for number, method in shown
    ]


def _range(values: Sequence[float], *, calm: bool = False) -> tuple[float, float]:
    """Room for all values; if ``calm``, for all but a few wild ones, which would flatten the rest."""
    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return 0.0, 1.0
    bottom, most, top = known[0], known[int(0.95 * (len(known) - 1))], known[-1]
    if calm:
        top = min(top, bottom + 2 * (most - bottom)) if most > bottom else top
    room = 0.06 * (top - bottom) or 0.1 * abs(top) or 1.0
    return bottom - room, top + room


def _learning_plot(
    results: Results,
    number: int,
    method: MethodResult,
    ranges: tuple[tuple[float, float], tuple[float, float]],
) -> str:
    drawing = canvas(WIDTH, 310)
    steps = max(1, *(run.steps for run in method.runs))
    upper, lower = panel(drawing, 48, 26, WIDTH - 14, 132), panel(drawing, 48, 172, WIDTH - 14, 272)
    for axes, limits in ((upper, ranges[0]), (lower, ranges[1])):
        axes.set(xlim=(0, steps * 1.02), ylim=limits)
        axes.locator_params(axis="x", nbins=5, integer=True)
    upper.set_xticklabels([])
    upper.locator_params(axis="y", nbins=4)
    _score_ticks(lower.yaxis, tallies.curve_metric(results))
    heading(upper, "training loss")
    heading(lower, f"validation {metric_name(tallies.curve_metric(results))}")
    lower.set_xlabel("step", color=SOFT, fontsize=10, labelpad=4)
    _curves(upper, number, [run.losses for run in method.runs])
    _curves(lower, number, [run.validations for run in method.runs])
    for run in method.runs:
        kept = dict(run.validations).get(run.best_step)
        if kept is not None:
            style: dict[str, Any] = {
                "markersize": 7,
                "color": PAPER,
                "markeredgecolor": hue(number),
                "markeredgewidth": 1.6,
            }
            lower.plot([run.best_step], [kept], marker="D", zorder=5, clip_on=False, **style)
    return finish(drawing, f"learn{number}", _learning_alt(results, method))


def _curves(axes: Axes, number: int, seeds: Sequence[Sequence[tuple[int, float]]]) -> None:
    """Seeds as thin lines, their mean as a thick one; a single seed is thick itself."""
    mean = tallies.curve(seeds)
    for points in seeds:
        style: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.55} if mean else {"linewidth": 2.0}
        few = tallies.smoothed(points, _MOST_POINTS)
        axes.plot([x for x, _ in few], [y for _, y in few], color=hue(number), **style)
    few = tallies.smoothed(mean, _MOST_POINTS)
    axes.plot([x for x, _ in few], [y for _, y in few], color=hue(number), linewidth=2.2)


def _learning_alt(results: Results, method: MethodResult) -> str:
    said, metric = [], tallies.curve_metric(results)
    for run in method.runs:
        losses = (
            f"training loss {run.losses[0][1]:.3f} to {run.losses[-1][1]:.3f}" if run.losses else "no losses"
        )
        kept = dict(run.validations).get(run.best_step)
        best = f", validation {metric_text(metric, kept)} at the step kept, {run.best_step}"
        said.append(f"seed {run.seed}: {losses}{best if kept is not None else ''}")
    return f"Learning curves of {method.name}. {'; '.join(said)}."


def trial_plots(results: Results) -> list[Plot]:
    """What validation said of each setting, a plot for each method that tried several."""
    shown = [(number, m) for number, m in enumerate(ranked(results)) if len(m.trials) > 1]
    metric = results.metric
    found = [t.validation[metric] for _, m in shown for t in m.trials if metric in t.validation]
    values = [v for one in found for v in (one.value, _or(one.low, one.value), _or(one.high, one.value))]
    limits = _range(values)
    return [_trial_plot(results, number, method, limits) for number, method in shown]


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None or not math.isfinite(value) else value


def _trial_plot(results: Results, number: int, method: MethodResult, limits: tuple[float, float]) -> Plot:
    trials = method.trials[:_MOST_TRIALS]
    row = 36
    drawing = canvas(WIDTH, row * len(trials) + 34)
    axes = panel(drawing, 6, 6, WIDTH - 6, row * len(trials) + 6)
    axes.set(xlim=limits, ylim=(len(trials), 0), yticks=[])
    axes.grid(visible=False)
    _score_ticks(axes.xaxis, results.metric, inner=True)
    for at, trial in enumerate(trials):
        _trial(axes, results.metric, number, at, trial, limits)
    left = len(method.trials) - len(trials)
    note = f"{left} more trials are in results.json." if left else ""
    told = "; ".join(f"{_settings(t)}: {_outcome(results.metric, t)}" for t in trials)
    svg = finish(
        drawing,
        f"trial{number}",
        f"Trials of {method.name}, by validation {metric_name(results.metric)}: {told}.",
    )
    return Plot(svg, method.name, number, note)


def _trial(axes: Axes, metric: str, number: int, at: int, trial: Trial, limits: tuple[float, float]) -> None:
    weight = "bold" if trial.chosen else "normal"
    write(axes, limits[0], at + 0.36, clipped(_settings(trial), 40), weight=weight)
    write(axes, limits[1], at + 0.36, _outcome(metric, trial), weight=weight, ha="right")
    axes.plot(limits, [at + 0.72] * 2, color=RULE, linewidth=1, zorder=1)
    found = trial.validation.get(metric)
    if found is None or not math.isfinite(found.value):
        return
    y, colour = at + 0.72, hue(number)
    axes.plot(
        [_or(found.low, found.value), _or(found.high, found.value)], [y, y], color=colour, linewidth=1.6
    )
    fill = colour if trial.chosen else PAPER
    style: dict[str, Any] = {
        "markersize": 8,
        "color": fill,
        "markeredgecolor": colour,
        "markeredgewidth": 1.6,
    }
    axes.plot([found.value], [y], marker="D" if trial.chosen else "o", zorder=5, **style)


def _settings(trial: Trial) -> str:
    """What a trial changed, by the last part of each dotted name."""
    parts = (f"{name.rsplit('.', 1)[-1].replace('_', ' ')} {value}" for name, value in trial.settings.items())
    return ", ".join(parts) or "as configured"


def _outcome(metric: str, trial: Trial) -> str:
    if trial.trouble or metric not in trial.validation:
        return "failed"
    return metric_text(metric, trial.validation[metric].value) + (" chosen" if trial.chosen else "")
