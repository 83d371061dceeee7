"""The settings of one run: their names, defaults and rules; knows nothing of models, data or training.

``load`` and ``parse`` are the doors: they report every fault at once, in plain words. A setting that may
be off, such as ``train.clip``, is turned off by the word ``"none"``, for TOML has no null.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from softprompt.config_io import (
    NONE,
    BrokenRuleError,
    faults,
    may_be_none,
    override,
    read_toml,
    shown,
    to_toml,
)
from softprompt.errors import ConfigError

__all__ = [
    "NAME_RULE",
    "BaseConfig",
    "Config",
    "DataConfig",
    "MethodConfig",
    "OutputConfig",
    "PromptTuningConfig",
    "TextConfig",
    "TrainConfig",
    "digest",
    "dump_toml",
    "load",
    "parse",
]

_SOURCES = ("train", "validation", "test")
NAME_RULE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_NO_PATH = ("bundled:", "hub:")


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        off = {name for name, field in cls.model_fields.items() if may_be_none(field)}
        return {key: None if key in off and value == NONE else value for key, value in settings.items()}

    @field_validator("*")
    @classmethod
    def _text_is_unicode(cls, value: Any) -> Any:
        return _unicode(value) if isinstance(value, str) else value


class BaseConfig(_Section):
    """The frozen model."""

    model: str = Field(default="smollm2-135m", min_length=1)
    """A bundled name, a hub id, a folder or a .gguf file."""
    revision: str | None = Field(default=None, min_length=1)
    """The branch, tag or commit of a hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The number format of the weights."""
    device: str = Field(default="auto", min_length=1)
    """Where the model runs, such as cpu or cuda:0."""
    trust_remote_code: bool = False
    """Whether Python code that comes with a hub model may run."""


class DataConfig(_Section):
    """The rows to learn from, and how a row becomes text."""

    train: str | None = Field(default=None, min_length=1)
    """The training rows: a path, bundled:NAME/SPLIT or hub:..."""
    validation: str | None = Field(default=None, min_length=1)
    """The rows that choices are made on: a path, bundled:NAME/SPLIT or hub:..."""
    test: str | None = Field(default=None, min_length=1)
    """The rows read once, at the end: a path, bundled:NAME/SPLIT or hub:..."""
    input: str
    """The template of what the model reads, such as "Headline: {text}"."""
    target: str = Field(min_length=1)
    """The template of what the model should write, such as " {label}"."""
    labels: list[str] | dict[str, str] | None = None
    """The possible labels, or a table from each label in the data to its word."""
    label_column: str | None = Field(default=None, min_length=1)
    """The column that holds the label."""
    loss_on: Literal["target", "text"] = "target"
    """Whether the loss is over the target only or over the input too."""
    end_of_text: bool | None = None
    """Whether the target closes with the end-of-text token; none means yes unless there are labels."""
    max_tokens: int = Field(default=512, ge=8)
    """The longest row, in tokens."""
    train_rows: int | None = Field(default=None, ge=1)
    """How many training rows to use; none means all."""
    validation_rows: int | None = Field(default=None, ge=1)
    """How many validation rows to use; none means all."""
    test_rows: int | None = Field(default=None, ge=1)
    """How many test rows to use; none means all."""
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    """The share of training rows held back when there is no validation source."""
    chat: bool = False
    """Whether front, input and target stand at their places in the base's chat template."""

    @property
    def ends(self) -> bool:
        """Whether the target closes with the end-of-text token."""
        return self.labels is None if self.end_of_text is None else self.end_of_text

    @field_validator(*_SOURCES, mode="before")
    @classmethod
    def _paths_are_text(cls, source: Any) -> Any:
        return os.fspath(source) if isinstance(source, os.PathLike) else source

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_text(cls, labels: Any) -> Any:
        if labels is None:
            return None
        if isinstance(labels, Mapping):
            return dict(zip(_words(labels, "label"), _words(labels.values(), "word"), strict=True))
        if isinstance(labels, list | tuple):
            return _words(labels, "label")
        raise BrokenRuleError(f'expected a list of labels or a table of label = "word", got {shown(labels)}')


