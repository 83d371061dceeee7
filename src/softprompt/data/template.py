"""Templates and label words: knows how a row becomes two texts, not how texts become tokens.

A template is text with ``{column}`` fields; ``{{`` and ``}}`` stand for braces. Nothing else is possible in
one (no attributes, no indices, no formats; a dot is part of a name), so a template from a stranger does no
harm, and braces inside a row are never read as fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from softprompt.config_io import nearest
from softprompt.data.choices import CHOICE, choice_sources, choice_texts, right_places
from softprompt.data.table import Row, as_text, missing_column
from softprompt.errors import DataError

__all__ = ["Template"]

_TOKEN = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")
_LABEL = "label"
_SHOWN = 20

# A template in pieces: literal text is (text, False), a field is (column, True).
_Parts = tuple[tuple[str, bool], ...]


@dataclass(frozen=True, init=False)
class Template:
    """How a row becomes the text the model reads and the text it should write.

    With ``labels``, the target is literal text around one label field, and the label's word is put there. The
    order of the labels is that of ``candidates()`` and ``label_index()``.

    With ``choices``, each row brings its own possible answers: the target holds the field ``{choice}``, each
    answer is put there in turn, and the label column says which is right.
    """

    input: str
    target: str
    labels: Mapping[str, str] | None = field(default=None, hash=False)
    label_column: str | None = None
    choices: str | tuple[str, ...] | None = None

    def __init__(
        self,
        input: str,
        target: str,
        labels: Mapping[Any, Any] | Sequence[Any] | None = None,
        label_column: str | None = None,
        choices: str | Sequence[str] | None = None,
    ) -> None:
        r"""Check and keep the templates.

        Args:
            input: the text the model reads, such as ``"Headline: {text}\nTopic:"``.
            target: the text it should write, such as ``" {label}"``.
            labels: the possible values of the label column, as a list, or as a mapping from each value to its
                word; none for free text. Values are compared as text, true and false in lower case.
            label_column: where the label stands; none means the column that the target names. When given,
                ``{label}`` in the target means it too.
            choices: the possible answers of each row: the name of a column that holds a list of them, or a
                template for each, such as ``["{choice1}", "{choice2}"]``. The label column (``label`` when
                not given) then holds the right one's text or its number from 0, or a list of those where
                several are right; the first of them is what is taught.

        Raises:
            DataError: a template or the labels are malformed.
        """
        words = None if labels is None else _label_words(labels)
        if words is not None and choices is not None:
            raise DataError(
                "There are both labels and choices: labels are for answers that are the same in every row, "
                "choices for answers that differ; give one of the two."
            )
        if words is not None:
            label_column = _label_column(target, label_column)
        elif choices is not None:
            label_column = label_column or _LABEL
        elif label_column is not None:
            raise DataError(
                f"The label column {label_column!r} is of no use without labels: list the labels."
            )
        if label_column is not None and label_column in _fields("input", input):
            raise DataError(
                f"The input template shows the label itself in {{{label_column}}}: take it out, "
                "or nothing is left to learn."
            )
        set_field = object.__setattr__  # the way past frozen
        set_field(self, "input", input)
        set_field(self, "target", target)
        set_field(self, "labels", words)
        set_field(self, "label_column", label_column)
        set_field(self, "choices", None if choices is None else choice_sources(choices))
        _check_target(self)
        _fields("input", input)

    @property
    def input_fields(self) -> tuple[str, ...]:
        """The columns the input template names, each once."""
        return _fields("input", self.input)

    @property
    def target_fields(self) -> tuple[str, ...]:
        """What the target template names in braces, each once."""
        return _fields("target", self.target)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column a row must have, each once."""
        target = (self.label_column,) if self.label_column else _fields("target", self.target)
        return tuple(dict.fromkeys(self.input_fields + self.choice_columns + target))

    @property
    def choice_columns(self) -> tuple[str, ...]:
        """The columns a row's choices are made of, each once; none without choices."""
        if self.choices is None:
            return ()
        templates = () if isinstance(self.choices, str) else self.choices
        named = (self.choices,) if isinstance(self.choices, str) else ()
        made = (column for t in templates for column in _fields("choices", t))
        around = (column for column in _fields("target", self.target) if column != CHOICE)
        return tuple(dict.fromkeys((*named, *made, *around)))

    @property
    def compares(self) -> bool:
        """Whether the answer is one of several, so that there is something to compare."""
        return self.labels is not None or self.choices is not None

    def input_values(self, row: Row) -> dict[str, str]:
        """Return the text of each input field of ``row``.

        Raises:
            DataError: a column is missing, holds nothing or holds something that is not plain text.
        """
        return {column: _value(row, column) for column in self.input_fields}

    def render_input(self, values: Mapping[str, str]) -> str:
        """Put ``values``, one for each input field, into the input template."""
        return _render(_parse("input", self.input), values)

    def input_text(self, row: Row) -> str:
        """Return the text the model reads for ``row``; errors as in ``input_values``."""
        return self.render_input(self.input_values(row))

    def target_text(self, row: Row) -> str:
        """Return the text the model should write for ``row``.

        Raises:
            DataError: as in ``input_values`` and ``label_index``, or the text is blank.
        """
        index = self.label_index(row)
        if index is not None:
            return self.candidates(row)[index]
        fields = _fields("target", self.target)
        text = _render(_parse("target", self.target), {column: _value(row, column) for column in fields})
        if not text.strip():
            raise DataError("The target is empty: leave such a row out, or give it something to write.")
        return text

    def candidates(self, row: Row | None = None) -> tuple[str, ...]:
        """Return the target text of every label, or of every choice of ``row``; nothing for free text.

        Without a row nothing is known of its choices, so there are none.

        Raises:
            DataError: the row's choices are missing, empty or the same twice.
        """
        parts, fields = _parse("target", self.target), _fields("target", self.target)
        if self.labels is not None:
            return tuple(_render(parts, {fields[0]: word}) for word in self.labels.values())
        if self.choices is None or row is None:
            return ()
        around = {column: _value(row, column) for column in fields if column != CHOICE}
        return tuple(_render(parts, {**around, CHOICE: text}) for text in self.choice_texts(row))

    def answers(self, row: Row) -> tuple[str, ...]:
        """Return the labels, or the texts of the row's choices, in the order of ``candidates(row)``."""
        return self.choice_texts(row) if self.choices is not None else tuple(self.labels or ())

    def choice_texts(self, row: Row) -> tuple[str, ...]:
        """Return what each choice of ``row`` says; errors as in ``candidates``."""
        if self.choices is None:
            return ()
        if isinstance(self.choices, str):
            return choice_texts(row, self.choices)
        made = ((_parse("choices", t), _fields("choices", t)) for t in self.choices)
        return tuple(_render(parts, {column: _value(row, column) for column in cs}) for parts, cs in made)

    def right(self, row: Row) -> tuple[int, ...]:
        """Return the places of all right answers of ``row``, the taught one first; none for free text.

        Raises:
            DataError: as in ``label_index``.
        """
        if self.choices is None or self.label_column is None:
            index = self.label_index(row)
            return () if index is None else (index,)
        return right_places(row, self.label_column, self.choice_texts(row))

    def label_index(self, row: Row) -> int | None:
        """Return the place of the row's label among ``labels`` or its choices, or none for free text.

        Raises:
            DataError: the label column is missing or empty, or its value is none of the labels or choices.
        """
        if self.choices is not None:
            return self.right(row)[0]
        if self.labels is None or self.label_column is None:
            return None
        value = _value(row, self.label_column)
        if value not in self.labels:
            raise DataError(
                f"The label {value!r} in column {self.label_column!r} is not one of {_some(self)}"
                f"{_near(value, self.labels)}"
            )
        return list(self.labels).index(value)

    def warnings(self) -> list[str]:
        """Return one plain sentence for each thing that is allowed but harms quality."""
        found = []
        # A line break at the end is a token of its own nearly everywhere, and so does no harm.
        if self.input[-1:].isspace() and not self.input.endswith("\n"):
            found.append(
                "The input template ends in white space, which most models expect to see joined to the next "
                "word: move it to the start of the target."
            )
        elif self._glued():
            found.append(
                "No white space stands between the input and the target, so their words run together: start "
                "the target with a space."
            )
        if self.compares and not self.input_fields:
            found.append("The input template has no field, so the model reads the same text for every row.")
        return found

    def _glued(self) -> bool:
        if not self.input or self.input[-1].isspace():
            return False
        parts = _parse("target", self.target)
        starts = self.candidates() if self.labels else [parts[0][0]]
        return any(text[0].isascii() and text[0].isalnum() for text in starts if text)


