"""An inspection as one HTML file: puts sentences, tables and drawings into the template.

It knows the page; what stands on it is made elsewhere. The page asks for nothing from outside and runs
nothing, and its content security policy sees to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.atomic import write_bytes
from softprompt.interpretation import grids, plots, summary
from softprompt.interpretation.grids import Grid
from softprompt.interpretation.inspect import SECTIONS, Inspection, PromptInspection
from softprompt.interpretation.relations import Matrix
from softprompt.report.page import fill, part

__all__ = ["render", "write_page"]

_HERE = "softprompt.interpretation"


def write_page(seen: Inspection, path: Path) -> None:
    """Write the page whole or not at all.

    Raises:
        ResourceError: jinja2 or matplotlib is not installed, or the disk refuses.
    """
    write_bytes(path, render(seen).encode("utf-8", "backslashreplace"))


def render(seen: Inspection) -> str:
    """The page as the text of an HTML file."""
    prompts = []
    for tag, found in enumerate(seen.prompts):
        sections = []
        for name in SECTIONS[:-1]:
            if lines := summary.section_lines(found, name):
                sections.append(PromptSection(summary.TITLES[name], lines))
                if name not in found.left_out:
                    _show(found, name, str(tag), sections[-1])
        prompts.append((found, summary.headlines(found), summary.facts(found), sections))
    numbers = {found.inspected.name: number for number, found in enumerate(seen.prompts, 1)}
    related = []
    for matrix in (*seen.likeness, *seen.effects):
        kind = "CKA" if matrix.kind == "cka" else matrix.kind
        names = tuple((numbers[name], name) for name in matrix.names)
        related.append(HeatTable(kind, matrix.about, names, _heat(matrix)))
    return fill(
        _HERE,
        "inspect.html.j2",
        seen=seen,
        prompts=prompts,
        related=related,
        title=", ".join(found.inspected.name for found in seen.prompts),
        style=part(_HERE, "inspect.css"),
    )


# Sections ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordBar:
    """A word and how far it moved; width in percent of the widest."""

    word: str
    text: str
    detail: str
    width: float


@dataclass
class PromptSection:
    """One part of what was found: sentences, drawings, tables, texts, words that moved."""

    title: str
    lines: Sequence[str]
    drawings: Sequence[plots.Drawing] = ()
    tables: Sequence[tuple[str, Grid]] = ()
    texts: Sequence[tuple[str, str]] = ()
    bars: Sequence[tuple[str, Sequence[WordBar]]] = ()


def _show(found: PromptInspection, name: str, tag: str, section: PromptSection) -> None:
    """Enter what a section shows beside its sentences; the tag keeps ids of drawings apart."""
    if name == "near":
        against = (
            "the start moved as far as the position went, in random directions"
            if found.inspected.start is not None
            else "random vectors of its norm"
        )
        about = (
            "Nearest words by cosine after the mean word is taken off. By chance: the middle 95% of what the "
            f"nearest word's cosine is for {against}. Marked positions lie nearer than that."
        )
        section.tables = [(about, grids.near_grid(found))]
    elif name == "drift" and found.prefix_drift is not None:
        section.drawings = [plots.prefix_drift_drawing(found.prefix_drift, tag)]
    elif name == "drift" and found.drift is not None and found.map is not None:
        norms = plots.drift_drawing(found.drift, found.inspected.learnt, tag)
        section.drawings = [norms, plots.map_drawing(found.map, tag)]
    elif name == "ablation" and found.ablation is not None:
        section.drawings = [plots.ablation_drawing(found.ablation.each, tag)]
        quarters = "Quarters of the prompt hidden together. Marked ones change the loss beyond its interval."
        together = "Groups of positions that lie together, hidden together."
        tables = ((quarters, found.ablation.groups), (together, found.ablation.clusters))
        section.tables = [(about, grids.ablation_grid(hidden)) for about, hidden in tables if hidden]
    elif name == "attention" and found.attention is not None:
        section.drawings = [plots.attention_drawing(found.attention, tag)]
    elif name == "words":
        about = "Change: the reading less the prompt, on the same rows, with its 95% interval."
        section.tables = [(about, grids.readings_grid(found))]
    elif name == "says" and found.shift is not None:
        sides = (("Gains", found.shift.gained), ("Loses", found.shift.lost))
        widest = max((abs(one.change) for _, moved in sides for one in moved), default=1.0)
        for side, moved in sides:
            bars = [
                WordBar(
                    summary.spaced(one.word.text),
                    f"{summary.change(one.change, points=True)} points",
                    f"{summary.share(one.bare)} to {summary.share(one.prompted)}",
                    100 * abs(one.change) / widest,
                )
                for one in summary.movers(moved)[:8]
            ]
            section.bars = [*section.bars, (side, bars)]
        if (speech := found.speech) is not None:
            begins = " behind a line break" if speech.opening == "\n" else ""
            drawn = f"Drawn at temperature {speech.temperature:g}"
            section.texts = [
                (f"The likeliest words{begins}", speech.greedy),
                *((drawn, text) for text in speech.samples),
            ]
    elif name == "mixing" and found.mixing is not None:
        section.drawings = [plots.mixing_drawing(found.mixing, tag)]


# Relations ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeatCell:
    """A number and how dark it is, from 0 to 1; no number where two cannot be compared."""

    text: str
    shade: float
    interval: str


@dataclass(frozen=True)
class HeatTable:
    """A matrix as the template takes it; names with their numbers on the page."""

    kind: str
    about: str
    names: tuple[tuple[int, str], ...]
    rows: list[list[HeatCell]]


def _heat(matrix: Matrix) -> list[list[HeatCell]]:
    """Shades run over the pairs of different prompts, for what one has with itself says nothing."""
    pairs = [v for i, row in enumerate(matrix.values) for v in row[:i] if v is not None]
    low, high = (min(pairs), max(pairs)) if pairs else (0.0, 1.0)
    span = max(high - low, 1e-9)

    def cell(i: int, j: int, value: float | None) -> HeatCell:
        if i == j or value is None:
            return HeatCell("·", 0.0, "")
        interval = ""
        if matrix.low is not None and matrix.high is not None:
            interval = f"{matrix.low[i][j]:.2f} to {matrix.high[i][j]:.2f}"
        return HeatCell(f"{value:.2f}".replace("-", "\N{MINUS SIGN}"), (value - low) / span, interval)

    return [[cell(i, j, value) for j, value in enumerate(row)] for i, row in enumerate(matrix.values)]
