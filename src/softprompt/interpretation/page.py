"""An inspection as one HTML file: puts sentences, tables and drawings into the template.

It knows the page; what stands on it is made elsewhere. The page asks for nothing from outside and runs
nothing, and its content security policy sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from softprompt.atomic import write_bytes
from softprompt.interpretation import grids, plots, summary
from softprompt.interpretation.grids import Grid
from softprompt.interpretation.inspect import SECTIONS, Findings, Inspection
from softprompt.interpretation.relations import Matrix
from softprompt.interpretation.says import Moved
from softprompt.report.page import Trusted, fill, part

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
    prompts = [
        (found, summary.headlines(found), summary.facts(found), _sections(found, str(number)))
        for number, found in enumerate(seen.prompts)
    ]
    return fill(
        _HERE,
        "inspect.html.j2",
        seen=seen,
        prompts=prompts,
        related=_related(seen),
        title=", ".join(found.subject.name for found in seen.prompts),
        style=part(_HERE, "inspect.css"),
    )


# Sections ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    """A drawing as the template takes it."""

    svg: Trusted
    title: str
    note: str


@dataclass(frozen=True)
class _Bar:
    """A word and how far it moved; width in percent of the widest."""

    word: str
    text: str
    detail: str
    width: float


@dataclass(frozen=True)
class _Section:
    """One part of what was found: sentences, drawings, tables, texts, words that moved."""

    name: str
    title: str
    lines: Sequence[str]
    drawings: Sequence[_Drawn] = ()
    tables: Sequence[tuple[str, Grid]] = ()
    texts: Sequence[tuple[str, str]] = ()
    bars: Sequence[tuple[str, Sequence[_Bar]]] = field(default=())


@dataclass(frozen=True)
class _Parts:
    """What a section shows beside its sentences."""

    drawings: tuple[plots.Drawing, ...] = ()
    tables: tuple[tuple[str, Grid], ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    bars: tuple[tuple[str, Sequence[_Bar]], ...] = ()


def _sections(found: Findings, tag: str) -> list[_Section]:
    sections = []
    for name in SECTIONS:
        lines = summary.section_lines(found, name) if name in _SHOWS else []
        if not lines:
            continue
        parts = _Parts() if name in found.left_out else _SHOWS[name](found, tag)
        drawings = [_Drawn(Trusted(d.svg), d.title, d.note) for d in parts.drawings]
        title = summary.TITLES[name]
        sections.append(_Section(name, title, lines, drawings, parts.tables, parts.texts, parts.bars))
    return sections


def _near(found: Findings, tag: str) -> _Parts:
    against = (
        "the start moved as far as the position went, in random directions"
        if found.subject.start is not None
        else "random vectors of its norm"
    )
    about = (
        "Nearest words by cosine after the mean word is taken off. By chance: the middle 95% of what the "
        f"nearest word's cosine is for {against}. Marked positions lie nearer than that."
    )
    return _Parts(tables=((about, grids.near_grid(found)),))


def _drift(found: Findings, tag: str) -> _Parts:
    if found.prefix_drift is not None:
        return _Parts((plots.prefix_drift_drawing(found.prefix_drift, tag),))
    assert found.drift is not None
    assert found.map is not None
    return _Parts(
        (
            plots.drift_drawing(found.drift, found.subject.learnt, tag),
            plots.map_drawing(found.map, tag),
        )
    )


def _ablation(found: Findings, tag: str) -> _Parts:
    assert found.ablation is not None
    tables = []
    if found.ablation.groups:
        about = "Quarters of the prompt hidden together. Marked ones change the loss beyond its interval."
        tables.append((about, grids.ablation_grid(found.ablation.groups)))
    if found.ablation.clusters:
        about = "Groups of positions that lie together, hidden together."
        tables.append((about, grids.ablation_grid(found.ablation.clusters)))
    return _Parts((plots.ablation_drawing(found.ablation.each, tag),), tuple(tables))


def _attention(found: Findings, tag: str) -> _Parts:
    assert found.attention is not None
    return _Parts((plots.attention_drawing(found.attention, tag),))


def _words(found: Findings, tag: str) -> _Parts:
    about = "Change: the reading less the prompt, on the same rows, with its 95% interval."
    return _Parts(tables=((about, grids.readings_grid(found)),))


def _says(found: Findings, tag: str) -> _Parts:
    assert found.shift is not None
    sides = (("Gains", found.shift.gained), ("Loses", found.shift.lost))
    widest = max((abs(one.change) for _, moved in sides for one in moved), default=1.0)
    bars = tuple((name, _bars(moved, widest)) for name, moved in sides)
    about = found.speech
    if about is None:
        return _Parts(bars=bars)
    begins = " behind a line break" if about.opening == "\n" else ""
    texts = [(f"The likeliest words{begins}", about.greedy)]
    texts += [(f"Drawn at temperature {about.temperature:g}", text) for text in about.samples]
    return _Parts(texts=tuple(texts), bars=bars)


def _bars(words: Sequence[Moved], widest: float) -> list[_Bar]:
    return [
        _Bar(
            summary.spaced(one.word.text),
            f"{summary.change(one.change, points=True)} points",
            f"{summary.share(one.bare)} to {summary.share(one.prompted)}",
            100 * abs(one.change) / widest,
        )
        for one in summary.movers(words)[:8]
    ]


def _mixing(found: Findings, tag: str) -> _Parts:
    assert found.mixing is not None
    return _Parts((plots.mixing_drawing(found.mixing, tag),))


_SHOWS: dict[str, Callable[[Findings, str], _Parts]] = {
    "near": _near,
    "drift": _drift,
    "ablation": _ablation,
    "attention": _attention,
    "words": _words,
    "says": _says,
    "mixing": _mixing,
}


# Relations ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """A number and how dark it is, from 0 to 1; no number where two cannot be compared."""

    text: str
    shade: float
    interval: str


@dataclass(frozen=True)
class _Heat:
    """A matrix as the template takes it; names with their numbers on the page."""

    kind: str
    about: str
    names: tuple[tuple[int, str], ...]
    rows: list[list[_Cell]]


_KINDS = {"cka": "CKA"}


def _related(seen: Inspection) -> list[_Heat]:
    numbers = {found.subject.name: number for number, found in enumerate(seen.prompts, 1)}
    return [
        _Heat(_KINDS.get(m.kind, m.kind), m.about, tuple((numbers[n], n) for n in m.names), _heat(m))
        for m in (*seen.likeness, *seen.effects)
    ]


def _heat(matrix: Matrix) -> list[list[_Cell]]:
    """Shades run over the pairs of different prompts, for what one has with itself says nothing."""
    pairs = [v for i, row in enumerate(matrix.values) for v in row[:i] if v is not None]
    low, high = (min(pairs), max(pairs)) if pairs else (0.0, 1.0)
    span = max(high - low, 1e-9)

    def cell(i: int, j: int, value: float | None) -> _Cell:
        if i == j or value is None:
            return _Cell("·", 0.0, "")
        interval = ""
        if matrix.low is not None and matrix.high is not None:
            interval = f"{matrix.low[i][j]:.2f} to {matrix.high[i][j]:.2f}"
        return _Cell(f"{value:.2f}".replace("-", "\N{MINUS SIGN}"), (value - low) / span, interval)

    return [[cell(i, j, value) for j, value in enumerate(row)] for i, row in enumerate(matrix.values)]
