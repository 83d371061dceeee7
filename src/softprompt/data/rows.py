"""Rows to token ids: knows the seam and the length limit, not models, batches or what ids mean.

The seam rule: the front (a prompt's own text), the input and the target are each tokenised by themselves and
their ids concatenated. Training, scoring and serving all go through this module, so a text has the same ids
in all three, and no token ever spans a seam. The end-of-text id, when given, closes every target.

The length rule: input and target together have ``max_tokens`` tokens at most. A longer row loses letters at
the start of its fields, the longest field first; the target and the template's own words are never cut. With
labels the room kept for the target is that of the longest label, so that what the model reads does not
depend on which label is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from softprompt.data.table import Row, Table
from softprompt.data.template import Template
from softprompt.errors import DataError

__all__ = ["Encoded", "Example", "candidate_ids", "collect_faults", "encode", "encode_input"]

T = TypeVar("T")

Encode = Callable[[str], list[int]]
Ids = tuple[int, ...]

# How many letters a cut may give up to begin at a whole word.
_WORD = 20


@dataclass(frozen=True)
class Example:
    """One row in tokens: ``index`` is its place in the table, ``label`` that of its label or none."""

    input_ids: Ids
    target_ids: Ids
    label: int | None
    index: int


@dataclass(frozen=True)
class Encoded:
    """A table in tokens.

    Attributes:
        examples: one for each row, in order.
        truncated: how many rows were shortened.
        candidate_ids: the target of every label, ``end`` included; none for free text.
        needs_whole_words: whether two labels share their first token, so that it alone does not tell.
        notes: plain sentences about what a reader of the results should know.
    """

    examples: tuple[Example, ...]
    truncated: int
    candidate_ids: tuple[Ids, ...] | None
    needs_whole_words: bool
    notes: tuple[str, ...]


def encode(
    table: Table, template: Template, encode: Encode, *, max_tokens: int, end: tuple[int, ...] = ()
) -> Encoded:
    """Turn every row into ids by the seam rule and the length rule.

    Args:
        table: the rows.
        template: how a row becomes text.
        encode: text to ids, without special tokens.
        max_tokens: the most tokens of input and target together.
        end: ids that close every target, such as the end-of-text id.

    Raises:
        DataError: a row does not fit the template, or its target and the template's words alone exceed
            ``max_tokens``; the message names the first such row and how many there are. Or two labels have
            the same tokens.
    """
    if not len(table):
        raise DataError(f"{table.origin} has no rows.")
    table.require_columns(template.columns)
    candidates = candidate_ids(template, encode, end)
    longest = max(map(len, candidates)) if candidates else 0

    def one(index: int, row: Row) -> tuple[Example, bool]:
        label = template.label_index(row)
        if candidates is None or label is None:
            target = (*encode(template.target_text(row)), *end)
        else:
            target = candidates[label]
        ids, cut = _input_ids(
            template, template.input_values(row), encode, max_tokens, longest or len(target)
        )
        return Example(ids, target, label, index), cut

    pairs = collect_faults(table, one)
    truncated = sum(cut for _, cut in pairs)
    shared = candidates is not None and len({ids[0] for ids in candidates}) < len(candidates)
    return Encoded(
        examples=tuple(example for example, _ in pairs),
        truncated=truncated,
        candidate_ids=candidates,
        needs_whole_words=shared,
        notes=tuple(_notes(template, candidates, shared, (truncated, len(table), max_tokens))),
    )


def encode_input(
    template: Template, row_or_text: Row | str, encode: Encode, max_tokens: int, *, reserve: int = 0
) -> Ids:
    """Turn what a client sends into the ids that training would have given it.

    Args:
        template: how a row becomes text.
        row_or_text: a row, or plain text when the input template has exactly one field.
        encode: text to ids, without special tokens.
        max_tokens: as in ``encode``.
        reserve: tokens to keep free for the target; with labels the length of the longest of
            ``candidate_ids``, for inputs to be cut as they were in training.

    Raises:
        DataError: a field is missing, or the template's words alone exceed the room there is.
    """
    if isinstance(row_or_text, str):
        row_or_text = _row(template, row_or_text)
    return _input_ids(template, template.input_values(row_or_text), encode, max_tokens, reserve)[0]


def candidate_ids(template: Template, encode: Encode, end: tuple[int, ...] = ()) -> tuple[Ids, ...] | None:
    """Return the target ids of every label, in order and closed by ``end``, or none for free text.

    Raises:
        DataError: two labels have the same tokens, or one has none.
    """
    if template.labels is None:
        return None
    values: dict[Ids, str] = {}
    for value, text in zip(template.labels, template.candidates(), strict=True):
        ids = tuple(encode(text))
        if not ids:
            raise DataError(f"The word of label {value!r} has no tokens: choose another word.")
        if ids in values:
            raise DataError(
                f"The words of labels {values[ids]!r} and {value!r} have the same tokens, so the model "
                "cannot tell them apart: choose another word."
            )
        values[ids] = value
    return tuple((*ids, *end) for ids in values)


def collect_faults(table: Table, work: Callable[[int, Row], T]) -> list[T]:
    """Do ``work(index, row)`` on every row and return what it gives.

    Raises:
        DataError: ``work`` raised it for a row; one message gives the first and how many rows have a fault.
    """
    done: list[T] = []
    first: tuple[int, DataError] | None = None
    faults = 0
    for index, row in enumerate(table.rows):
        try:
            done.append(work(index, row))
        except DataError as error:
            first = first or (index, error)
            faults += 1
    if first is None:
        return done
    index, fault = first
    more = f" and {faults - 1} more with a fault" if faults > 1 else ""
    said = str(fault)
    raise DataError(f"{table.origin}, row {index + 1}{more}: {said[0].lower()}{said[1:]}") from fault


def _row(template: Template, text: str) -> dict[str, object]:
    fields = template.input_fields
    if len(fields) != 1:
        raise DataError(
            f"The input template has {len(fields)} fields ({', '.join(fields) or 'none'}), so plain text "
            "does not say which it fills: send an object with a value for each."
        )
    return {fields[0]: text}


def _input_ids(
    template: Template, values: Mapping[str, str], encode: Encode, max_tokens: int, reserve: int
) -> tuple[Ids, bool]:
    """The ids of the input within ``max_tokens - reserve``, and whether fields were cut for it."""
    room = max_tokens - reserve
    ids = encode(template.render_input(values))
    if len(ids) <= room:
        return tuple(ids), False
    return _cut(template, values, encode, room, max_tokens), True


def _cut(template: Template, values: Mapping[str, str], encode: Encode, room: int, max_tokens: int) -> Ids:
    """The ids of the input when every field keeps its last n letters, for the greatest n found to fit.

    Cutting every field to one length shortens the longest first. Each try is measured on the whole rendered
    text; n is first doubled from a small start, so the cost follows the room and not the length of the row.
    """

    def tried(letters: int) -> Ids:
        kept = {column: _ending(value, letters) for column, value in values.items()}
        return tuple(encode(template.render_input(kept)))

    best = tried(0)
    if len(best) > room:
        raise DataError(
            f"The target and the template's own words alone have {max_tokens - room + len(best)} tokens, "
            f"more than the {max_tokens} allowed: raise max_tokens or shorten them."
        )
    fits, longest = 0, max(map(len, values.values()), default=0)
    over = min(max(room, 1), longest)
    while over < longest and len(ids := tried(over)) <= room:
        fits, best = over, ids
        over = min(2 * over, longest)
    while over - fits > 1:
        middle = (fits + over) // 2
        if len(ids := tried(middle)) <= room:
            fits, best = middle, ids
        else:
            over = middle
    return best


def _ending(value: str, letters: int) -> str:
    """The last ``letters`` of ``value``, fewer where that begins at a whole word."""
    start = len(value) - letters
    if start <= 0:
        return value
    if letters > _WORD and not value[start - 1].isspace():
        space = next((i for i in range(start, start + _WORD) if value[i].isspace()), start)
        return value[space:].lstrip()
    return value[start:]


def _notes(
    template: Template, candidates: tuple[Ids, ...] | None, shared: bool, cut: tuple[int, int, int]
) -> list[str]:
    notes = []
    truncated, rows, max_tokens = cut
    if truncated:
        were = "was" if truncated == 1 else "were"
        fields = template.input_fields
        where = f"the {fields[0]}" if len(fields) == 1 else "their longest field"
        notes.append(
            f"{truncated} of {rows} rows {were} longer than {max_tokens} tokens and {were} cut "
            f"at the start of {where}."
        )
    if candidates and shared:
        notes.append("Some label words begin with the same token, so whole words are compared.")
    for short, long in _beginnings(candidates or ()):
        values = list(template.labels or {})
        notes.append(
            f"The word of label {values[long]!r} begins with that of {values[short]!r}, which can then never "
            "score lower: close the targets with the end of text, or choose another word."
        )
    return notes


def _beginnings(candidates: tuple[Ids, ...]) -> list[tuple[int, int]]:
    """Pairs (i, j) of candidates where i is the beginning of j."""
    return [
        (i, j)
        for i, short in enumerate(candidates)
        for j, long in enumerate(candidates)
        if i != j and long[: len(short)] == short
    ]
