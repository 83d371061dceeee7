"""What was kept of a long text, as one HTML file: the curve against positions, tables, what was lost.

It knows figures and the drawing board; it does not know how anything was learnt or measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softprompt.atomic import write_bytes
from softprompt.distillation.figures import Figures, Kept, TimeCosts
from softprompt.evaluation.intervals import Value
from softprompt.report.board import INK, MARK, SOFT, canvas, finish, heading, panel, ticks, write
from softprompt.report.page import Trusted, fill, part

__all__ = ["render", "write_page"]

_HERE = "softprompt.distillation"
_WIDE, _HIGH = 760, 330
_CURVES = {
    "learnt": ("learnt", MARK, "o", "-"),
    "start": ("the same, untrained", INK, "s", "--"),
    "cut": ("the text cut to that length", SOFT, "^", ":"),
}
"""By role: what its curve is called, its colour, mark and line."""


_COLUMNS = {
    "kept": "kept",
    "likeliest": "likeliest token",
    "same": "same answer",
    "rouge": "ROUGE-L",
    "numbers": "numbers kept",
    "accuracy": "right",
}
"""Values of a row that are shown where any has them, and what their columns are called."""


def write_page(figures: Figures, path: Path) -> None:
    """Write the page whole or not at all.

    Raises:
        ResourceError: jinja2 or matplotlib is not installed, or the disk refuses.
    """
    write_bytes(path, render(figures).encode("utf-8", "backslashreplace"))


def render(figures: Figures) -> str:
    """The page as the text of an HTML file."""
    best = max(figures.of("learnt"), key=lambda row: row.kept.value)
    shown = [name for name in _COLUMNS if any(getattr(row, name) is not None for row in figures.rows)]
    heads = ["in front of a question", "positions", "memory", *(_COLUMNS[name] for name in shown)]
    return fill(
        _HERE,
        "distil.html.j2",
        figures=figures,
        headline=_headline(figures, best),
        curve=_curve(figures),
        heads=heads,
        rows=[(row.role, _cells(row, shown)) for row in figures.rows],
        costs=[(name, _cost(figures.costs, name)) for name in figures.costs.prompts],
        lost=[
            (row.name, [one for one in figures.lost if one.prompt == row.name])
            for row in figures.of("learnt")
        ],
        style=part(_HERE, "distil.css"),
    )


def _headline(figures: Figures, best: Kept) -> str:
    costs = figures.costs
    faster = costs.read / costs.prompts[best.name]
    even = costs.break_even(best.name)
    pays = "" if even is None else f" It has paid for itself after {even:,} requests."
    return (
        f"{best.positions} positions keep {_interval(best.kept)} of what {figures.teacher} changes in the "
        f"answers, and reach the first token {faster:.1f} times as fast as reading it each time.{pays}"
    )


def _cells(row: Kept, shown: Sequence[str]) -> list[tuple[str, str]]:
    """One line of the table: what a cell says, and its interval."""
    found = [(row.name, ""), (f"{row.positions:,}", ""), (_bytes(row.kilobytes), "")]
    return found + [_split(getattr(row, name)) for name in shown]


def _split(value: Value | None) -> tuple[str, str]:
    said, _, interval = _interval(value).partition(" (")
    return said, interval.removesuffix(")")


def _cost(costs: TimeCosts, name: str) -> list[str]:
    even = costs.break_even(name)
    took = costs.prompts[name]
    return [
        _milliseconds(took),
        f"{costs.read / took:.1f}x",
        f"{costs.stored / took:.1f}x",
        "never" if even is None else f"{even:,}",
    ]


def _interval(value: Value | None) -> str:
    if value is None:
        return "-"
    low, high = 100 * value.low, 100 * value.high
    return f"{100 * value.value:.1f}% ({low:.1f} to {high:.1f})".replace("-", "\N{MINUS SIGN}")


def _bytes(kilobytes: float) -> str:
    return f"{kilobytes:,.0f} kB" if kilobytes < 1024 else f"{kilobytes / 1024:,.1f} MB"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"


def _curve(figures: Figures) -> Trusted:
    """Kept share against positions, with its intervals; lengths are on a logarithmic axis."""
    figure = canvas(_WIDE, _HIGH)
    axes = panel(figure, 54, 30, _WIDE - 190, _HIGH - 46)
    lengths = [row.positions for row in figures.of("learnt")]
    lowest = 0.0
    ends: list[tuple[float, str, str]] = []
    for role, (name, colour, mark, line) in _CURVES.items():
        rows = figures.of(role)
        if not rows:
            continue
        places, shares = [row.positions for row in rows], [row.kept.value for row in rows]
        lowest = min(lowest, *shares)
        style: dict[str, Any] = {
            "color": colour,
            "marker": mark,
            "linestyle": line,
            "linewidth": 2,
            "markersize": 6,
        }
        axes.plot(places, shares, zorder=3, **style)
        for row in rows:
            axes.plot(
                [row.positions] * 2, [row.kept.low, row.kept.high], color=colour, linewidth=1.2, zorder=2
            )
        ends.append((shares[-1], name, colour))
    floor = max(-1.0, lowest - 0.05)
    axes.set_ylim(floor, 1.04)
    if len(lengths) > 1:
        axes.set_xscale("log", base=2)
    else:
        axes.set_xlim(lengths[0] / 2, lengths[0] * 2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    ticks(axes.yaxis, lambda share: f"{100 * share:.0f}%")
    heading(axes, "kept of the text")
    last, right = None, axes.get_xlim()[1]
    for share, name, colour in sorted(ends, reverse=True):
        height = max(share, floor) if last is None else min(max(share, floor), last - 0.07 * (1.04 - floor))
        write(axes, right, height, f"  {name}", color=colour, va="center")
        last = height
    axes.set_xlabel("positions", color=SOFT, fontsize=10)
    said = ", ".join(f"{row.positions} positions {_interval(row.kept)}" for row in figures.of("learnt"))
    return Trusted(finish(figure, "kept", f"Share kept against positions: {said}"))
