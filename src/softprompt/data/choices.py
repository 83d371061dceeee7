"""The possible answers a row brings with it: knows where they stand and which is right, not tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from softprompt.data.table import Row, as_text, missing_column
from softprompt.errors import DataError

__all__ = ["CHOICE", "choice_sources", "choice_texts", "right_places"]

CHOICE = "choice"
"""The field of a target template that each choice is put into."""


def choice_sources(choices: str | Sequence[Any]) -> str | tuple[str, ...]:
    """Return the column or the templates of the choices, checked.

    Raises:
        DataError: fewer than two templates, or a template where a column is named.
    """
    if isinstance(choices, str):
        if "{" in choices or not choices.strip():
            raise DataError(
                f"The choices {choices!r} must be the name of a column that holds a list, or a list of "
                'templates such as ["{choice1}", "{choice2}"].'
            )
        return choices
    if len(choices) < 2:
        raise DataError(f"There must be two choices or more, not {len(choices)}.")
    return tuple(map(str, choices))


def choice_texts(row: Row, column: str) -> tuple[str, ...]:
    """Return the texts of the list in ``column``.

    Raises:
        DataError: it is missing, is no list of texts or numbers, or has fewer than two.
    """
    if column not in row:
        said = missing_column(column, tuple(row))
        raise DataError(said[0].upper() + said[1:])
    values = row[column]
    if not isinstance(values, list | tuple):
        raise DataError(f"The column {column!r} must hold the list of the row's choices.")
    if any(not isinstance(value, str | int | float) or value != value for value in values):
        raise DataError(f"The list in column {column!r} must hold texts or numbers.")
    if any("\ud800" <= letter <= "\udfff" for value in values for letter in as_text(value)):
        raise DataError(f"The column {column!r} holds half a character (a lone surrogate): repair the text.")
    if len(values) < 2:
        raise DataError(f"The list in column {column!r} must hold two choices or more, not {len(values)}.")
    return tuple(map(as_text, values))


def right_places(row: Row, column: str, texts: tuple[str, ...]) -> tuple[int, ...]:
    """Return the places among ``texts`` of what ``column`` says is right, in the order it says them.

    A whole number is a place, counted from 0; a text is looked up, and taken for a place only where no
    choice reads like it. Of several right answers those that are no choice are passed over.

    Raises:
        DataError: the column is missing or empty, or nothing in it is one of the choices.
    """
    if column not in row:
        said = missing_column(column, tuple(row))
        raise DataError(said[0].upper() + said[1:])
    value = row[column]
    if value is None or value != value or value in ([], ()):
        raise DataError(f"The column {column!r} has no value: fill it or leave the row out.")
    values = value if isinstance(value, list | tuple) else [value]
    places = [place for one in values for place in _places(one, texts)]
    if not places:
        raise DataError(
            f"The right answer in column {column!r} ({_short(value)}) is neither one of the row's "
            f"{len(texts)} choices nor the number of one, counted from 0."
        )
    return tuple(dict.fromkeys(places))


def _places(value: object, texts: tuple[str, ...]) -> list[int]:
    text = as_text(value)
    if (isinstance(value, bool) or not isinstance(value, int)) and text in texts:
        return [texts.index(text)]
    return [int(text)] if text.isascii() and text.isdecimal() and int(text) < len(texts) else []


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
