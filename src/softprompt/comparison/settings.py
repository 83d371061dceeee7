"""The file of a comparison: one base, one data set, several methods, the same tuning trials for each.

It turns that file into complete run configurations; it does not train or score anything.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from softprompt.config import (
    NAME_RULE,
    BaseConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    MethodConfig,
    TrainConfig,
    parse,
    rooted,
)
from softprompt.config.data import SOURCES
from softprompt.config.section import Section, on_disk
from softprompt.config_io import BrokenRuleError, faults, override, read_toml, shown
from softprompt.errors import ConfigError
from softprompt.packages import Need

__all__ = ["Comparison", "Contender", "MethodEntry", "checked", "load_comparison", "read_settings"]

_SHARED = (
    *("task", *SOURCES, *(f"{split}_rows" for split in SOURCES), "validation_fraction"),
    *("group", "draw", "label_column", "label_aliases", "choices", "messages", "answers"),
)
"""The settings of [data] that say which rows there are and what is right in them."""

_OF_LABELS = ("auto", "accuracy", "macro_f1")
"""The metrics that need nothing of a method but the labels it gives."""

METRICS = Literal[
    "auto",
    "accuracy",
    "macro_f1",
    "nll",
    "exact_match",
    "token_f1",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "bleu",
    "chrf",
]


class Rules(Section):
    """What every method is held to."""

    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    """Seeds; trials are run on the first, the chosen settings on all."""
    trials: int = Field(default=3, ge=1)
    """Tuning trials of each method that names none: so many learning rates around the method's own."""
    metric: METRICS = "auto"
    """What decides: accuracy where there are labels, else nll, unless named."""
    hours: float | None = Field(default=None, gt=0)
    """Hours it may take here; trials, seeds and rows are cut until it fits, and the report says so."""
    alternatives: bool = True
    """Whether classifiers on words, on sentence embeddings and on hidden states are compared too."""
    perturb: bool = True
    """Whether the first seed is tested on rows with typos, other case and other spacing too."""
    latency_requests: int = Field(default=12, ge=0)
    """Requests answered alone to measure latency; 0 measures none."""
    max_new_tokens: int = Field(default=64, ge=1)
    """The longest answer, where answers are written and scored."""
    folder: str = Field(default="comparisons", min_length=1)
    """Where results, report and the artifacts of chosen runs go."""

    @field_validator("folder")
    @classmethod
    def _is_on_a_disk(cls, folder: str) -> str:
        return on_disk(folder)

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise BrokenRuleError(f"expected different whole numbers of at least 0, got {shown(seeds)}")
        return seeds


class MethodEntry(Section):
    """One method as the file names it."""

    name: str = Field(min_length=1, max_length=60)
    """What the tables call it."""
    method: dict[str, Any] = Field(default_factory=dict)
    """The settings of its [method]."""
    train: dict[str, Any] = Field(default_factory=dict)
    """What it changes in [train]."""
    base: dict[str, Any] = Field(default_factory=dict)
    """What it changes in [base], such as the quantisation."""
    data: dict[str, Any] = Field(default_factory=dict)
    """What it changes in [data] but for the rows and their labels, such as retrieved demonstrations."""
    teacher: dict[str, Any] | None = None
    """Its [teacher], where it learns a long text, or a saved prompt, instead of the rows' answers."""
    trials: list[dict[str, Any]] | None = Field(default=None, min_length=1)
    """Settings to choose among on validation, by dotted name."""
    votes_of: str | None = None
    """The method whose seeds vote together as this one; then nothing else is set."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> MethodEntry:
        own = self.model_fields_set - {"name", "votes_of"}
        if self.votes_of is not None and own:
            raise BrokenRuleError(f"a vote of {self.votes_of!r} cannot have {', '.join(sorted(own))} as well")
        return self


class Comparison(Section):
    """All settings of a comparison."""

    name: str = "comparison"
    """Its name and its folder's."""
    base: BaseConfig = Field(default_factory=BaseConfig)
    """The frozen model."""
    data: DataConfig
    """The rows every method learns from and is scored on."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """How all methods are trained, but for what one changes."""
    compare: Rules = Field(default_factory=Rules)
    """What every method is held to."""
    methods: list[MethodEntry] = Field(
        default_factory=lambda: [MethodEntry.model_validate(e) for e in STANDARD]
    )
    """The methods; when not given, a standard list."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not NAME_RULE.fullmatch(name):
            raise BrokenRuleError(f"expected a name of letters, digits, '.', '_' and '-', got {shown(name)}")
        return name

    @field_validator("methods")
    @classmethod
    def _names_differ(cls, methods: list[MethodEntry]) -> list[MethodEntry]:
        names = [entry.name for entry in methods]
        for number, entry in enumerate(methods):
            if entry.name in names[:number]:
                raise BrokenRuleError(f"two methods are called {entry.name!r}")
            if entry.votes_of is not None and entry.votes_of not in names[:number]:
                raise BrokenRuleError(f"{entry.name!r} votes for {entry.votes_of!r}, no method above it")
            if entry.votes_of in [other.name for other in methods[:number] if other.votes_of is not None]:
                raise BrokenRuleError(f"{entry.name!r} votes for {entry.votes_of!r}, which is a vote itself")
        return methods

    @field_validator("train")
    @classmethod
    def _is_followed_by_its_results(cls, train: TrainConfig) -> TrainConfig:
        if train.report_to:
            raise BrokenRuleError("trackers follow one run, not a comparison; take it out", at="report_to")
        return train

    @field_validator("data")
    @classmethod
    def _has_a_test_split(cls, data: DataConfig, info: ValidationInfo) -> DataConfig:
        if data.test is None:
            raise BrokenRuleError("required and missing; methods are compared on test rows", at="test")
        return data


