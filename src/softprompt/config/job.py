"""All settings of one run, and the doors they come in by."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from softprompt import recipes
from softprompt.config.data import SOURCES, DataConfig
from softprompt.config.method import MethodConfig, PrefixTuningConfig, PromptTuningConfig
from softprompt.config.search import SearchConfig
from softprompt.config.section import Section
from softprompt.config.teacher import TeacherConfig, with_a_teacher
from softprompt.config.train import BaseConfig, OutputConfig, TrainConfig
from softprompt.config_io import BrokenRuleError, faults, override, read_toml, shown, to_toml
from softprompt.errors import ConfigError
from softprompt.packages import Need

__all__ = ["NAME_RULE", "Config", "candidates", "digest", "dump_toml", "load", "parse", "rooted"]

NAME_RULE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_MOST_POSITIONS = 64
"""Of a KV prefix whose length nobody gave: with the bundled base 30% of the numbers of LoRA of rank 8."""
_NO_PATH = ("bundled:", "hub:", "superglue:")


class Config(Section):
    """All settings of one run."""

    later: ClassVar[tuple[str, ...]] = ("search", "teacher")
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
    search: SearchConfig | None = None
    """What to try and on which seeds; none means one run."""
    teacher: TeacherConfig | None = None
    """What to answer like; none means to learn from the rows' own answers."""

    @property
    def seeds(self) -> list[int]:
        """The seeds that are learnt on; settings are chosen on the first."""
        return [self.seed] if self.search is None or self.search.seeds is None else self.search.seeds

    @property
    def names(self) -> list[str]:
        """The artifacts that may be written: ``name`` for the best seed, one for each other."""
        seeds = self.seeds
        return [self.name, *(f"{self.name}-seed{seed}" for seed in seeds if len(seeds) > 1)]

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the run takes that softprompt does not bring by itself."""
        return tuple(
            need
            for part in (self.method, self.base, self.data, self.train, self.output)
            for need in part.needs
        )

    @model_validator(mode="before")
    @classmethod
    def _name_what_data_lacks(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        taught = with_a_teacher(dict(settings)) if settings.get("teacher") is not None else settings
        return {"data": {}, **taught}

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
    def _resolve_start(cls, method: MethodConfig, info: ValidationInfo) -> MethodConfig:
        data = info.data.get("data")
        if isinstance(method, PrefixTuningConfig):
            bound = method.init == "text" and not method.model_fields_set & {"positions", "most"}
            return _resolved(method, most=_MOST_POSITIONS) if bound else method
        if data is None or not isinstance(method, PromptTuningConfig):
            return method
        if "init" not in method.model_fields_set:
            return _resolved(method, init=_default_init(method, data))
        if method.init == "labels" and data.labels is None:
            raise BrokenRuleError('"labels" needs data.labels, which is missing', at="init")
        return method

    @field_validator("train")
    @classmethod
    def _resolve_rate_and_length(cls, train: TrainConfig, info: ValidationInfo) -> TrainConfig:
        method = info.data.get("method")
        if method is None:
            return train
        found: dict[str, Any] = {}
        if "learning_rate" not in train.model_fields_set:
            found["learning_rate"] = method.rate
        if not train.model_fields_set & {"epochs", "max_steps", "min_steps"}:
            found["min_steps"] = method.steps
        return _resolved(train, **found)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, whose paths start at its folder, or a recipe by its name.

    A file that gives no name gives its own.
    """
    if str(path) in recipes.names() and not Path(path).exists():
        return parse(tomllib.loads(recipes.text(str(path))), overrides, folder=Path.cwd())
    path = Path(path)
    named = {"name": path.stem} if NAME_RULE.fullmatch(path.stem) else {}
    return parse(named | rooted(read_toml(path), path.parent), overrides, folder=Path.cwd())


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
        config = Config.model_validate(plain if folder is None else rooted(plain, Path(folder)))
    except ValidationError as error:
        raise ConfigError("\n".join(found + faults(error, Config))) from None
    found += _search_faults(config)
    if found:
        raise ConfigError("\n".join(found))
    return config


def candidates(config: Config) -> list[tuple[dict[str, Any], Config]]:
    """The runs a search chooses among: what each changes, by dotted name, and all its settings."""
    search = config.search or SearchConfig()
    return [(changes, _changed(config, changes)) for changes in search.combinations()]


def dump_toml(config: Config) -> str:
    """Write the resolved configuration; parsing it gives an equal one."""
    return to_toml(config)


def digest(config: Config) -> str:
    """Return a SHA-256 of every resolved setting, the order of labels and the data paths included."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()


def _changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """One candidate of a search: what follows from other settings is found anew."""
    plain = _plain(config)
    plain.pop("search", None)
    for dotted, value in changes.items():
        section, _, key = dotted.partition(".")
        plain.setdefault(section, {})[key] = value
    return Config.model_validate(plain)


def _search_faults(config: Config) -> list[str]:
    """What is wrong with the candidates of a search, a line each."""
    if config.search is None:
        return []
    found = []
    if not NAME_RULE.fullmatch(longest := max(config.names, key=len)):
        found.append(f"search.seeds: {longest} would be too long a name; shorten {config.name}")
    for changes in config.search.combinations():
        try:
            candidate = _changed(config, changes)
        except ValidationError as error:
            found += [_of_the_grid(line, changes) for line in faults(error, Config)]
            continue
        if not (candidate.method.learns and candidate.train.epochs and candidate.train.max_steps != 0):
            found.append(
                "search: nothing is trained; choose a method.kind that learns, and train.epochs above 0"
            )
    return list(dict.fromkeys(found))


def _of_the_grid(fault: str, changes: Mapping[str, Any]) -> str:
    return f"search.grid.{fault}" if fault.startswith(tuple(changes)) else f"search.grid: {fault}"


S = TypeVar("S", bound=Section)


def _resolved(section: S, **found: Any) -> S:
    """A section with what follows from other settings, which does not count as given."""
    whole = section.model_copy(update=found)
    whole.model_fields_set.difference_update(found)
    return whole


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


def rooted(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings whose relative paths start at ``folder``; nothing else of them is looked at."""
    whole = dict(settings)
    for section, paths in (("data", SOURCES), ("teacher", ("file",))):
        if isinstance(found := settings.get(section), dict):
            whole[section] = {k: _absolute(v, folder) if k in paths else v for k, v in found.items()}
    return whole


def _absolute(source: Any, folder: Path) -> Any:
    """Make a plain path absolute; leave names of bundled and hub data, addresses and nonsense alone."""
    source = os.fspath(source) if isinstance(source, os.PathLike) else source
    if not isinstance(source, str) or not source or source.startswith(_NO_PATH) or "://" in source:
        return source
    return str(folder.absolute() / os.path.expanduser(source))
