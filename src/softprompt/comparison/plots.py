"""The drawing board of a report: figures, panels, text and methods' letters, given back as SVG for a page.

It knows matplotlib and how plots look; what is drawn on it stands in the modules that import it. Colours are
placeholders that the page's style sheet fills in, so plots follow light and dark mode. Methods are told apart
by letters and shapes; no name of a method stands inside a plot. Sizes are in pixels.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softprompt.comparison.numbers import tick_text
from softprompt.comparison.svg import inline
from softprompt.comparison.table import mark
from softprompt.comparison.visible import visible
from softprompt.errors import ResourceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "HEAT",
    "INK",
    "PAPER",
    "RULE",
    "SOFT",
    "WIDTH",
    "Plot",
    "box",
    "canvas",
    "finish",
    "heading",
    "hue",
    "panel",
    "point",
    "score_ticks",
    "write",
]

WIDTH = 340
"""Of every plot."""

INK, SOFT, RULE, PAPER, HEAT = "#010101", "#010102", "#010103", "#010104", "#010105"
_HUES = [f"#0201{number:02x}" for number in range(8)]
_NAMES = {INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)", PAPER: "var(--paper)"}
_NAMES |= {HEAT: "var(--heat)"} | {hue: f"var(--m{number})" for number, hue in enumerate(_HUES)}


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


def canvas(height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ResourceError(
            "The report draws with matplotlib, which is not installed; "
            "install it with `pip install 'softprompt[compare]'`."
        ) from error
    return Figure(figsize=(WIDTH / 72, height / 72))  # the SVG backend counts 72 points to an inch


def panel(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """Axes between pixel lines, counted from the top left."""
    height = figure.get_figheight() * 72
    box = (left / WIDTH, 1 - bottom / height, (right - left) / WIDTH, (bottom - top) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(SOFT)
    axes.tick_params(length=0, labelsize=10, labelcolor=SOFT, pad=5)
    axes.grid(axis="y", color=RULE, linewidth=1)
    axes.set_axisbelow(True)
    return axes


def write(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Text at a place in data coordinates; what looks like mathematics is not read as such."""
    style: dict[str, Any] = {"fontsize": 10, "color": INK, "clip_on": False} | options
    axes.text(x, y, visible(text, keep=""), parse_math=False, **style)


def heading(axes: Axes, text: str) -> None:
    """What the y axis counts, written above it."""
    style: dict[str, Any] = {"fontsize": 10, "color": SOFT, "textcoords": "offset points"}
    axes.annotate(text, (0, 1), (-38, 8), xycoords="axes fraction", parse_math=False, **style)


def finish(figure: Figure, prefix: str, alt: str) -> str:
    """The figure as an element of a page. The same results always give the same text."""
    from matplotlib import rc_context

    figure.patch.set_visible(False)
    target = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "softprompt"}), warnings.catch_warnings():
        # the reader's fonts draw the text, so what matplotlib's own font lacks does not matter
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(target, format="svg", metadata=nothing)
    return inline(target.getvalue(), prefix, visible(alt), _NAMES)


def hue(number: int) -> str:
    return _HUES[number % len(_HUES)]


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
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    prune = "both" if inner else None
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], prune=prune))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(metric, value)))


def box(axes: Axes, corner: tuple[float, float], size: float, **style: Any) -> None:
    """A square."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(corner, size, size, **style))
