"""Rows to token ids: knows the seam and the length limit, not models, batches or what ids mean.

The seam rule: the front (a prompt's own text), the input and the target are each tokenised by themselves and
their ids concatenated. Training, scoring and serving all go through this module, so a text has the same ids
in all three, and no token ever spans a seam. The end-of-text id, when given, closes every target.

The length rule: input and target together have ``max_tokens`` tokens at most, as ``data/fit.py`` makes them.
With labels or choices the room kept for the target is that of the longest of them, so that what the model
reads does not depend on which is right. Demonstrations before an input are kept or left out as a whole. A
target that leaves no room for the template's own words is too long: refused, or cut at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from softprompt.data.fit import Encode, Ids, fit_input, own_words, room_for_target
from softprompt.data.table import Row, Table
from softprompt.data.template import Template
from softprompt.errors import DataError

__all__ = [
    "Encoded",
    "Example",
    "Ids",
    "InputTokens",
    "Normalise",
    "Scaling",
    "candidate_ids",
    "collect_faults",
    "encode",
    "encode_input",
    "encode_request",
    "too_long",
]

T = TypeVar("T")

Normalise = Literal["none", "length"]
Before = Callable[[int, int], Ids]
"""Number of a row, room in tokens -> what stands before its input."""

NEUTRAL = "N/A"
"""What every field of a content-free input says (Zhao et al. 2021)."""


class Scaling(NamedTuple):
    """What every label's score is multiplied by, and what is then added (vector scaling, Guo et al. 2017)."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]


class InputTokens(NamedTuple):
    """A text as a prompt reads it: its tokens, the longest answer its job has (None for any), and whether
    its beginning was left out for want of room.
    """

    ids: tuple[int, ...]
    limit: int | None = None
    cut: bool = False


@dataclass(frozen=True)
class Example:
    """One row in tokens.

    Attributes:
        input_ids: what the model reads.
        target_ids: what it should write.
        label: the place of its label or right choice; none for free text.
        index: the row's place in the table.
        candidates: the target of every choice of this row; none where all rows have the same labels.
        right: the places of all right choices, where there may be several.
        neutral_ids: the input with nothing in it, to calibrate by; none without calibration.
    """

    input_ids: Ids
    target_ids: Ids
    label: int | None
    index: int
    candidates: tuple[Ids, ...] | None = None
    right: tuple[int, ...] = ()
    neutral_ids: Ids | None = None


@dataclass(frozen=True)
class Encoded:
    """A table in tokens.

    Attributes:
        examples: one for each row, in order.
        truncated: how many rows were shortened.
        candidate_ids: the target of every label, ``end`` included; none for free text and choices.
        needs_whole_words: whether candidates must be compared whole: two labels share their first token,
            so that it alone does not tell, or the rows have choices, or length is normalised.
        notes: plain sentences about what a reader of the results should know.
        by_length: whether candidates are compared by their likelihood per token.
        scaling: what was fitted to the labels' scores, if anything.
    """

    examples: tuple[Example, ...]
    truncated: int
    candidate_ids: tuple[Ids, ...] | None
    needs_whole_words: bool
    notes: tuple[str, ...]
    by_length: bool = False
    scaling: Scaling | None = None

    def candidates(self, example: Example) -> tuple[Ids, ...]:
        """What may be answered to ``example``; nothing for free text."""
        return example.candidates or self.candidate_ids or ()


