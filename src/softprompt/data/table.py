"""The value every source gives: knows rows and columns, not where they came from nor what becomes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property

from softprompt.errors import DataError

__all__ = ["Row", "Table", "Text", "as_text", "is_blank", "missing_column"]

Row = Mapping[str, object]

Text = str | Row
"""What a prompt is asked: plain text where its template has one field, else a row with its columns."""


@dataclass(frozen=True)
class Table:
    """Rows in order, each a dict of column -> value.

    Attributes:
        rows: the rows.
        origin: names them in messages.
        places: where each row stands in what the user has, such as ``rows.csv, line 7``; it goes with the
            row through every cut and shuffle. Empty where ``origin`` and the number say it.
    """

    rows: tuple[dict[str, object], ...]
    origin: str
    places: tuple[str, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        return f"<Table of {len(self)} rows from {self.origin}>"

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Every column that some row has, in order of first appearance."""
        return tuple(dict.fromkeys(column for row in self.rows for column in row))

    @cached_property
    def digest(self) -> str:
        """The sha256, in hex, of the rows as canonical JSON: equal for equal rows in the same order."""
        digest = hashlib.sha256()
        for row in self.rows:
            # Escaped to ASCII, so that half a surrogate pair in the data cannot break the hash.
            line = json.dumps(row, sort_keys=True, separators=(",", ":"), default=str)
            digest.update(line.encode("ascii") + b"\n")
        return digest.hexdigest()

    def place(self, index: int) -> str:
        """Where row ``index`` stands, for messages."""
        return self.places[index] if self.places else f"{self.origin}, row {index + 1}"

    def take(self, indices: Iterable[int], origin: str) -> Table:
        """The rows of these places, each with where it stands."""
        chosen = tuple(indices)
        return Table(tuple(self.rows[i] for i in chosen), origin, tuple(self.place(i) for i in chosen))

    def without_blank(self, columns: tuple[str, ...]) -> tuple[Table, str]:
        """The rows that have something in one of ``columns``, and a sentence about the others, if any."""
        kept = [i for i, row in enumerate(self.rows) if any(not is_blank(row.get(name)) for name in columns)]
        gone = len(self) - len(kept)
        if not gone or not kept:
            return self, ""
        first = next(i for i, place in enumerate([*kept, len(self)]) if i != place)
        rows = "1 empty row" if gone == 1 else f"{gone} empty rows"
        where = self.place(first) if gone == 1 else f"{self.origin}, the first at {self.place(first)}"
        was = "was" if gone == 1 else "were"
        return self.take(kept, self.origin), f"{rows} {was} left out of {where}."

    def require_columns(self, names: tuple[str, ...]) -> None:
        """Raise ``DataError`` for the first of ``names`` that no row has."""
        for name in names:
            if name not in self.columns:
                raise DataError(f"{self.origin}: {missing_column(name, self.columns)}")


def is_blank(value: object) -> bool:
    """Whether a cell holds nothing: null, not a number (how tables store a missing value) or white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def as_text(value: object) -> str:
    """A value as labels and fields are compared: true and false as JSON and TOML write them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def missing_column(name: str, columns: tuple[str, ...]) -> str:
    """Say that ``name`` is not one of ``columns``, in a sentence that may follow a colon."""
    there = f"the columns are {', '.join(columns)}" if columns else "there are no columns"
    near = _nearest(name, columns)
    return f"there is no column {name!r}, {there}" + (f"; did you mean {near!r}?" if near else ".")


def _nearest(name: str, columns: tuple[str, ...]) -> str | None:
    folded = {column.casefold(): column for column in columns}
    matches = get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None
