"""What was found, in small tables of text, for the terminal and for the page alike.

It knows findings; it does not know how a table is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.interpretation.ablation import Hidden
from softprompt.interpretation.inspect import PromptInspection
from softprompt.interpretation.relations import Matrix
from softprompt.interpretation.summary import (
    change,
    gap_text,
    list_of,
    movers,
    nearer,
    score_text,
    share,
    spaced,
)

__all__ = [
    "Grid",
    "ablation_grid",
    "matrix_grid",
    "mixing_grid",
    "moved_grid",
    "near_grid",
    "readings_grid",
]


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        heads: of the columns.
        rows: their cells.
        right: columns that hold numbers.
        marked: rows that stand out.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    marked: tuple[int, ...] = ()


def near_grid(found: PromptInspection) -> Grid:
    """Each position with its nearest words, its start's and what chance gives."""
    assert found.near is not None
    rows = []
    for one in found.near.positions:
        chance = one.stepped or one.random
        rows.append(
            (
                str(one.position),
                "  ".join(spaced(near.word.text) for near in one.prompt.by_cosine[:4]),
                f"{one.prompt.by_cosine[0].cosine:.2f}",
                f"{chance.cosine.low:.2f} to {chance.cosine.high:.2f}",
                "-" if one.start is None else spaced(one.start.by_cosine[0].word.text),
                "-" if one.start is None else f"{one.start.by_cosine[0].cosine:.2f}",
            )
        )
    heads = ("position", "nearest words", "cosine", "by chance", "began at", "cosine then")
    return Grid(heads, tuple(rows), (0, 2, 3, 5), tuple(nearer(found)))


def ablation_grid(hidden: Sequence[Hidden]) -> Grid:
    """What hiding each of some positions or groups does."""
    rows = tuple(
        (
            list_of(one.positions),
            gap_text(one.loss),
            "-" if one.accuracy is None else gap_text(one.accuracy, points=True),
        )
        for one in hidden
    )
    marked = tuple(number for number, one in enumerate(hidden) if one.matters)
    return Grid(("hidden", "loss, nats", "accuracy, points"), rows, (1, 2), marked)


def readings_grid(found: PromptInspection) -> Grid:
    """Readings of a prompt in words, and what each scores."""
    assert found.words is not None
    rows = [
        ("the prompt itself", "", found.words.soft, None),
        ("its nearest words", found.words.text, found.words.scores, found.words.lost),
    ]
    if found.search is not None:
        rows.append(("words searched for", found.search.text, found.search.found, found.search.lost))
    if found.wayward is not None:
        rows.append(
            ("control beside a text", found.wayward.text, found.wayward.scores, found.wayward.against)
        )
    cells = []
    for what, text, scores, against in rows:
        lost = "" if against is None else gap_text(against.nll)
        if against is not None and against.accuracy is not None:
            lost = f"{gap_text(against.accuracy, points=True)} points"
        cells.append((what, text, score_text(scores), lost))
    return Grid(("reading", "words", "score", "change"), tuple(cells), (2, 3))


def moved_grid(found: PromptInspection) -> Grid:
    """Words that gained and lost most."""
    assert found.shift is not None
    rows = tuple(
        (side, spaced(one.word.text), share(one.bare), share(one.prompted), change(one.change, points=True))
        for side, words in (("gains", found.shift.gained), ("loses", found.shift.lost))
        for one in movers(words)[:8]
    )
    return Grid(("", "word", "bare base", "behind it", "points"), rows, (2, 3, 4))


def mixing_grid(found: PromptInspection) -> Grid:
    """Scores on the way from the start."""
    assert found.mixing is not None
    ordered = sorted(found.mixing.sums, key=lambda one: float(one.name))
    rows = tuple((one.name, f"{one.scores.nll:.3f}", score_text(one.scores)) for one in ordered)
    return Grid(("share of the way", "loss, nats", "score"), rows, (0, 1, 2))


def matrix_grid(matrix: Matrix) -> Grid:
    """One kind of likeness; columns are the numbers of the rows, for names are long."""
    cells = (tuple("-" if value is None else f"{value:.2f}" for value in row) for row in matrix.values)
    numbers = tuple(map(str, range(1, len(matrix.names) + 1)))
    named = (f"{number} {name}" for number, name in zip(numbers, matrix.names, strict=True))
    rows = tuple((name, *row) for name, row in zip(named, cells, strict=True))
    return Grid((matrix.kind, *numbers), rows, tuple(range(1, len(numbers) + 1)))
