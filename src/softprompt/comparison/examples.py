"""Rows on which two methods differ, as values and as JSON to stand inside a page.

It knows results and which rows are worth reading; it does not know how a page shows them. Texts come from
strangers: they are made visible and short here, and the JSON can neither end a script nor start a tag.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.comparison import tallies
from softprompt.comparison.results import MethodResult, Results
from softprompt.comparison.table import learnt, mark, ranked
from softprompt.harmless import visible

__all__ = ["SHOWN", "Examples", "ShownExample", "examples", "script_json"]

SHOWN = 20
"""Rows that are shown of each kind."""

_TEXTS = 40
_MOST_ROWS = 2000
_MOST_LETTERS = 800_000
_CUTS = (500, 300, 160, 80, 40)


@dataclass(frozen=True)
class ShownExample:
    """A row and what two methods said to it."""

    input: str
    answer: str
    before: str
    after: str


@dataclass(frozen=True)
class Examples:
    """What a reader may look through.

    Attributes:
        methods: rank, name and whether it is trained, of every method with predictions.
        judged: whether an answer is right or wrong; if not, texts stand side by side.
        first: place in ``methods`` of the one shown before, at the start.
        second: place of the one shown after.
        gained: the first rows that went from wrong to right, or for texts, rows at even distances.
        lost: the first rows that went from right to wrong.
        gains: how many went from wrong to right in all, by place of both methods.
        payload: everything above, for a script.
    """

    methods: list[tuple[int, str, bool]]
    judged: bool
    first: int
    second: int
    gained: list[ShownExample]
    lost: list[ShownExample]
    gains: list[list[int]]
    payload: dict[str, Any]


def examples(results: Results) -> Examples | None:
    """The rows to look through; None where fewer than two methods have predictions."""
    shown = [(number, m) for number, m in enumerate(ranked(results)) if m.runs and m.runs[0].predictions]
    if len(shown) < 2 or not results.test_rows:
        return None
    methods = [method for _, method in shown]
    judged = tallies.has_answers(results)
    hits = [tallies.marks(results, method.runs[0]) for method in methods]
    rows = _differing(hits) if judged else list(range(min(len(m.runs[0].predictions) for m in methods)))
    rows = _spaced(rows, _MOST_ROWS if judged else _TEXTS)
    first, second = _default(methods)
    said = [[_said(results, method, row) for row in rows] for method in methods]
    found = _texts(results, rows, said)
    names = [(number, method.name, learnt(method)) for number, method in shown]
    kept = [[hits[m][row] for row in rows] for m in range(len(methods))]
    gains = [[_gained(hits[i], hits[j]) for j in range(len(methods))] for i in range(len(methods))]
    return Examples(
        methods=names,
        judged=judged,
        first=first,
        second=second,
        gained=_between(found, kept, first, second) if judged else _side_by_side(found, first, second),
        lost=_between(found, kept, second, first, turned=True) if judged else [],
        gains=gains,
        payload=_payload(names, judged, found, kept, gains),
    )


def _differing(hits: Sequence[Sequence[bool | None]]) -> list[int]:
    """Rows on which some are right and some are wrong."""
    return [row for row, found in enumerate(zip(*hits, strict=False)) if True in found and False in found]


def _gained(before: Iterable[bool | None], after: Iterable[bool | None]) -> int:
    return sum(x is False and y is True for x, y in zip(before, after, strict=False))


def _spaced(rows: list[int], most: int) -> list[int]:
    """At most so many rows, at even distances."""
    return rows if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def _default(methods: Sequence[MethodResult]) -> tuple[int, int]:
    """The best untrained method and the best trained one; failing these, the last and the first."""
    untrained = [place for place, method in enumerate(methods) if not learnt(method)]
    trained = [place for place, method in enumerate(methods) if learnt(method)]
    return (untrained[0], trained[0]) if untrained and trained else (len(methods) - 1, 0)


def _said(results: Results, method: MethodResult, row: int) -> str:
    """What the first seed of a method answered."""
    prediction = method.runs[0].predictions[row] if row < len(method.runs[0].predictions) else ""
    if isinstance(prediction, str):
        return prediction
    labels = results.labels
    if labels is not None and 0 <= prediction < len(labels):
        return labels[prediction]
    return f"choice {prediction + 1}"


@dataclass(frozen=True)
class _Texts:
    """Inputs and answers by row, and predictions by method and row, short enough for a page."""

    inputs: list[str]
    answers: list[str]
    said: list[list[str]]


def _texts(results: Results, rows: Sequence[int], said: Sequence[Sequence[str]]) -> _Texts:
    """Texts cut as little as a page of a moderate size allows."""
    for cut in _CUTS:
        found = _Texts(
            [_cut(results.test_rows[row].input, cut) for row in rows],
            [_cut(results.test_rows[row].answer, cut) for row in rows],
            [[_cut(text, cut) for text in texts] for texts in said],
        )
        distinct = {*found.inputs, *found.answers, *(text for texts in found.said for text in texts)}
        if sum(len(text.encode()) for text in distinct) <= _MOST_LETTERS:
            return found
    return found


def _cut(text: str, most: int) -> str:
    shown = visible(text.strip() if text.strip() else text)
    return shown if len(shown) <= most else shown[: most - 1].rstrip() + "…"


def _between(
    texts: _Texts, hits: Sequence[Sequence[bool | None]], wrong: int, right: int, *, turned: bool = False
) -> list[ShownExample]:
    """Rows that one method got wrong and the other right, the former first unless ``turned``."""
    rows = [r for r in range(len(texts.inputs)) if hits[wrong][r] is False and hits[right][r] is True]
    first, second = (right, wrong) if turned else (wrong, right)
    return [_example(texts, row, first, second) for row in rows[:SHOWN]]


def _side_by_side(texts: _Texts, first: int, second: int) -> list[ShownExample]:
    return [_example(texts, row, first, second) for row in range(min(SHOWN, len(texts.inputs)))]


def _example(texts: _Texts, row: int, first: int, second: int) -> ShownExample:
    said = texts.said
    return ShownExample(texts.inputs[row], texts.answers[row], said[first][row], said[second][row])


# JSON --------------------------------------------------------------------------------------------


def _payload(
    names: Sequence[tuple[int, str, bool]],
    judged: bool,
    texts: _Texts,
    hits: Sequence[Sequence[bool | None]],
    gains: list[list[int]],
) -> dict[str, Any]:
    """What the page's script reads: every text once, rows and answers by its number."""
    words: dict[str, int] = {}

    def number(text: str) -> int:
        return words.setdefault(text, len(words))

    return {
        "methods": [
            {"mark": mark(rank), "rank": rank, "name": visible(name, keep=""), "trained": trained}
            for rank, name, trained in names
        ],
        "judged": judged,
        "shown": SHOWN,
        "rows": [
            [number(text), number(answer)] for text, answer in zip(texts.inputs, texts.answers, strict=True)
        ],
        "said": [[number(text) for text in said] for said in texts.said],
        "right": ["".join("?" if hit is None else str(int(hit)) for hit in found) for found in hits],
        "gains": gains,
        "words": list(words),
    }


_UNSAFE = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029\u007f"}


def script_json(value: Any) -> str:
    """JSON for inside a script element: no text in it can end the element, open a tag or a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_UNSAFE)
