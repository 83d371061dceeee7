"""The card of an artifact, ``softprompt.json``: knows what is written about a prompt, not its weights.

Artifacts come from strangers. A card is JSON of bounded size whose every field is checked here; whoever
holds a ``Card`` holds finite numbers, text that is valid Unicode, and a template that works.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from softprompt.checkpoints import catalog
from softprompt.config_io import nearest, shown
from softprompt.data.chat import Answers
from softprompt.data.rows import Scaling
from softprompt.data.template import Template
from softprompt.errors import ArtifactError, DataError
from softprompt.harmless import clipped
from softprompt.library.files import json_object, parsed_object

__all__ = [
    "CARD_FILE",
    "FORMAT",
    "BaseCard",
    "Card",
    "DataCard",
    "SearchCard",
    "SeedCard",
    "TemplateCard",
    "TrainingCard",
    "TrialCard",
    "card_json",
    "card_of",
    "kept_name",
    "read_card",
]

CARD_FILE = "softprompt.json"
FORMAT = 1
_LIMIT = 4 * 2**20
_DEEPEST = 32
_LARGEST = 2**63


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _holds_json(cls, values: Any) -> Any:
        return _plain(values, ())


class BaseCard(_Part):
    """The frozen model a prompt belongs to."""

    name: str = Field(min_length=1)
    """What the user called it: a bundled name, a hub id, a folder or a .gguf file."""
    revision: str | None = None
    """The commit of a hub id."""
    fingerprint: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    """Hash of its weights and tokenizer."""
    model_type: str
    """Its architecture, as transformers calls it."""
    dtype: str
    """The number format the prompt was learnt in."""
    quantisation: str = Field(default="none", min_length=1)
    """How its linear layers were stored: "none", "nf4" or "int8"."""

    @property
    def called(self) -> str:
        """Its name for people: of a folder or file the last part of its path."""
        return Path(self.name).name if Path(self.name).is_absolute() else self.name


def kept_name(model: str) -> str:
    """What a card calls a base: a folder or file by its absolute path, to be found from anywhere."""
    path = Path(model).expanduser()
    return str(path.absolute()) if model and model not in catalog.names() and path.exists() else model


class ScalingCard(_Part):
    """What a label's share of the probability is scaled by and shifted, in the order of labels."""

    scale: list[float]
    """The factor of the logarithm."""
    shift: list[float]
    """What is added to it, in nats."""

    @property
    def scaling(self) -> Scaling:
        """The same at work."""
        return Scaling(tuple(self.scale), tuple(self.shift))


