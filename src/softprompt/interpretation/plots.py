"""The drawings of an inspection, as SVG for a page.

It knows findings and the drawing board; it does not know the page. Nothing is told by colour alone, and no
stranger's text stands in a drawing. Each takes a tag that keeps its ids apart from those of others on a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softprompt.interpretation.ablation import Hidden
from softprompt.interpretation.arithmetic import Mixture
from softprompt.interpretation.attention import Attention
from softprompt.interpretation.drift import Chart, Drift, PrefixDrift
from softprompt.report.board import (
    HEAT,
    INK,
    MARK,
    PAPER,
    RULE,
    SOFT,
    area,
    bare,
    box,
    canvas,
    dots,
    finish,
    heading,
    panel,
    tiles,
    write,
)
from softprompt.report.page import Trusted

if TYPE_CHECKING:
    from softprompt.report.board import Axes, Figure

__all__ = [
    "Drawing",
    "ablation_drawing",
    "attention_drawing",
    "drift_drawing",
    "map_drawing",
    "mixing_drawing",
    "prefix_drift_drawing",
]

_SHADES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Shares of attention at which the shade grows darker."""
_WIDE = 760


@dataclass(frozen=True)
class Drawing:
    """One drawing.

    Attributes:
        svg: an element for a page.
        title: what it shows.
        note: how to read it.
    """

    svg: Trusted
    title: str
    note: str


# The drawings ------------------------------------------------------------------------------------


