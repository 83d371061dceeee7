"""What all plots of a report share: their width, a method's point with its letter, ticks of scores.

Methods are told apart by letters and shapes; no name of a method stands inside a plot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softprompt.comparison.table import mark
from softprompt.numbers import tick_text
from softprompt.report.board import PAPER, hue, ticks

if TYPE_CHECKING:
    from softprompt.report.board import Axes, Axis

__all__ = ["WIDTH", "Plot", "point", "score_ticks"]

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


def point(axes: Axes, x: float, y: float, number: int, trained: bool) -> None:
    """A method's point, a disc if it learnt something and a square if not, with its letter beside it."""
    shape = "o" if trained else "s"
    style: dict[str, Any] = {"markersize": 8, "markeredgecolor": PAPER, "markeredgewidth": 1, "zorder": 5}
    axes.plot([x], [y], marker=shape, color=hue(number), clip_on=False, **style)
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center_baseline", "zorder": 6}
    beside |= {"color": hue(number), "fontsize": 11, "weight": "bold", "parse_math": False}
    axes.annotate(mark(number), (x, y), (6, 0), **beside)


def score_ticks(axis: Axis, metric: str, *, inner: bool = False) -> None:
    """Round scores along an axis; with ``inner`` none at its ends."""
    ticks(axis, lambda value: tick_text(metric, value), inner=inner)