class PromptTuningConfig(_Section):
    """A soft prompt: vectors in front of the text, learnt while the model stays as it is."""

    kind: Literal["prompt-tuning"] = "prompt-tuning"
    """The method."""
    front: str = "{soft:20}"
    """What stands in front of every row: text, and {soft:N} for N learnt vectors."""
    init: Literal["text", "labels", "vocabulary", "random", "artifact"] = "vocabulary"
    """What the vectors start from; when not given: the labels, else init_text, else init_artifact, if any."""
    init_text: str | None = Field(default=None, min_length=1)
    """The text to start from."""
    init_artifact: str | None = Field(default=None, min_length=1)
    """The saved prompt to start from."""
    reparametrisation: Literal["none", "residual"] = "none"
    """Whether the vectors pass through a small network while they are learnt."""
    reparametrisation_width: int = Field(default=64, ge=1)
    """The width of that network."""

    @field_validator("init_text", "init_artifact")
    @classmethod
    def _init_has_its_source(cls, source: str | None, info: ValidationInfo) -> str | None:
        if source is None and f"init_{info.data.get('init')}" == info.field_name:
            raise BrokenRuleError(f'required and missing, because method.init is "{info.data["init"]}"')
        return source


class TextConfig(_Section):
    """Text only: an instruction or nothing; no training."""

    kind: Literal["text"] = "text"
    """The method."""
    front: str = ""
    """The text that stands in front of every row."""


# A new method is a new class here with a `kind` of its own.
MethodConfig = Annotated[PromptTuningConfig | TextConfig, Field(discriminator="kind")]


class TrainConfig(_Section):
    """How the method is trained."""

    learning_rate: float = Field(default=0.02, gt=0)
    """The highest learning rate of the schedule."""
    epochs: int = Field(default=3, ge=0)
    """How many times every training row is seen."""
    max_steps: int | None = Field(default=None, ge=0)
    """The most steps to take, whatever the epochs."""
    batch_size: int = Field(default=16, ge=1)
    """How many rows make one step."""
    accumulation: int = Field(default=1, ge=1)
    """How many micro-batches a batch is split into, to save memory."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """The optimizer."""
    weight_decay: float = Field(default=0.0, ge=0)
    """How strongly the optimizer pulls towards zero."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warmup."""
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """The share of all steps in which the learning rate rises."""
    clip: float | None = Field(default=1.0, gt=0)
    """The largest norm of a gradient; none means no limit."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; none means once an epoch."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations without gain before stopping early; none means never."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between checkpoints."""
    select: Literal["auto", "accuracy", "nll"] = "auto"
    """The validation score that picks the best state."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; none leaves the choice to torch."""

    @field_validator("accumulation")
    @classmethod
    def _micro_batches_have_rows(cls, accumulation: int, info: ValidationInfo) -> int:
        rows = info.data.get("batch_size", accumulation)
        if accumulation > rows:
            raise BrokenRuleError(f"expected at most train.batch_size, which is {rows}, got {accumulation}")
        return accumulation


class OutputConfig(_Section):
    """Where results go."""

    library: str = Field(default="prompts", min_length=1)
    """The folder of artifacts."""
    runs: str = Field(default="runs", min_length=1)
    """The folder of logs and checkpoints."""
    tensorboard: bool = False
    """Whether to log for TensorBoard too."""
    overwrite: bool = False
    """Whether an artifact of the same name may be replaced."""


