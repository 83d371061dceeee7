"""Plots of what a score costs: it knows results and how to draw them, not how a page shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from softprompt.comparison.axes import Scale, apart, cost_scale
from softprompt.comparison.plots import WIDTH, Plot, point, score_ticks
from softprompt.comparison.results import MethodResult, Results
from softprompt.comparison.table import learnt, ranked, scores
from softprompt.numbers import (
    bytes_text,
    count_text,
    metric_name,
    metric_text,
    round_text,
    seconds_text,
)
from softprompt.report.board import SOFT, canvas, finish, heading, hue, panel

if TYPE_CHECKING:
    from softprompt.report.board import Axes

__all__ = ["cost_plots"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 48, WIDTH - 14, 30, 235
_APART = 21


@dataclass(frozen=True)
class _Cost:
    """What may be on the x axis."""

    name: str
    unit: str
    of: Callable[[MethodResult], float]
    text: Callable[[float], str]


_COSTS = (
    _Cost("trained parameters", "", lambda m: float(m.runs[0].costs.trained_parameters), count_text),
    _Cost("training time", "s", lambda m: fmean(run.costs.train_seconds for run in m.runs), seconds_text),
    _Cost("artifact size", "B", lambda m: fmean(run.costs.artifact_bytes for run in m.runs), bytes_text),
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


def _cost_plot(results: Results, shown: Sequence[_Scored], cost: _Cost, prefix: str) -> str:
    drawing = canvas(WIDTH, _BOTTOM + 45)
    axes = panel(drawing, _LEFT, _TOP, _RIGHT, _BOTTOM)
    width = _RIGHT - _LEFT
    scale = cost_scale([cost.of(one.method) for one in shown], width)
    low, high = min(one.low for one in shown), max(one.high for one in shown)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set(xlim=(0, width), ylim=(low - room, high + room))
    score_ticks(axes.yaxis, results.metric)
    _cost_ticks(axes, scale, cost.unit)
    per_pixel = (_BOTTOM - _TOP) / (high - low + 2 * room)
    places = [(scale.place(cost.of(one.method)), one.score * per_pixel) for one in shown]
    for one, x in zip(shown, apart(places, _APART, width), strict=True):
        axes.plot([x, x], [one.low, one.high], color=hue(one.number), linewidth=1.6, solid_capstyle="butt")
        point(axes, x, one.score, one.number, learnt(one.method))
    metric = metric_name(results.metric)
    heading(axes, f"{metric}, {'higher' if results.higher_is_better else 'lower'} is better")
    axes.set_xlabel(cost.name, color=SOFT, fontsize=10, labelpad=6)
    return finish(drawing, prefix, f"{metric} against {cost.name}: {_told(results, shown, cost)}.")


def _told(results: Results, shown: Sequence[_Scored], cost: _Cost) -> str:
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