def encode(
    table: Table,
    template: Template,
    encode: Encode,
    *,
    max_tokens: int,
    end: tuple[int, ...] = (),
    normalise: Normalise = "none",
    calibrate: bool = False,
    scaling: Scaling | None = None,
    before: Before | None = None,
    solved: bool = True,
    cut_targets: bool = False,
) -> Encoded:
    """Turn every row into ids by the seam rule and the length rule.

    Args:
        table: the rows.
        template: how a row becomes text.
        encode: text to ids, without special tokens.
        max_tokens: the most tokens of input and target together.
        end: ids that close every target, such as the end-of-text id.
        normalise: whether candidates are to be compared by their whole likelihood or by that per token.
        calibrate: whether each candidate's likelihood behind an input whose fields say "N/A" is to be taken
            off (Zhao et al. 2021, "Calibrate Before Use").
        scaling: what was fitted to the labels' scores.
        before: gives the ids of demonstrations for a row that fit into the room it leaves.
        solved: whether rows have their answers; without, targets are empty and no label is told.
        cut_targets: whether targets of free text that are too long lose their end, and so do not close.

    Raises:
        DataError: a row does not fit the template, or its target and the template's words alone exceed
            ``max_tokens``; the message names the first such row and how many there are. Or two labels have
            the same tokens.
    """
    if not len(table):
        raise DataError(f"{table.origin} has no rows.")
    table.require_columns(template.columns if solved else template.input_fields + template.choice_columns)
    labels = candidate_ids(template, encode, end)

    own = own_words(template, encode) if cut_targets else max_tokens  # beside which nothing is cut
    shortened = 0

    def one(index: int, row: Row) -> tuple[Example, bool]:
        nonlocal shortened
        candidates = labels if labels is not None else _choice_ids(template, row, encode, end)
        right, target = template.right(row) if solved else (), Ids()
        if solved:
            target = candidates[right[0]] if candidates else (*encode(template.target_text(row)), *end)
        values = template.input_values(row)
        if candidates is None and len(target) + own > max_tokens > own:
            target = target[: room_for_target(template, values, encode, max_tokens)]
            shortened += 1
        reserve = max(map(len, candidates or (target,)))
        ids, cut = fit_input(template, values, encode, max_tokens, reserve)
        shown = before(index, max_tokens - reserve - len(ids)) if before else ()
        example = Example(
            input_ids=shown + ids,
            target_ids=target,
            label=right[0] if right else None,
            index=index,
            candidates=None if labels is not None else candidates,
            right=right if len(right) > 1 else (),
            neutral_ids=shown + _neutral_ids(template, encode) if calibrate and candidates else None,
        )
        return example, cut

    pairs = collect_faults(table, one)
    examples = tuple(example for example, _ in pairs)
    truncated = sum(cut for _, cut in pairs)
    shared = labels is not None and _share_first_token(labels)
    notes = [*_cut_notes(template, truncated, len(table), max_tokens)]
    if shortened:
        notes.append(
            f"{shortened} of {len(table)} targets were too long for {max_tokens} tokens and lost their end."
        )
    if normalise == "none":
        notes += _label_notes(template, labels or (), shared) + _choice_notes(examples)
    return Encoded(
        examples=examples,
        truncated=truncated,
        candidate_ids=labels,
        needs_whole_words=shared or _whole(template, normalise),
        notes=tuple(notes),
        by_length=normalise == "length",
        scaling=scaling,
    )


def too_long(
    table: Table, template: Template, encode: Encode, *, max_tokens: int, end: tuple[int, ...] = ()
) -> list[int]:
    """The places of rows whose target, or longest choice, leaves no room for the template's own words.

    Raises:
        DataError: a row does not fit the template.
    """
    labels, room = candidate_ids(template, encode, end), max_tokens - own_words(template, encode)

    def longest(_: int, row: Row) -> int:
        candidates = labels if labels is not None else _choice_ids(template, row, encode, end)
        return max(map(len, candidates or ((*encode(template.target_text(row)), *end),)))

    return [index for index, length in enumerate(collect_faults(table, longest)) if length > room]


def encode_request(
    template: Template,
    row_or_text: Row | str,
    encode: Encode,
    *,
    max_tokens: int,
    end: tuple[int, ...] = (),
    normalise: Normalise = "none",
    calibrate: bool = False,
    scaling: Scaling | None = None,
    labels: tuple[Ids, ...] | None = None,
) -> Encoded:
    """Turn one row without its answer into what ``encode`` would have made of it, ready to be compared.

    Args:
        template: how a row becomes text.
        row_or_text: as in ``encode_input``.
        encode: text to ids, without special tokens.
        max_tokens: as in ``encode``.
        end: as in ``encode``.
        normalise: as in ``encode``.
        calibrate: as in ``encode``.
        scaling: as in ``encode``.
        labels: ``candidate_ids``, where they are known already.

    Raises:
        DataError: a field or a choice is missing, or the template's words alone exceed the room there is.
    """
    row = _row(template, row_or_text) if isinstance(row_or_text, str) else row_or_text
    labels = labels or candidate_ids(template, encode, end)
    candidates = labels if labels is not None else _choice_ids(template, row, encode, end)
    reserve = max(map(len, candidates or ((),)))
    ids, cut = fit_input(template, template.input_values(row), encode, max_tokens, reserve)
    neutral = _neutral_ids(template, encode) if calibrate and candidates else None
    own = None if labels is not None else candidates
    whole = _whole(template, normalise) or (labels is not None and _share_first_token(labels))
    example = Example(ids, (), None, 0, own, (), neutral)
    return Encoded((example,), int(cut), labels, whole, (), normalise == "length", scaling)