class Config(_Section):
    """All settings of one run."""

    name: str = "prompt"
    """The name of the artifact and of its folder."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """The number that fixes every random choice."""
    base: BaseConfig = Field(default_factory=BaseConfig)
    """The frozen model."""
    data: DataConfig
    """The rows to learn from."""
    method: MethodConfig = Field(default_factory=PromptTuningConfig)
    """What is learnt."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """How it is trained."""
    output: OutputConfig = Field(default_factory=OutputConfig)
    """Where results go."""

    @model_validator(mode="before")
    @classmethod
    def _name_what_data_lacks(cls, settings: Any) -> Any:
        return {"data": {}, **settings} if isinstance(settings, Mapping) else settings

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not NAME_RULE.fullmatch(name):
            rule = "1 to 100 of the letters a-z and A-Z, digits, '.', '_' and '-', not starting with '.'"
            raise BrokenRuleError(f"expected {rule}, got {shown(name)}")
        return name

    @field_validator("method", mode="before")
    @classmethod
    def _default_kind(cls, method: Any) -> Any:
        return {"kind": "prompt-tuning", **method} if isinstance(method, Mapping) else method

    @field_validator("method")
    @classmethod
    def _resolve_init(cls, method: MethodConfig, info: ValidationInfo) -> MethodConfig:
        data = info.data.get("data")
        if data is None or not isinstance(method, PromptTuningConfig):
            return method
        if "init" not in method.model_fields_set:
            return method.model_copy(update={"init": _default_init(method, data)})
        if method.init == "labels" and data.labels is None:
            raise BrokenRuleError('"labels" needs data.labels, which is missing', at="init")
        return method


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, whose paths start at its folder; one that gives no name gives its own."""
    path = Path(path)
    named = {"name": path.stem} if NAME_RULE.fullmatch(path.stem) else {}
    return parse(named | _rooted(read_toml(path), path.parent), overrides, folder=Path.cwd())


def parse(
    settings: Mapping[str, Any] | Config,
    overrides: Sequence[str] = (),
    *,
    folder: str | Path | None = None,
) -> Config:
    """Check settings after applying ``a.b=value`` overrides; relative data paths start at ``folder``."""
    plain = _plain(settings)
    if not isinstance(plain, dict):
        raise ConfigError(f"A configuration is a table of settings, not {shown(settings)}.")
    found = override(plain, overrides, Config)
    try:
        config = Config.model_validate(plain if folder is None else _rooted(plain, Path(folder)))
    except ValidationError as error:
        raise ConfigError("\n".join(found + faults(error, Config))) from None
    if found:
        raise ConfigError("\n".join(found))
    return config


def dump_toml(config: Config) -> str:
    """Write the resolved configuration; parsing it gives an equal one."""
    return to_toml(config)


def digest(config: Config) -> str:
    """Return a SHA-256 of every resolved setting, the order of labels and the data paths included."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()


def _default_init(
    method: PromptTuningConfig, data: DataConfig
) -> Literal["text", "labels", "vocabulary", "artifact"]:
    if data.labels is not None:
        return "labels"
    if method.init_text is not None:
        return "text"
    return "vocabulary" if method.init_artifact is None else "artifact"


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value:
        return _unicode(value)
    raise BrokenRuleError(f"expected labels that are text, whole numbers, true or false, got {shown(value)}")


def _unicode(text: str) -> str:
    """Refuse the half characters that undecodable bytes of a command line turn into."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BrokenRuleError(f"expected text that can be written as UTF-8, got {text!a}") from error
    return text


def _words(values: Iterable[Any], what: str) -> list[str]:
    words = [_label(value) for value in values]
    for place, word in enumerate(words):
        if word in words[:place]:
            raise BrokenRuleError(f"the {what} {shown(word)} stands there twice")
    if len(words) < 2:
        raise BrokenRuleError(f"expected at least two labels, got {len(words)}")
    return words


def _plain(value: Any) -> Any:
    """Copy settings into plain dictionaries, keeping of a model what was set and its kind."""
    if isinstance(value, BaseModel):
        names = [n for n in type(value).model_fields if n in value.model_fields_set or n == "kind"]
        value = {name: getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return value


def _rooted(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    data = settings.get("data")
    if not isinstance(data, dict):
        return settings
    return settings | {
        "data": {key: _absolute(v, folder) if key in _SOURCES else v for key, v in data.items()}
    }


def _absolute(source: Any, folder: Path) -> Any:
    """Make a plain path absolute; leave names of bundled and hub data, addresses and nonsense alone."""
    source = os.fspath(source) if isinstance(source, os.PathLike) else source
    if not isinstance(source, str) or not source or source.startswith(_NO_PATH) or "://" in source:
        return source
    return str(folder.absolute() / os.path.expanduser(source))
