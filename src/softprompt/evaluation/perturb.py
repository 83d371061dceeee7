"""Small changes of a text that should not change its answer, and the scores under all of them.

It knows tables and text; it does not know templates, tokens or models. The changes are in the manner of HELM
(Liang et al. 2022): misspellings, case, and white space.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from softprompt.data.table import Table
from softprompt.errors import ConfigError
from softprompt.evaluation.intervals import Value, average

__all__ = ["KINDS", "Robustness", "perturbed", "robustness"]

T = TypeVar("T")

Draw = Callable[[], float]
"""A number from 0 up to 1. Only ``random.random()`` is promised to stay the same in every Python version."""

_WORD = re.compile(r"[^\W\d_]{4,}")
_MARK = r"(?=[,.;:!?]+(?:\s|$))"
_GAP = re.compile(rf"(?P<before_mark>(?<=\S) {_MARK})|(?P<blank>(?<=\S) (?=\S))|(?P<no_blank>(?<=\w){_MARK})")
_MISSPELT = 0.1
_SPACED = 0.2


def perturbed(table: Table, columns: Sequence[str], kind: str, seed: int) -> Table:
    """The table with the text of some columns changed; everything else stays as it is.

    A change depends on the seed, the row's number, the column and the text, on nothing else.

    * ``typos``: a letter swapped with the next, dropped or doubled in 1 word out of 10, at least in one, of
      those with four letters or more; never the first letter.
    * ``case``: all letters lower, or upper where they are all lower already.
    * ``spacing``: 1 gap out of 5, at least one: a blank between words becomes two or three, one before a
      punctuation mark is doubled or left out, and one is put in where none is.

    A text that has no such word, letter or gap stays as it is.

    Args:
        table: the rows.
        columns: what to change, as a rule the input fields of a template. Values other than text are kept.
        kind: one of ``KINDS``.
        seed: the draw.

    Raises:
        ConfigError: no such kind.
        DataError: no row has such a column.
    """
    change = _CHANGES.get(kind)
    if change is None:
        raise ConfigError(f"There is no perturbation {kind!r}: choose among {', '.join(KINDS)}.")
    table.require_columns(tuple(columns))
    rows = []
    for number, row in enumerate(table.rows):
        changed = dict(row)
        for column in columns:
            value = row.get(column)
            if isinstance(value, str):
                changed[column] = change(value, random.Random(f"{kind}:{seed}:{number}:{column}").random)
        rows.append(changed)
    return replace(table, rows=tuple(rows), origin=f"{table.origin} ({kind}, seed {seed})")


def _typos(text: str, draw: Draw) -> str:
    words = list(_WORD.finditer(text))
    # From the end, so that the places of the others stay.
    for word in reversed(_picked(words, len(text.split()) * _MISSPELT, draw)):
        text = text[: word.start()] + _misspelt(word.group(), draw) + text[word.end() :]
    return text


def _misspelt(word: str, draw: Draw) -> str:
    way = _one_of(("swap", "drop", "double"), draw)
    swaps = [i for i in range(1, len(word) - 1) if word[i] != word[i + 1]]
    if way == "swap" and swaps:
        i = _one_of(swaps, draw)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    i = _one_of(range(1, len(word)), draw)
    return word[:i] + ("" if way == "drop" else word[i] * 2) + word[i + 1 :]


def _case(text: str, draw: Draw) -> str:
    lower = text.lower()
    return lower if lower != text else text.upper()


def _spacing(text: str, draw: Draw) -> str:
    gaps = list(_GAP.finditer(text))
    for gap in reversed(_picked(gaps, len(gaps) * _SPACED, draw)):
        blanks = _one_of(_BLANKS[str(gap.lastgroup)], draw)
        text = text[: gap.start()] + " " * blanks + text[gap.end() :]
    return text


_BLANKS = {"before_mark": (0, 2), "blank": (2, 3), "no_blank": (1, 2)}
"""How many blanks each kind of gap may have instead."""

_CHANGES: dict[str, Callable[[str, Draw], str]] = {"typos": _typos, "case": _case, "spacing": _spacing}

KINDS = tuple(_CHANGES)


def _picked(places: Sequence[T], count: float, draw: Draw) -> list[T]:
    """About ``count`` of the places, at least one if there is one, in their order."""
    shuffled = sorted(range(len(places)), key=lambda _: draw())
    return [places[i] for i in sorted(shuffled[: max(1, round(count))])]


def _one_of(choices: Sequence[T], draw: Draw) -> T:
    return choices[int(draw() * len(choices))]


@dataclass(frozen=True)
class Robustness:
    """Scores under several changes of the same rows.

    Attributes:
        each: the mean score under each change, by its name.
        worst: the mean over rows of the worst score a row has under any of them. For scores of 0 and 1,
            the share of rows that are right under every change.
        worst_per_row: that worst score, row by row.
    """

    each: dict[str, Value]
    worst: Value
    worst_per_row: list[float]


def robustness(scores: Mapping[str, Sequence[float]], *, seed: int = 0) -> Robustness:
    """Put together the per-row scores (higher is better) under several changes.

    Args:
        scores: by name of the change, each row's score, such as 1 for a right label. The unchanged text
            belongs among them, under a name of its own.
        seed: of the intervals.
    """
    worst = [min(row) for row in zip(*scores.values(), strict=True)]
    each = {name: average(rows, seed=seed) for name, rows in scores.items()}
    return Robustness(each, average(worst, seed=seed), worst)