STANDARD: list[dict[str, Any]] = [
    {
        "name": "prompt engineering",
        "method": {"kind": "text"},
        "trials": [{}, {"method.front": "{demos:2}"}, {"method.front": "{demos:4}"}],
    },
    {"name": "prompt tuning", "method": {"kind": "prompt-tuning"}},
    {"name": "prefix tuning", "method": {"kind": "prefix-tuning"}},
    {"name": "LoRA", "method": {"kind": "lora"}},
    {"name": "full fine-tuning", "method": {"kind": "full"}},
]


ALTERNATIVES: list[dict[str, Any]] = [
    {"name": "TF-IDF", "method": {"kind": "classifier", "features": "tf-idf"}},
    {"name": "sentence embeddings", "method": {"kind": "classifier", "features": "encoder"}},
    {"name": "hidden states", "method": {"kind": "classifier", "features": "hidden"}},
]
"""What is compared beside the methods of every file, unless it has its own of the kind."""


class Contender:
    """One method with everything resolved: a complete configuration for each of its trials."""

    def __init__(self, entry: MethodEntry, trials: list[dict[str, Any]], configs: list[Config]) -> None:
        self.name = entry.name
        self.votes_of = entry.votes_of
        self.trials = trials
        self._configs = configs

    def config(self, trial: int, seed: int) -> Config:
        """The configuration of one trial on one seed."""
        return self._configs[trial].model_copy(update={"seed": seed})

    @property
    def learns(self) -> bool:
        """Whether it trains anything of its own."""
        return self.method is not None and self.method.learns

    @property
    def method(self) -> MethodConfig | None:
        """The settings of its [method] in its first trial; None of a vote."""
        return None if self.votes_of is not None else self._configs[0].method

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(need for config in self._configs for need in config.needs)

    @property
    def kind(self) -> str:
        return "ensemble" if self.method is None else self.method.kind


def load_comparison(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> tuple[Comparison, list[Contender]]:
    """Read a comparison and resolve every trial of every method; all faults come at once.

    Args:
        source: the path of a TOML file, or its content.
        overrides: ``a.b=value`` each, over what is the same for all methods.

    Raises:
        ConfigError: a setting is wrong, or methods that learn have different numbers of trials.
    """
    settings = read_settings(source)
    comparison = checked(Comparison, settings, overrides)
    trials = comparison.compare.trials
    contenders = [_contender(comparison, settings, entry, trials) for entry in comparison.methods]
    trials = next((len(contender.trials) for contender in contenders if contender.learns), trials)
    more = _alternatives(comparison, contenders)
    contenders += [_contender(comparison, settings, entry, trials) for entry in more]
    _check_equal_trials(contenders)
    return comparison.model_copy(update={"methods": [*comparison.methods, *more]}), contenders


S = TypeVar("S", bound=Section)


def checked(schema: type[S], settings: dict[str, Any], overrides: Sequence[str]) -> S:
    """Settings with what is set over them, which is written into them; all faults come at once.

    Raises:
        ConfigError: a setting or an override is wrong.
    """
    wrong = override(settings, overrides, schema)
    try:
        found = schema.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(wrong + faults(error, schema))) from None
    if wrong:
        raise ConfigError("\n".join(wrong))
    return found