@lru_cache(maxsize=256)
def _parse(which: str, template: str) -> _Parts:
    """Cut ``template`` into pieces; ``which`` names it in messages."""
    parts: list[tuple[str, bool]] = []
    for token in _TOKEN.findall(template):
        if token in ("{{", "}}"):
            parts.append((token[0], False))
        elif token in ("{", "}"):
            other = "}" if token == "{" else "{"
            raise DataError(
                f"The {which} template has a {token} without its {other}: "
                f"write {token * 2} for a brace itself."
            )
        elif token[0] == "{":
            parts.append((_column(which, token), True))
        else:
            parts.append((token, False))
    return tuple(parts)


def _column(which: str, token: str) -> str:
    name: str = token[1:-1].strip()
    if not name or re.search(r"[:!\[\]\n]", name):
        raise DataError(
            f"The {which} template has the field {token!r}: only the name of a column may stand in braces, "
            "and a brace itself is written twice."
        )
    return name


def _fields(which: str, template: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text, is_field in _parse(which, template) if is_field))


def _render(parts: _Parts, values: Mapping[str, str]) -> str:
    return "".join(values[text] if is_field else text for text, is_field in parts)


def _check_target(template: Template) -> None:
    if not template.target.strip():
        raise DataError("The target template is empty: say what the model should write, such as ' {label}'.")
    if template.choices is not None and CHOICE not in _fields("target", template.target):
        raise DataError(
            f"The target template {template.target!r} must hold the field {{{CHOICE}}} when choices are "
            f"given: write for example ' {{{CHOICE}}}'."
        )
    if template.label_column in template.choice_columns:
        raise DataError(
            f"The choices or the target show the label itself in {{{template.label_column}}}: take it out."
        )
    texts = template.candidates()
    for value, text in zip(template.labels or {}, texts, strict=True):
        if texts.count(text) > 1:
            raise DataError(f"The label {value!r} has the same word as another label: each needs its own.")