def encode_input(
    template: Template, row_or_text: Row | str, encode: Encode, max_tokens: int, *, reserve: int = 0
) -> InputTokens:
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
    ids, cut = fit_input(template, template.input_values(row_or_text), encode, max_tokens, reserve)
    return InputTokens(ids, cut=cut)


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


def _choice_ids(template: Template, row: Row, encode: Encode, end: tuple[int, ...]) -> tuple[Ids, ...] | None:
    """The target ids of every choice of a row, or none for a template without choices."""
    if template.choices is None:
        return None
    texts: dict[Ids, str] = {}
    for said, target in zip(template.choice_texts(row), template.candidates(row), strict=True):
        ids = tuple(encode(target))
        if not said.strip() or not ids:
            raise DataError("One of the choices is empty: leave it out of the row.")
        if ids in texts:
            raise DataError(f"The choices {texts[ids]!r} and {said!r} have the same tokens: leave one out.")
        texts[ids] = said
    return tuple((*ids, *end) for ids in texts)


def _neutral_ids(template: Template, encode: Encode) -> Ids:
    return tuple(encode(template.render_input(dict.fromkeys(template.input_fields, NEUTRAL))))


def _whole(template: Template, normalise: Normalise) -> bool:
    return template.choices is not None or (template.compares and normalise == "length")


def _share_first_token(candidates: tuple[Ids, ...]) -> bool:
    return len({ids[0] for ids in candidates}) < len(candidates)


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
    raise DataError(f"{table.place(index)}{more}: {said[0].lower()}{said[1:]}") from fault


def _row(template: Template, text: str) -> dict[str, object]:
    fields = template.input_fields
    if len(fields) != 1:
        raise DataError(
            f"The input template has {len(fields)} fields ({', '.join(fields) or 'none'}), so plain text "
            "does not say which it fills: send an object with a value for each."
        )
    return {fields[0]: text}


def _cut_notes(template: Template, truncated: int, rows: int, max_tokens: int) -> list[str]:
    if not truncated:
        return []
    were = "was" if truncated == 1 else "were"
    fields = template.input_fields
    where = f"the {fields[0]}" if len(fields) == 1 else "their longest field"
    return [
        f"{truncated} of {rows} rows {were} longer than {max_tokens} tokens and {were} cut "
        f"at the start of {where}."
    ]


def _label_notes(template: Template, candidates: tuple[Ids, ...], shared: bool) -> list[str]:
    notes = ["Some label words begin with the same token, so whole words are compared."] if shared else []
    values = list(template.labels or {})
    return notes + [
        f"The word of label {values[long]!r} begins with that of {values[short]!r}, which can then never "
        "score lower: close the targets with the end of text, or choose another word."
        for short, long in _beginnings(candidates)
    ]


def _choice_notes(examples: tuple[Example, ...]) -> list[str]:
    rows = sum(bool(_beginnings(example.candidates or ())) for example in examples)
    if not rows:
        return []
    return [
        f"In {rows} of {len(examples)} rows one choice begins another, and the longer of them can never win: "
        'close the targets with data.end_of_text = true, or compare with data.normalise = "length".'
    ]


def _beginnings(candidates: tuple[Ids, ...]) -> list[tuple[int, int]]:
    """Pairs (i, j) of candidates where i is the beginning of j."""
    return [
        (i, j)
        for i, short in enumerate(candidates)
        for j, long in enumerate(candidates)
        if i != j and long[: len(short)] == short
    ]