def drift_drawing(drift: Drift, learnt: Sequence[int], tag: str = "") -> Drawing:
    """Norms now and then against the words', and how far each position went."""
    about, count = drift.positions, len(drift.positions)
    travelled = any(p.relative is not None for p in about)
    figure = canvas(_WIDE, 330 if travelled else 210)
    axes = _panel(figure, 54, 26, _WIDE - 16, 180, "norm")
    marks = drift.vocabulary_norms
    axes.axhspan(marks[5], marks[95], color=RULE, alpha=0.55, linewidth=0, zorder=0)
    axes.axhline(marks[50], color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for p in about:
        if p.start_norm is not None and p.position in learnt:
            axes.plot([p.position] * 2, [p.start_norm, p.norm], color=INK, linewidth=1.2, zorder=2)
            axes.plot([p.position], [p.start_norm], "o", color=PAPER, markeredgecolor=INK, zorder=3, ms=7)
        shape = "o" if p.position in learnt else "x"
        axes.plot([p.position], [p.norm], shape, color=MARK, markeredgecolor=MARK, ms=7, zorder=4)
    _positions(axes, count)
    if travelled:
        below = _panel(figure, 54, 226, _WIDE - 16, 300, "distance from its start")
        below.bar(range(count), [p.relative or 0.0 for p in about], width=0.62, color=MARK)
        _positions(below, count)
    note = "Discs are the positions now, rings where they began; crosses are words, which do not move. "
    note += "The band holds the middle 90% of the vocabulary's norms, the dashed line their median."
    if travelled:
        note += " Bars: distance over the start's own distance from the mean word."
    return _drawn(figure, f"drift{tag}", "Norm of each position, now and at its start", note)


def prefix_drift_drawing(drift: PrefixDrift, tag: str = "") -> Drawing:
    """How far keys and values of each layer went, and each position over all layers."""
    figure = canvas(_WIDE, 250)
    axes = _panel(figure, 54, 26, 380, 210, "change, by layer")
    for side, style, shape in (("keys", "-", "o"), ("values", (0, (4, 2)), "s")):
        layers = [layer for layer in drift.layers if layer.side == side]
        points = [layer.layer for layer in layers], [layer.relative for layer in layers]
        axes.plot(*points, linestyle=style, marker=shape, color=MARK, ms=4, linewidth=1.5, label=side)
    axes.legend(loc="upper right", frameon=False, fontsize=10, labelcolor=INK, handlelength=3)
    values = [layer.relative for layer in drift.layers]
    if values and min(values) > 0:  # in powers of ten, said in percent
        axes.set_yscale("log")
        low, high = 0.8 * min(values), 1.6 * max(values)
        powers = [m for e in range(-6, 4) for m in (10.0**e, 3 * 10.0**e) if low <= m <= high]
        ticks = powers or [max(values)]
        axes.set_yticks(ticks, [f"{100 * tick:.2g}%" for tick in ticks])
        axes.set_yticks([], minor=True)
        axes.set_ylim(low, high)
    else:
        axes.set_ylim(bottom=0)
    below = _panel(figure, 474, 26, _WIDE - 16, 210, "change, by position")
    below.bar(range(len(drift.positions)), drift.positions, width=0.62, color=MARK)
    _positions(below, len(drift.positions), room=270)
    note = "Norm of the change over the norm of the start. Discs on a solid line are keys, squares values."
    return _drawn(figure, f"kv{tag}", "How far keys and values went", note)


def map_drawing(chart: Chart, tag: str = "") -> Drawing:
    """Words, start and prompt in two dimensions."""
    figure = canvas(_WIDE, 460)
    axes = panel(figure, 20, 12, _WIDE - 20, 430)
    bare(axes)
    dots(axes, chart.word_points)
    for number, (x, y) in enumerate(chart.prompt):
        if chart.start:
            begun = chart.start[number]
            axes.plot([begun[0], x], [begun[1], y], color=INK, linewidth=0.8, alpha=0.6, zorder=2)
            axes.plot([begun[0]], [begun[1]], "o", color=PAPER, markeredgecolor=INK, ms=5, zorder=3)
        axes.plot([x], [y], "o", color=MARK, markeredgecolor=PAPER, ms=9, zorder=4)
    place: dict[str, Any] = {"textcoords": "offset points", "zorder": 5, "fontsize": 9, "color": INK}
    for number, point in enumerate(chart.prompt):  # above all discs
        axes.annotate(str(number), point, (6, 4), parse_math=False, **place)
    axes.margins(0.04)
    if chart.explained is None:
        note = "UMAP keeps who is near whom and bends everything else: distances across it mean nothing. "
    else:
        note = (
            f"The two widest axes of the vocabulary, {100 * sum(chart.explained):.1f}% of how words vary; "
            f"{100 * (chart.kept or 0.0):.1f}% of the prompt's distance from the mean word lies in it. "
        )
    note += f"Dots are {len(chart.words):,} words, rings the start, numbered discs the prompt."
    return _drawn(figure, f"map{tag}", "The prompt among words in two dimensions", note)


def ablation_drawing(each: Sequence[Hidden], tag: str = "") -> Drawing:
    """What hiding each position changes, with intervals."""
    accuracies = [one.accuracy for one in each if one.accuracy is not None]
    figure = canvas(_WIDE, 380 if accuracies else 210)
    panels = [("loss without it, nats", [one.loss for one in each], 1.0, 26)]
    if accuracies:
        panels.append(("accuracy without it, points", accuracies, 100.0, 216))
    for title, gaps, unit, top in panels:
        axes = _panel(figure, 54, top, _WIDE - 16, top + 130, title)
        axes.axhline(0, color=SOFT, linewidth=1, zorder=1)
        for place, gap in enumerate(gaps):
            clear = gap.low > 0 or gap.high < 0
            low, mid, high = (unit * value for value in (gap.low, gap.difference, gap.high))
            axes.plot([place, place], [low, high], color=INK, linewidth=1.3, zorder=2)
            face = MARK if clear else PAPER
            axes.plot([place], [mid], "o", color=face, markeredgecolor=MARK, ms=7.5, mew=1.5, zorder=3)
        _positions(axes, len(each))
    note = (
        "The change when one position is hidden, with its 95% interval over rows; everything else keeps its "
        "place. Filled discs differ from 0 by that interval. Above 0 the loss is worse; below 0 the accuracy."
    )
    return _drawn(figure, f"abl{tag}", "Change of the score without each position", note)


def attention_drawing(about: Attention, tag: str = "") -> Drawing:
    """The last token's attention to each position, layer by layer, and its mean over layers."""
    layers, count = about.layers, len(about.last[0])
    row = max(7.0, min(14.0, 420 / layers))
    middle = 126 + row * layers
    figure = canvas(_WIDE, middle + 62)
    top = _panel(figure, 54, 26, _WIDE - 16, 96, "share, mean over layers")
    top.bar(range(count), about.positions(), width=0.62, color=MARK)
    top.axhline(about.even_last, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    _positions(top, count)
    top.set_xticklabels([])
    axes = _panel(figure, 54, 126, _WIDE - 16, middle, "layer")
    axes.grid(False)
    by_shade: dict[int, list[tuple[int, int]]] = {}  # a tile for each number, darker for a greater one
    for y, shares in enumerate(about.last):
        for x, value in enumerate(shares):
            by_shade.setdefault(sum(value >= edge for edge in _SHADES), []).append((x, y))
    for shade, places in sorted(by_shade.items()):
        tiles(axes, places, facecolor=HEAT, alpha=_opacity(shade))
    _positions(axes, count)
    axes.set_ylim(layers - 0.5, -0.5)
    axes.set_yticks(range(0, layers, 5 if layers > 10 else 1))
    key = area(figure, 54, middle + 34, 614, middle + 56)
    key.set_axis_off()
    key.set(xlim=(0, 560), ylim=(0, 22))
    edges = [f"{100 * edge:g}%" for edge in _SHADES]
    for shade, word in enumerate((f"below {edges[0]}", *(f"from {edge}" for edge in edges))):
        box(key, (shade * 80, 6), 14, 12, facecolor=HEAT, alpha=_opacity(shade), linewidth=0)
        write(key, shade * 80 + 19, 8, word, fontsize=9, color=SOFT)
    note = (
        "The attention of a row's last token, mean over heads and rows; darker is more. The dashed line is "
        "what each position would get if the token looked at everything it sees alike."
    )
    return _drawn(figure, f"att{tag}", "Attention of the last token by layer and position", note)


def mixing_drawing(mixture: Mixture, tag: str = "") -> Drawing:
    """The score on the way from the start through the prompt."""
    sums = sorted(mixture.sums, key=lambda one: float(one.name))
    points = [float(one.name) for one in sums]
    losses = [(one.scores.nll, *one.scores.nll_interval) for one in sums]
    panels = [("loss, nats", losses)]
    shares = [(one.scores.accuracy, one.scores.accuracy_interval) for one in sums]
    found = [(100 * a, 100 * i[0], 100 * i[1]) for a, i in shares if a is not None and i is not None]
    if found:
        panels.append(("accuracy, %", found))
    figure = canvas(_WIDE, 220)
    for number, (title, values) in enumerate(panels):
        left = 54 + number * 378
        axes = _panel(figure, left, 26, left + 312, 184, title)
        axes.plot(points, [v[0] for v in values], color=MARK, linewidth=1.5)
        for x, (value, low, high) in zip(points, values, strict=True):
            axes.plot([x, x], [low, high], color=INK, linewidth=1.2, zorder=3)
            axes.plot([x], [value], "o", color=MARK, ms=6.5, zorder=4)
        for x, word in ((0, "start"), (1, "prompt")):
            axes.axvline(x, color=RULE, linewidth=1, zorder=0)
            write(axes, x, -0.17, word, ha="center", transform=axes.get_xaxis_transform(), color=SOFT)
        axes.set_xticks([0, 0.5, 1, 1.5, 2], ["", "½", "", "1½", "2"])
    note = "Each point is start + share x (prompt - start), with 95% intervals over rows."
    return _drawn(figure, f"mix{tag}", "Scores on the way from the start", note)


# What they share ----------------------------------------------------------------------------------


def _panel(figure: Figure, left: float, top: float, right: float, bottom: float, title: str) -> Axes:
    """A panel with what it counts above it."""
    axes = panel(figure, left, top, right, bottom)
    heading(axes, title)
    return axes


def _positions(axes: Axes, count: int, room: float = 690) -> None:
    """Positions along an x axis of ``room`` pixels."""
    step = next((s for s in (1, 2, 5, 10, 25, 50) if 20 * count / s <= room), 100)
    axes.set_xlim(-0.7, count - 0.3)
    axes.set_xticks(range(0, count, step))


def _opacity(shade: int) -> float:
    return 0.05 + 0.95 * shade / len(_SHADES)


def _drawn(figure: Figure, prefix: str, title: str, note: str) -> Drawing:
    return Drawing(Trusted(finish(figure, prefix, title)), title, note)