def _alternatives(comparison: Comparison, contenders: Sequence[Contender]) -> list[MethodEntry]:
    """What one would use instead and the file does not have already."""
    rules = comparison.compare
    if not rules.alternatives or comparison.data.labels is None or rules.metric not in _OF_LABELS:
        return []
    methods = [contender.method for contender in contenders]
    own = {method.features for method in methods if isinstance(method, ClassifierConfig)}
    known = {contender.name for contender in contenders}
    return [
        MethodEntry.model_validate(about)
        for about in ALTERNATIVES
        if about["name"] not in known and about["method"]["features"] not in own
    ]


def read_settings(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, as written, but for relative paths of rows, which start at its folder."""
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source))
    path = Path(source)
    # Paths start at the file's folder, as in a run's configuration.
    settings = rooted({"name": path.stem} | read_toml(path), path.parent)
    for listed in ("methods", "tasks"):
        if isinstance(entries := settings.get(listed), list):
            settings[listed] = [rooted(e, path.parent) if isinstance(e, dict) else e for e in entries]
    return settings


def _contender(
    comparison: Comparison, settings: Mapping[str, Any], entry: MethodEntry, count: int
) -> Contender:
    """One method with its own trials, or with ``count`` of them if it names none."""
    if entry.votes_of is not None:
        if comparison.data.labels is None and comparison.data.choices is None:
            raise ConfigError(
                f"methods, {entry.name!r}: texts cannot be voted on; give data labels or choices."
            )
        return Contender(entry, [{}], [])
    own: dict[str, Any] = {"method": entry.method}
    if entry.teacher is not None:
        own["teacher"] = entry.teacher
    for section in ("base", "data", "train"):
        own[section] = {**settings.get(section, {}), **getattr(entry, section)}
    trials = entry.trials
    if trials is None:
        trials = _rates(_parsed(own, entry.name), count)
    configs = [_parsed(_changed(own, trial, entry.name), entry.name) for trial in trials]
    for config in configs:
        _check_same_rows(comparison.data, config.data, entry.name)
    if isinstance(configs[0].method, ClassifierConfig):
        _check_classifiable(comparison, entry.name)
    return Contender(entry, trials, configs)


def _check_same_rows(shared: DataConfig, own: DataConfig, name: str) -> None:
    """A method may read the rows its own way, but they are everybody's rows, with the same right answers."""
    for key in _SHARED:
        if getattr(own, key) != getattr(shared, key):
            raise ConfigError(
                f"methods, {name!r}: data.{key} is what all methods share, so that they can be compared; "
                "set it in [data] alone."
            )
    if [*(own.labels or ())] != [*(shared.labels or ())]:
        raise ConfigError(
            f"methods, {name!r}: data.labels may give other words, but of the same labels in the same order "
            "as in [data], or predictions could not be compared."
        )


def _check_classifiable(comparison: Comparison, name: str) -> None:
    """A classifier gives a label, and nothing else that could be scored."""
    if comparison.data.labels is None or comparison.compare.metric not in _OF_LABELS:
        raise ConfigError(
            f"methods, {name!r}: a classifier tells labels apart and writes nothing; give data.labels, with "
            "compare.metric accuracy or macro_f1, or take it out."
        )


def _parsed(settings: dict[str, Any], name: str) -> Config:
    try:
        return parse(settings)
    except ConfigError as error:
        lines = str(error).splitlines()
        raise ConfigError("\n".join(f"methods, {name!r}: {line}" for line in lines)) from None


def _rates(config: Config, trials: int) -> list[dict[str, Any]]:
    """Learning rates, or what a method has instead, around its own; one trial if nothing trains."""
    if not config.method.learns:
        return [{}]
    name, apart = config.method.searched
    section, _, key = name.partition(".")
    middle = getattr(getattr(config, section), key)
    return [{name: float(f"{middle * apart ** (i - (trials - 1) / 2):.2g}")} for i in range(trials)]


def _changed(settings: Mapping[str, Any], trial: Mapping[str, Any], name: str) -> dict[str, Any]:
    changed = copy.deepcopy(dict(settings))
    for dotted, value in trial.items():
        section, dot, key = dotted.partition(".")
        if not dot or section not in ("method", "train", "base", "data", "teacher"):
            raise ConfigError(
                f"methods, {name!r}: a trial sets {dotted!r}; name a setting of method, train, base, data or "
                "teacher, such as train.learning_rate."
            )
        changed.setdefault(section, {})[key] = value
    return changed


def _check_equal_trials(contenders: list[Contender]) -> None:
    """Methods that learn must have been tuned as hard as each other."""
    counts = {c.name: len(c.trials) for c in contenders if c.learns}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(
            f"Every method that learns must have the same number of trials, or the comparison is not fair, "
            f"but they have: {said}."
        )