def _label_column(target: str, label_column: str | None) -> str:
    """The column of the label, given that the target may hold the label field only."""
    fields = _fields("target", target)
    allowed = (_LABEL, label_column)
    if len(fields) != 1 or (label_column is not None and fields[0] not in allowed):
        name = label_column or _LABEL
        raise DataError(
            f"The target template {target!r} must hold one field, that of the label, when labels are given: "
            f"write for example ' {{{name}}}'."
        )
    return label_column or fields[0]


def _label_words(labels: Mapping[Any, Any] | Sequence[Any]) -> dict[str, str]:
    if isinstance(labels, Mapping):
        pairs = [(as_text(value), as_text(word)) for value, word in labels.items()]
    elif isinstance(labels, list | tuple):
        pairs = [(as_text(value), as_text(value)) for value in labels]
    else:
        raise DataError("The labels must be a list of values or a table from each value to its word.")
    words = dict(pairs)
    if len(words) < len(pairs):
        twice = next(value for value, _ in pairs if [v for v, _ in pairs].count(value) > 1)
        raise DataError(f"The label {twice!r} is listed twice: list it once.")
    if len(words) < 2:
        raise DataError(f"There must be two labels or more, not {len(words)}.")
    blank = next((value for value, word in pairs if not word.strip()), None)
    if blank is not None:
        raise DataError(f"The label {blank!r} has no word: give it one that the model can write.")
    return words


def _value(row: Row, column: str) -> str:
    """The text of ``column`` in ``row``."""
    if column not in row:
        said = missing_column(column, tuple(row))
        raise DataError(said[0].upper() + said[1:])
    value = row[column]
    if value is None or value != value:  # not a number: how tables store a missing value
        raise DataError(f"The column {column!r} has no value: fill it or leave the row out.")
    if isinstance(value, Mapping | list | tuple | set | bytes):
        raise DataError(f"The column {column!r} holds {_kind(value)}: turn it into text first.")
    text = as_text(value)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"The column {column!r} holds half a character (a lone surrogate): repair the text.")
    return text


def _near(value: str, labels: Mapping[str, str]) -> str:
    """The end of a sentence, with the label that ``value`` may be."""
    near = nearest(value.strip(), labels)
    return f"; did you mean {near!r}?" if near else "."


def _kind(value: object) -> str:
    if isinstance(value, bytes):
        return "bytes"
    return "a table" if isinstance(value, Mapping) else "a list"


def _some(template: Template) -> str:
    values = list(template.labels or {})
    shown = ", ".join(map(repr, values[:_SHOWN]))
    return shown if len(values) <= _SHOWN else f"{shown} and {len(values) - _SHOWN} more"
