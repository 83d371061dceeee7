"""The settings of ``[data]``: where rows come from and how a row becomes text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from softprompt.config.presets import TASKS, preset
from softprompt.config.section import Section, as_unicode
from softprompt.config_io import BrokenRuleError, nearest, shown
from softprompt.packages import Need

__all__ = ["SOURCES", "DataConfig"]

SOURCES = ("train", "validation", "test")


class DataConfig(Section):
    """The rows to learn from, and how a row becomes text."""

    later: ClassVar[tuple[str, ...]] = (
        "label_aliases",
        "messages",
        "answers",
        "scale_labels",
        "separator",
        "long_targets",
    )
    task: str | None = None
    """A known task, such as superglue:cb, whose settings stand for those that are not given here."""
    train: str | None = Field(default=None, min_length=1)
    """The training rows: a path, bundled:NAME/SPLIT, superglue:TASK/SPLIT or hub:..."""
    validation: str | None = Field(default=None, min_length=1)
    """The rows that choices are made on: a path, bundled:NAME/SPLIT, superglue:TASK/SPLIT or hub:..."""
    test: str | None = Field(default=None, min_length=1)
    """The rows read once, at the end: a path, bundled:NAME/SPLIT, superglue:TASK/SPLIT or hub:..."""
    separator: str | None = Field(default=None, min_length=1, max_length=1)
    """What stands between the columns of .csv and .tsv files; none means what their first line shows."""
    input: str
    """The template of what the model reads, such as "Headline: {text}"."""
    target: str = Field(min_length=1)
    """The template of what the model should write, such as " {label}"."""
    labels: Literal["auto"] | list[str] | dict[str, str] | None = None
    """The possible labels, or a table from each label to its word; auto means those of the training rows."""
    label_aliases: dict[str, str] | None = None
    """Other spellings of labels in the data, each with the label it stands for."""
    choices: str | list[str] | None = None
    """The answers each row offers: the column that holds their list, or a template for each."""
    label_column: str | None = Field(default=None, min_length=1)
    """The column that holds the label, or the right choice: its text or its number from 0."""
    normalise: Literal["none", "length"] = "none"
    """Whether answers are compared by their whole likelihood or by that per token."""
    calibrate: bool = False
    """Whether the likelihood that an answer has behind an empty input is taken off before comparing."""
    scale_labels: bool | None = None
    """Whether a scale and a shift of every label's score are fitted on the training rows in the end."""
    loss_on: Literal["target", "text"] = "target"
    """Whether the loss is over the target only or over the input too."""
    end_of_text: bool | None = None
    """Whether the target closes with the end-of-text token; none means yes for free text only."""
    max_tokens: int = Field(default=512, ge=8)
    """The longest row, in tokens."""
    long_targets: Literal["refuse", "drop", "cut"] | None = None
    """What becomes of rows whose target is too long: refused (also if none), left out, or cut at its end."""
    train_rows: int | None = Field(default=None, ge=1)
    """How many training rows to use; none means all."""
    validation_rows: int | None = Field(default=None, ge=1)
    """How many validation rows to use; none means all."""
    test_rows: int | None = Field(default=None, ge=1)
    """How many test rows to use; none means all."""
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    """The share of training rows held back when there is no validation source."""
    group: str | None = Field(default=None, min_length=1)
    """A column whose equal values stay together when rows are held back or a part of them is drawn."""
    retrieve: int | None = Field(default=None, ge=1)
    """How many of the most similar training rows stand solved before each input; for comparisons only."""
    draw: int | None = Field(default=None, ge=0)
    """The seed that draws rows, where it is not to be that of the run."""
    chat: bool = False
    """Whether front, input and target stand at their places in the base's chat template."""
    messages: str | None = Field(default=None, min_length=1)
    """The column of conversations, lists of messages with role and content, in place of input and target."""
    answers: Literal["all", "last"] | None = None
    """Whether every answer of a conversation is learnt or the last one only; none means all."""

    @property
    def ends(self) -> bool:
        """Whether the target closes with the end-of-text token."""
        compares = self.labels is not None or self.choices is not None
        return not compares if self.end_of_text is None else self.end_of_text

    @property
    def needs(self) -> tuple[Need, ...]:
        sources = [source for name in SOURCES if (source := getattr(self, name)) is not None]
        of_the_hub = any(
            s.startswith("hub:") or (s.startswith("superglue:") and "@" not in s) for s in sources
        )
        parquet = any(s.lower().endswith(".parquet") for s in sources)
        return (
            *(("a data set of the hub",) if of_the_hub else ()),
            *(("a parquet file",) if parquet else ()),
        )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_task(cls, given: Any) -> Any:
        task = given.get("task") if isinstance(given, Mapping) else None
        if task is None:
            return given
        if task not in TASKS:
            near = nearest(task, TASKS) if isinstance(task, str) else None
            hint = f"; did you mean {near}?" if near else ""
            raise BrokenRuleError(f"expected one of {', '.join(TASKS)}, got {shown(task)}{hint}", at="task")
        settings = preset(task)
        if any(given.get(name) is not None for name in SOURCES):
            settings = {name: value for name, value in settings.items() if name not in SOURCES}
        return settings | dict(given)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_conversation(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        if given.get("messages") is None:
            if given.get("answers") is not None:
                raise BrokenRuleError("needs data.messages, the column with the conversations", at="answers")
            return given
        filled = {"input": "{turns}", "target": "{answer}", "chat": True, "group": "conversation"}
        for name, value in filled.items():
            if given.get(name, value) != value:
                raise BrokenRuleError("cannot be set beside data.messages, which stands for it", at=name)
        for name in ("labels", "choices"):
            if given.get(name) is not None:
                raise BrokenRuleError("cannot be set beside data.messages: answers are free text", at=name)
        return {**given, **filled}

    @field_validator(*SOURCES, mode="before")
    @classmethod
    def _paths_are_text(cls, source: Any) -> Any:
        return os.fspath(source) if isinstance(source, os.PathLike) else source

    @field_validator("choices", mode="before")
    @classmethod
    def _choices_are_text(cls, choices: Any) -> Any:
        if choices is None or (isinstance(choices, str) and choices):
            return choices
        if (
            isinstance(choices, list | tuple)
            and len(choices) > 1
            and all(isinstance(c, str) for c in choices)
        ):
            return [as_unicode(choice) for choice in choices]
        raise BrokenRuleError(
            f"expected the name of a column or a list of two templates or more, got {shown(choices)}"
        )

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_text(cls, labels: Any) -> Any:
        if labels is None or labels == "auto":
            return labels
        if isinstance(labels, Mapping):
            return dict(zip(_words(labels, "label"), _words(labels.values(), "word"), strict=True))
        if isinstance(labels, list | tuple):
            return _words(labels, "label")
        raise BrokenRuleError(
            f'expected a list of labels, a table of label = "word" or "auto", got {shown(labels)}'
        )

    @field_validator("separator")
    @classmethod
    def _separates_columns(cls, separator: str | None, info: ValidationInfo) -> str | None:
        if separator is None:
            return None
        if separator in '"\r\n':
            raise BrokenRuleError(f"expected a letter that may stand between columns, got {shown(separator)}")
        files = [info.data[name].lower().removesuffix(".gz") for name in SOURCES if info.data.get(name)]
        if files and not any(file.endswith((".csv", ".tsv")) for file in files):
            raise BrokenRuleError("is for .csv and .tsv files, and no source is one")
        return separator

    @field_validator("long_targets")
    @classmethod
    def _cuts_free_text(cls, what: str | None, info: ValidationInfo) -> str | None:
        if what == "cut" and any(info.data.get(name) is not None for name in ("labels", "choices")):
            raise BrokenRuleError(
                "cannot cut labels and choices, which are compared whole; take drop or refuse"
            )
        return what

    @field_validator("scale_labels")
    @classmethod
    def _scales_labels(cls, scale: bool | None, info: ValidationInfo) -> bool | None:
        if scale and info.data.get("labels", "unknown") is None:
            raise BrokenRuleError("needs data.labels, which is missing")
        return scale

    @field_validator("label_aliases")
    @classmethod
    def _aliases_are_of_labels(cls, aliases: dict[str, str] | None, info: ValidationInfo) -> Any:
        if not aliases or "labels" not in info.data:
            return aliases
        labels = info.data["labels"]
        if labels is None:
            raise BrokenRuleError("needs data.labels, which is missing")
        for other, label in aliases.items():
            if labels != "auto" and (other in labels or label not in labels):
                wrong = f"{shown(other)} is a label" if other in labels else f"{shown(label)} is no label"
                raise BrokenRuleError(f'expected other spellings = "label", but {wrong}')
        return aliases


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value:
        return as_unicode(value)
    raise BrokenRuleError(f"expected labels that are text, whole numbers, true or false, got {shown(value)}")


def _words(values: Iterable[Any], what: str) -> list[str]:
    words = [_label(value) for value in values]
    for place, word in enumerate(words):
        if word in words[:place]:
            raise BrokenRuleError(f"the {what} {shown(word)} stands there twice")
    if len(words) < 2:
        raise BrokenRuleError(f"expected at least two labels, got {len(words)}")
    return words
