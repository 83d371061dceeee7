"""What stands in a column of labels: which there are, and which look like one another; knows no template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from softprompt.data.table import Table, as_text, is_blank
from softprompt.errors import DataError

__all__ = ["counted", "found_labels", "hints", "same_label"]

MOST = 100
"""Different values of a column that ``labels = "auto"`` takes for labels; more are numbers or texts."""

_SHORT, _RARER = 4, 10
"""Letters of a label that can be told to be misspelt, and how many times rarer it is than the right one."""


def counted(table: Table, column: str) -> dict[str, int]:
    """How many rows have each value of a column, in the order of the values; blank ones do not count."""
    values = (row.get(column) for row in table.rows)
    found = Counter(as_text(value) for value in values if not is_blank(value))
    return dict(sorted(found.items()))


def found_labels(table: Table, column: str) -> list[str]:
    """The labels of a table, which are all values of the column, in their order.

    Raises:
        DataError: there are fewer than two, or so many that they are no labels.
    """
    table.require_columns((column,))
    labels = list(counted(table, column))
    if len(labels) < 2:
        only = f"only {labels[0]!r}" if labels else "no value at all"
        raise DataError(
            f"The column {column!r} of {table.origin} has {only}, but labels must be two or more."
        )
    if len(labels) > MOST:
        raise DataError(
            f"The column {column!r} of {table.origin} has {len(labels)} different values, which are too many "
            "for labels: leave labels out for free text, or list them."
        )
    return labels


def same_label(counts: Mapping[str, int]) -> dict[str, str]:
    """From each value that is probably another one, misspelt, to that one.

    Of values that differ by case, spaces, hyphens or underscores only, the most frequent is right. One that
    is a slip away (two in words of eight letters or more) must also be ten times as rare, and have the same
    digits.
    """
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    found: dict[str, str] = {}
    for place, value in enumerate(ranked):
        for other in ranked[:place]:
            if other not in found and (_plain(value) == _plain(other) or _misspelt(value, other, counts)):
                found[value] = other
                break
    return found


def hints(counts: Mapping[str, int], aliases: Mapping[str, str]) -> list[str]:
    """A sentence for each label that is probably another one, unless ``aliases`` says so already."""
    return [
        f"The label {value!r} ({_rows(counts[value])}) looks like {other!r} ({_rows(counts[other])}); "
        f'if they are one, set data.label_aliases = {{"{value}" = "{other}"}}.'
        for value, other in same_label(counts).items()
        if value not in aliases
    ]


def _plain(value: str) -> str:
    return "".join(letter for letter in value.casefold() if letter not in " -_\t")


def _misspelt(value: str, other: str, counts: Mapping[str, int]) -> bool:
    """Whether ``value`` is a rare word a slip or two away from the frequent ``other``."""
    if counts[other] < _RARER * counts[value] or _digits(value) != _digits(other):
        return False
    shorter = min(len(value), len(other))
    return shorter >= _SHORT and _slips(_plain(value), _plain(other)) <= (1 if shorter < 2 * _SHORT else 2)


def _slips(one: str, other: str) -> int:
    """Letters to put in, take out, change or swap with their neighbour (optimal string alignment)."""
    above, row = list[int](), list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, above, row = above, row, [i]
        for j, against in enumerate(other, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != against)))
            if i > 1 < j and letter == other[j - 2] and one[i - 2] == against:
                row[-1] = min(row[-1], before[j - 2] + 1)
    return row[-1]


def _digits(value: str) -> str:
    return "".join(filter(str.isdigit, value))


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"
