"""All settings of one run, and the doors they come in by."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from softprompt.config.data import SOURCES, DataConfig
from softprompt.config.method import MethodConfig, PromptTuningConfig
from softprompt.config.section import Section
from softprompt.config.train import BaseConfig, OutputConfig, TrainConfig
from softprompt.config_io import BrokenRuleError, faults, override, read_toml, shown, to_toml
from softprompt.errors import ConfigError

__all__ = ["NAME_RULE", "Config", "digest", "dump_toml", "load", "parse"]

NAME_RULE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_NO_PATH = ("bundled:", "hub:", "superglue:")


class Config(Section):
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

    @field_validator("train")
    @classmethod
    def _resolve_rate(cls, train: TrainConfig, info: ValidationInfo) -> TrainConfig:
        method = info.data.get("method")
        if method is None or "learning_rate" in train.model_fields_set:
            return train
        return train.model_copy(update={"learning_rate": method.rate})


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
    if method.init_text is not None:
        return "text"
    if method.init_artifact is not None:
        return "artifact"
    return "vocabulary" if data.labels is None else "labels"


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
        "data": {key: _absolute(v, folder) if key in SOURCES else v for key, v in data.items()}
    }


def _absolute(source: Any, folder: Path) -> Any:
    """Make a plain path absolute; leave names of bundled and hub data, addresses and nonsense alone."""
    source = os.fspath(source) if isinstance(source, os.PathLike) else source
    if not isinstance(source, str) or not source or source.startswith(_NO_PATH) or "://" in source:
        return source
    return str(folder.absolute() / os.path.expanduser(source))
