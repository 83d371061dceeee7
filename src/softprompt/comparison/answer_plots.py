"""Plots of answers: confusions of labels and how far confidence can be trusted. It knows no pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from softprompt.comparison import tallies
from softprompt.comparison.plots import WIDTH, Plot
from softprompt.comparison.results import MethodResult, Results
from softprompt.comparison.table import ranked, scores
from softprompt.harmless import clipped
from softprompt.numbers import metric_text
from softprompt.report.board import (
    HEAT,
    INK,
    PAPER,
    RULE,
    SOFT,
    bare,
    box,
    canvas,
    finish,
    heading,
    hue,
    panel,
    write,
)

if TYPE_CHECKING:
    from softprompt.report.board import Axes

__all__ = ["MOST_LABELS", "confusion_plots", "reliability_plots"]

MOST_LABELS = 12
"""With more labels than this a confusion matrix cannot be read."""


def confusion_plots(results: Results) -> list[Plot]:
    """A confusion matrix for each method, all seeds together; none where there are too many labels."""
    labels = results.labels or []
    if not 2 <= len(labels) <= MOST_LABELS:
        return []
    return [
        Plot(_confusion_plot(results, number, method), method.name, number)
        for number, method in enumerate(ranked(results))
        if method.runs
    ]


def _confusion_plot(results: Results, number: int, method: MethodResult) -> str:
    labels = [clipped(label, 13) or "(empty)" for label in results.labels or []]
    counts = tallies.confusions(results, method)
    n, left = len(labels), 14 + 6 * max(map(len, labels))
    side = min(46.0, (WIDTH - left - 8) / n)
    drawing = canvas(WIDTH, side * n + left * 0.66 + 14)
    axes = panel(drawing, left, 4, left + side * n, side * n + 4)
    bare(axes)
    axes.set(xlim=(0, n), ylim=(n, 0))
    for true in range(n):
        write(axes, -6 / side, true + 0.5, labels[true], ha="right", va="center")
        style: dict[str, Any] = {"rotation": 40, "rotation_mode": "anchor", "ha": "right", "va": "top"}
        write(axes, true + 0.62, n + 5 / side, labels[true], **style)
        total = sum(counts[true, predicted] for predicted in range(n))
        for predicted in range(n):
            count = counts[true, predicted]
            _cell(axes, true, predicted, count, tallies.share_of(count, total), side)
    wrong = [(count, pair) for pair, count in counts.items() if pair[0] != pair[1]]
    told = "; ".join(f"{labels[t]} as {labels[p]} {c}" for c, (t, p) in sorted(wrong, reverse=True)[:5])
    return finish(
        drawing, f"conf{number}", f"Confusion matrix of {method.name}. Most confused: {told or 'none'}."
    )


def _cell(axes: Axes, true: int, predicted: int, count: int, share: float, side: float) -> None:
    corner, size = (predicted + 0.03, true + 0.03), 0.94
    edge = INK if true == predicted else "none"
    box(axes, corner, size, size, facecolor=RULE, alpha=0.4, linewidth=0)
    box(axes, corner, size, size, facecolor=HEAT, alpha=share, linewidth=0)
    box(axes, corner, size, size, facecolor="none", edgecolor=edge, linewidth=1)
    if count:
        size, colour = (10 if side > 26 else 8), PAPER if share > 0.7 else INK
        write(
            axes,
            predicted + 0.5,
            true + 0.5,
            str(count),
            ha="center",
            va="center",
            color=colour,
            fontsize=size,
        )


def reliability_plots(results: Results) -> list[Plot]:
    """Confidence against how often it was right, a plot for each method whose confidences are known."""
    found = [(n, m, tallies.reliability(results, m)) for n, m in enumerate(ranked(results))]
    return [
        Plot(_reliability_plot(number, method, bins), method.name, number, _calibration(results, method))
        for number, method, bins in found
        if bins
    ]


def _calibration(results: Results, method: MethodResult) -> str:
    found = scores(method, "ece")
    return f"ECE {metric_text('ece', found.mean)}" if found else ""


def _reliability_plot(number: int, method: MethodResult, bins: Sequence[tallies.Bin]) -> str:
    drawing = canvas(WIDTH, 245)
    axes = panel(drawing, 48, 28, WIDTH - 20, 205)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=ticks, yticks=ticks)
    texts = [f"{100 * tick:.0f}%" for tick in ticks]
    axes.set_xticklabels(["", *texts[1:]])  # one 0% in the corner is enough
    axes.set_yticklabels(texts)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, dashes=(4, 3))
    most = max(one.count for one in bins)
    for one in bins:
        axes.plot([one.confidence] * 2, [one.low, one.high], color=hue(number), linewidth=1.4)
        size = 4 + 9 * math.sqrt(one.count / most)
        style: dict[str, Any] = {
            "color": hue(number),
            "markeredgecolor": PAPER,
            "clip_on": False,
            "zorder": 5,
        }
        axes.plot([one.confidence], [one.accuracy], marker="o", markersize=size, **style)
    heading(axes, "right answers")
    axes.set_xlabel("confidence", color=SOFT, fontsize=10, labelpad=6)
    told = "; ".join(f"sure {b.confidence:.0%}, right {b.accuracy:.0%} of {b.count}" for b in bins)
    return finish(drawing, f"rel{number}", f"Reliability of {method.name}: {told}.")