class TemplateCard(_Part):
    """How a row becomes text."""

    front: str
    """What stands in front of every row, as it was written in the configuration."""
    input: str
    """The template of what the model reads."""
    target: str
    """The template of what it writes."""
    labels: dict[str, str] | None = None
    """From each label to its word, in order; None for free text."""
    label_column: str | None = None
    """The column that holds the label or the right choice."""
    choices: str | list[str] | None = None
    """The answers each row offers: the column that holds their list, or a template for each."""
    normalise: Literal["none", "length"] = "none"
    """Whether answers are compared by their whole likelihood or by that per token."""
    calibrate: bool = False
    """Whether the likelihood that an answer has behind an empty input is taken off before comparing."""
    scaling: ScalingCard | None = None
    """What was fitted to the labels' scores."""
    end_of_text: bool
    """Whether the target closes with the end-of-text token."""
    max_tokens: int = Field(ge=1)
    """The longest row, in tokens."""

    @property
    def template(self) -> Template:
        """Input, target, labels and choices at work."""
        return Template(self.input, self.target, self.labels, self.label_column, self.choices)

    @model_validator(mode="after")
    def _works(self) -> TemplateCard:
        try:
            _ = self.template
        except DataError as error:
            raise ValueError(str(error).rstrip(".")) from None
        sides = () if self.scaling is None else (self.scaling.scale, self.scaling.shift)
        if any(len(side) != len(self.labels or ()) for side in sides):
            raise ValueError("scaling should have one number for each label")
        return self

    @model_serializer(mode="wrap")
    def _without_later_fields(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was not there at first is left out where there is none, for older readers."""
        return {k: v for k, v in write(self).items() if k != "scaling" or v is not None}


class DataCard(_Part):
    """One split that was used."""

    origin: str
    """Where its rows came from."""
    rows: int = Field(ge=0)
    """How many there were."""
    digest: str
    """SHA-256 of the rows."""


class TrainingCard(_Part):
    """How training went."""

    steps: int = Field(ge=0)
    """Steps taken."""
    best_step: int = Field(ge=0)
    """The step whose state was kept."""
    ended: str = Field(min_length=1)
    """Why training ended, such as "done" or "early"."""
    seconds: float = Field(ge=0)
    """Time spent training and validating."""
    peak_memory_bytes: int | None = Field(default=None, ge=0)
    """The most memory the process held, where it was measured."""


class TrialCard(_Part):
    """One candidate of a search."""

    settings: dict[str, Any]
    """What it changed, by dotted name."""
    validation: dict[str, Any]
    """The scores of its best state."""
    steps: int = Field(ge=0)
    """Steps it took."""
    best_step: int = Field(ge=0)
    """The step of that state."""
    ended: str = Field(min_length=1)
    """Why it ended: "dropped" when others were better, or as in training."""


class SeedCard(_Part):
    """What came of one seed."""

    seed: int = Field(ge=0)
    name: str | None = None
    """The name it was saved under; None if its training diverged."""
    scores: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By split."""


class SearchCard(_Part):
    """What a prompt was chosen from."""

    trials: list[TrialCard]
    """Every candidate, on the first seed."""
    chosen: int = Field(ge=0)
    """Which of them had the settings of this prompt, counted from 0."""
    seeds: list[SeedCard]
    """Those settings on every seed."""
    over_seeds: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By split: the measure, its mean and its standard deviation over seeds."""


class Card(_Part):
    """Everything known about a saved prompt except its weights."""

    format: Literal[1] = 1
    """Version of this file's format."""
    name: str = Field(min_length=1)
    """The name the prompt was saved under."""
    created: str
    """When it was made: ISO 8601 in UTC."""
    kind: str = Field(min_length=1)
    """The method: "prompt-tuning", "prefix-tuning", "text", "lora", "ia3", "full"."""
    base: BaseCard
    positions: int = Field(ge=0)
    """P, the positions it takes in front of every text."""
    trained_parameters: int = Field(ge=0)
    """How many numbers were learnt."""
    template: TemplateCard
    data: dict[str, DataCard]
    """By split."""
    scores: dict[str, dict[str, Any]]
    """By split or by row of a comparison; finite numbers and pairs of them."""
    training: TrainingCard | None = None
    """None where nothing was trained."""
    search: SearchCard | None = None
    """None where nothing was chosen among."""
    settings: dict[str, Any]
    """The resolved configuration."""
    versions: dict[str, str]
    """Of softprompt and of the libraries under it."""
    weights_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the weights file and the front's behind it, if any; empty until the card is saved."""

    def __repr__(self) -> str:
        return f"<Card {self.name}: {self.kind}, {self.positions} positions, on {self.base.name}>"

    def conversations(self, columns: Collection[str]) -> tuple[str | None, Answers | None]:
        """Which of these columns it learnt conversations from, and whose answers, as ``data.answers``."""
        column, last = self._data.get("messages"), self._data.get("answers") == "last"
        return (column if column in columns else None), ("last" if last else None)

    @property
    def separator(self) -> str | None:
        """What stands between the columns of its .csv and .tsv files, where ``data.separator`` said so."""
        told = self._data.get("separator")
        return told if isinstance(told, str) and len(told) == 1 and told not in '"\r\n' else None

    @property
    def _data(self) -> dict[str, Any]:
        """Its settings of ``[data]``; a card that was made elsewhere may have anything there."""
        data = self.settings.get("data")
        return data if isinstance(data, dict) else {}

    @field_validator("created")
    @classmethod
    def _is_utc(cls, created: str) -> str:
        try:
            offset = datetime.fromisoformat(created).utcoffset()
        except ValueError:
            offset = None
        if offset != timedelta(0):
            raise ValueError(f"should be an ISO 8601 time in UTC, got {shown(created)}")
        return created


def read_card(folder: Path) -> Card:
    """The card of the artifact in ``folder``.

    Raises:
        ArtifactError: it is missing, malformed, or of a newer format.
        ResourceError: it cannot be read.
    """
    path = folder / CARD_FILE
    return _checked(json_object(path, _LIMIT), str(path))


def card_of(content: bytes, where: str) -> Card:
    """The card that a file's content is; errors as in ``read_card``, which name ``where`` it came from."""
    return _checked(parsed_object(content, where, _LIMIT), where)


def _checked(values: dict[str, Any], path: str) -> Card:
    version = values.get("format")
    if type(version) is not int:
        raise ArtifactError(
            f"{path}: the field format should be {FORMAT}, got {shown(version)}; restore it from a good copy."
        )
    if version > FORMAT:
        raise ArtifactError(
            f"{path} was made by a newer softprompt (format {version}, this one reads {FORMAT}); "
            "upgrade softprompt."
        )
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        raise ArtifactError(f"{path}: {_fault(error)}; restore it from a good copy.") from None


def card_json(card: Card) -> str:
    """The card as ``read_card`` reads it; labels keep their order.

    Raises:
        ArtifactError: it would be too large to be read again.
    """
    text = json.dumps(card.model_dump(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if len(text.encode()) > _LIMIT:
        raise ArtifactError(
            f"The card of {card.name} would be larger than {_LIMIT:,} bytes; shorten its settings or scores."
        )
    return text


def _plain(value: Any, path: tuple[str, ...]) -> Any:
    """A copy in JSON's own types (tuples become lists); parts that are models already stay as they are."""
    if len(path) > _DEEPEST:
        raise ValueError(f"{'.'.join(path[:3])}... is nested too deeply")
    if isinstance(value, Mapping):
        return {_text(key, path): _plain(inner, (*path, str(key))) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, (*path, str(number))) for number, inner in enumerate(value)]
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{_dotted(path)} should be a finite number, got {value}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{_dotted(path)} should be a number of 64 bits, got a larger one")
    if value is None or isinstance(value, bool | int | float | BaseModel):
        return value
    raise ValueError(f"{_dotted(path)} holds a {type(value).__name__}, which JSON cannot")


def _text(text: Any, path: tuple[str, ...]) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{_dotted(path)} has the key {shown(text)}, which is not text")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{_dotted(path)} holds half a character (a lone surrogate)")
    return text


def _fault(error: ValidationError) -> str:
    """The first fault, without a full stop."""
    first = error.errors(include_url=False)[0]
    path = tuple(map(str, first["loc"]))
    name = _dotted(path)
    if first["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {
            "base": BaseCard,
            "template": TemplateCard,
            "training": TrainingCard,
            "data": DataCard,
            "search": SearchCard,
        }
        near = nearest(path[-1], (parts[path[0]] if len(path) > 1 else Card).model_fields)
        return f"unknown field {name}" + (f" (did you mean {near}?)" if near else "")
    if first["type"] == "missing":
        return f"the field {name} is missing"
    if first["type"] == "value_error":
        said = str(first["ctx"]["error"])
        return f"the field {name}: {said}" if path else said
    expected = first["msg"].replace("Input should be", "should be", 1)
    return f"the field {name} {expected[:1].lower()}{expected[1:]}, got {shown(first['input'])}"


def _dotted(path: tuple[str, ...]) -> str:
    return clipped(".".join(path) or "the card", 80)
