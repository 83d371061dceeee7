"""What the columns of a table are probably for: text, labels, neither; it looks at values, never at files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.data.labels import counted, same_label
from softprompt.data.table import Table, as_text, is_blank
from softprompt.errors import DataError

__all__ = ["Guess", "guess"]

_LABELS = ("label", "labels", "class", "category", "queue", "topic", "intent", "sentiment", "tag", "type")
_TARGETS = ("target", "answer", "response", "completion", "output", "summary", "reply")
_MOST_LABELS, _ROWS_EACH, _LABEL_WORDS = 50, 3, 4
"""A column of labels has at most so many, each in so many rows on average, of at most so many words."""
_TEXT_WORDS = 2.5
"""Words of a text, on average, where a number, a name or a date has fewer."""


@dataclass(frozen=True)
class Guess:
    """How a table could be learnt from.

    Attributes:
        inputs: the columns the model reads; none where the text itself is to be written.
        target: the column it writes.
        labels: how many rows each label has, other spellings counted with it; None for free text.
        aliases: other spellings of labels, each with the label it stands for.
        rows: how many rows have something in these columns.
        left_out: the other columns.
    """

    inputs: tuple[str, ...]
    target: str
    labels: dict[str, int] | None
    aliases: dict[str, str]
    rows: int
    left_out: tuple[str, ...]


def guess(table: Table, *, text: Sequence[str] = (), label: str | None = None) -> Guess:
    """Say what the columns of a table are for.

    Args:
        table: its rows.
        text: the columns to read, where they are known.
        label: the column to write, where it is known.

    Raises:
        DataError: there is no such column, or none with text.
    """
    table.require_columns((*text, *((label,) if label is not None else ())))
    words = {column: _words(table, column) for column in table.columns}
    labels = [c for c in words if c not in text and _holds_labels(table, c, words[c])]
    target = label or _named(labels, _LABELS) or (labels[-1] if labels else None)
    texts = [c for c in words if c not in (*text, target) and words[c] >= _TEXT_WORDS]
    if target is None:
        target = _named(texts, _TARGETS) or (texts[-1] if texts else None)
        texts = [c for c in texts if c != target]
    if target is None and (talks := next((c for c in table.columns if _holds_chats(table, c)), None)):
        raise DataError(
            f"{table.origin} holds conversations in {talks!r}, which need no templates; learn from them with "
            f"`softprompt train --data {table.origin} --set data.messages={talks}`."
        )
    if target is None:
        raise DataError(
            f"{table.origin} has no column with texts; say with --text and --label which to read and write."
        )
    if not (text or texts or target not in labels):  # nothing but short columns: the longest is read
        texts = sorted((c for c in words if c != target and words[c]), key=lambda c: -words[c])[:1]
    inputs = tuple(text or texts)
    counts, aliases = _spelt(table, target) if target in labels else (None, dict[str, str]())
    rows = len(table.without_blank((*inputs, target))[0])
    return Guess(inputs, target, counts, aliases, rows, tuple(c for c in words if c not in (*inputs, target)))


def _words(table: Table, column: str) -> float:
    """Words of a value on average; none where a column holds lists or tables."""
    values = [row.get(column) for row in table.rows if not is_blank(row.get(column))]
    if not values or any(isinstance(value, list | tuple | dict | bytes) for value in values):
        return 0.0
    return sum(len(as_text(value).split()) for value in values) / len(values)


def _holds_chats(table: Table, column: str) -> bool:
    """Whether a column holds lists of messages."""
    found = next((row[column] for row in table.rows if row.get(column)), None)
    first = found[0] if isinstance(found, list | tuple) else None
    return isinstance(first, dict) and bool({"role", "from"} & first.keys())


def _holds_labels(table: Table, column: str, words: float) -> bool:
    if not 0 < words <= _LABEL_WORDS:
        return False
    counts = counted(table, column)
    different = len(counts) - len(same_label(counts)) if len(counts) <= 2 * _MOST_LABELS else len(counts)
    each = 2 if column.casefold() in _LABELS else _ROWS_EACH  # a name says half of it
    return 2 <= different <= _MOST_LABELS and sum(counts.values()) >= each * different


def _spelt(table: Table, column: str) -> tuple[dict[str, int], dict[str, str]]:
    """The labels of a column with the rows of their other spellings, and these."""
    counts = counted(table, column)
    aliases = same_label(counts)
    labels = {label: count for label, count in counts.items() if label not in aliases}
    for other, label in aliases.items():
        labels[label] += counts[other]
    return labels, aliases


def _named(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that has one of ``names``, the likeliest name first."""
    plain = {column.casefold(): column for column in columns}
    return next((plain[name] for name in names if name in plain), None)
