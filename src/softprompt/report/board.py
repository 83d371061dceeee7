"""The drawing board of a page: figures, panels, text and shapes, given back as SVG.

It knows matplotlib and how drawings look; what is drawn stands in the modules that import it. Colours are
placeholders that the page's style sheet fills in, so drawings follow light and dark. Sizes are in pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from softprompt.harmless import visible
from softprompt.packages import require
from softprompt.report.svg import inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.axis import Axis as Axis
    from matplotlib.figure import Figure as Figure

__all__ = [
    "HEAT",
    "INK",
    "MARK",
    "PAPER",
    "RULE",
    "SOFT",
    "area",
    "bare",
    "box",
    "canvas",
    "dots",
    "finish",
    "heading",
    "hue",
    "panel",
    "ticks",
    "tiles",
    "write",
]

INK, SOFT, RULE, PAPER, HEAT, MARK = (f"#0101{number:02x}" for number in range(6))
"""Text and lines, text in the background, faint lines, the page, what grows darker, what is shown."""
_HUES = [f"#0201{number:02x}" for number in range(9)]
_VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", PAPER: "paper", HEAT: "heat", MARK: "mark"}
_NAMES = {colour: f"var(--{name})" for colour, name in _VARIABLES.items()}
_NAMES |= {hue: f"var(--m{number})" for number, hue in enumerate(_HUES)}
_DOTS = 72
"""The SVG backend counts so many points to an inch."""


def hue(number: int) -> str:
    """One of nine colours that can be told apart."""
    return _HUES[number % len(_HUES)]


# Figures and their panels ------------------------------------------------------------------------


def canvas(width: float, height: float) -> Figure:
    """An empty figure.

    Raises:
        ResourceError: matplotlib is not installed.
    """
    require("an HTML page")
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _DOTS, height / _DOTS))


def area(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """Axes between pixel lines, counted from the top left."""
    width, height = (_DOTS * size for size in figure.get_size_inches())
    return figure.add_axes(
        (left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height)
    )


def panel(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """An area with a line below it, faint lines across and quiet ticks."""
    axes = area(figure, left, top, right, bottom)
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(SOFT)
    axes.tick_params(length=0, labelsize=10, labelcolor=SOFT, pad=5)
    axes.grid(axis="y", color=RULE, linewidth=1)
    axes.set_axisbelow(True)
    return axes


def bare(axes: Axes) -> None:
    """Take lines and ticks off again."""
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set(xticks=[], yticks=[])


def finish(figure: Figure, prefix: str, alt: str) -> str:
    """The figure as an element of a page; the same drawing always gives the same text.

    Args:
        figure: what was drawn.
        prefix: begins every id, so that drawings on one page do not mix.
        alt: what it shows, for those who do not see it.
    """
    from matplotlib import rc_context

    figure.patch.set_visible(False)
    target = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "softprompt"}), warnings.catch_warnings():
        # the reader's fonts draw the text, so what matplotlib's own font lacks does not matter
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(target, format="svg", metadata=nothing)
    return inline(target.getvalue(), prefix, visible(alt), _NAMES)


# What stands in a panel --------------------------------------------------------------------------


def write(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Text at a place in data coordinates; what looks like mathematics is not read as such."""
    style: dict[str, Any] = {"fontsize": 10, "color": INK, "clip_on": False} | options
    axes.text(x, y, visible(text, keep=""), parse_math=False, **style)


def heading(axes: Axes, text: str) -> None:
    """What the y axis counts, written above it."""
    style: dict[str, Any] = {"fontsize": 10, "color": SOFT, "textcoords": "offset points"}
    axes.annotate(text, (0, 1), (-38, 8), xycoords="axes fraction", parse_math=False, **style)


def ticks(axis: Axis, text: Callable[[float], str], *, inner: bool = False) -> None:
    """Round numbers along an axis, said by ``text``; with ``inner`` none at its ends."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    prune = "both" if inner else None
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], prune=prune))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def box(axes: Axes, corner: tuple[float, float], width: float, height: float, **style: Any) -> None:
    """A rectangle from its corner."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(corner, width, height, **style))


def dots(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Many small dots as one path: lines of no length with round ends."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = [point for point in points for _ in (0, 1)]
    style: dict[str, Any] = {"edgecolor": SOFT, "facecolor": "none", "linewidth": 2.6, "alpha": 0.5}
    path = Path(corners, [Path.MOVETO, Path.LINETO] * len(points))
    path.should_simplify = False  # it would leave out lines of no length
    axes.add_patch(PathPatch(path, capstyle="round", zorder=1, **style))
    axes.update_datalim(points)


def tiles(axes: Axes, places: Sequence[tuple[int, int]], **style: Any) -> None:
    """Cells of a table, each around its (column, row), as one path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    edges = ((-0.48, -0.46), (0.48, -0.46), (0.48, 0.46), (-0.48, 0.46), (-0.48, -0.46))
    corners = [(x + dx, y + dy) for x, y in places for dx, dy in edges]
    axes.add_patch(PathPatch(Path(corners, codes * len(places)), **{"linewidth": 0} | style))
