"""A comparison on several data sets, on several bases, or on both: its members, one after the other.

It turns one file into those of its members; a member is an ordinary comparison with results and a report of
its own, and what they say together is ``suite_results``'.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from softprompt.comparison.results import Results
from softprompt.comparison.run import REPORT, RESULTS, Spread, compare
from softprompt.comparison.settings import STANDARD, Comparison, checked, load_comparison, read_settings
from softprompt.comparison.suite_page import write_suite_report
from softprompt.comparison.suite_results import SuiteResults, summed
from softprompt.config import NAME_RULE
from softprompt.config.section import Section
from softprompt.config_io import BrokenRuleError, override, shown
from softprompt.errors import ConfigError, DataError
from softprompt.listener import Report

__all__ = ["Member", "Suite", "compare_all", "members"]


class TaskEntry(Section):
    """One data set as the file names it."""

    name: str
    """What the tables call it."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Its [data], over what the file has for all."""
    train: dict[str, Any] = Field(default_factory=dict)
    """What it changes in [train]."""
    compare: dict[str, Any] = Field(default_factory=dict)
    """What it changes in [compare], such as the metric."""
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What it changes in the [method] of methods, by their names, such as an instruction."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not NAME_RULE.fullmatch(name):
            raise BrokenRuleError(f"expected a name of letters, digits, '.', '_' and '-', got {shown(name)}")
        return name


class Suite(Section):
    """What makes one file stand for several comparisons."""

    tasks: list[TaskEntry] = Field(default_factory=list)
    """Data sets that all methods are compared on, each by itself; [data] has what they share."""
    bases: list[str] = Field(default_factory=list)
    """Bases that all methods are compared on, instead of base.model."""

    @field_validator("bases")
    @classmethod
    def _bases_differ(cls, bases: list[str]) -> list[str]:
        if len(set(bases)) < len(bases):
            raise BrokenRuleError("a base stands there twice")
        return bases

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: list[TaskEntry]) -> list[TaskEntry]:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise BrokenRuleError("two tasks have the same name")
        return tasks


@dataclass(frozen=True)
class Member:
    """One comparison of a suite.

    Attributes:
        task: the name of its data set; empty where the file has one.
        settings: its whole content, as ``compare`` takes it.
    """

    task: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.settings["name"])

    @property
    def folder(self) -> Path:
        """Where its files go."""
        return Path(self.settings["compare"]["folder"]) / self.name


def members(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), bases: Sequence[str] = ()
) -> list[Member]:
    """The comparisons a file stands for; empty where it is a single one, without tasks and bases.

    Args:
        source: the path of a TOML file, or its content.
        overrides: ``a.b=value`` each, over what the file and its tasks say.
        bases: instead of the file's own.

    Raises:
        ConfigError: a setting of any member is wrong; those of all members are told at once.
    """
    written = read_settings(source)
    suite = _suite(written, overrides, bases)
    if not suite.tasks and not suite.bases:
        return []
    shared = {key: value for key, value in written.items() if key not in Suite.model_fields}
    slugs, count = _slugs(suite.bases), max(1, len(suite.tasks)) * max(1, len(suite.bases))
    tasks: list[TaskEntry | None] = [*suite.tasks] or [None]
    models: list[tuple[str | None, str]] = [*zip(suite.bases, slugs, strict=True)] or [(None, "")]
    found = [_member(shared, overrides, task, model, slug, count) for task in tasks for model, slug in models]
    _check(found)
    return found


def _suite(written: Mapping[str, Any], overrides: Sequence[str], bases: Sequence[str]) -> Suite:
    about = {key: written[key] for key in Suite.model_fields if key in written}
    about |= {"bases": list(bases)} if bases else {}
    own = [text for text in overrides if text.partition("=")[0].strip() in Suite.model_fields]
    return checked(Suite, about, own)


def _member(
    shared: Mapping[str, Any],
    overrides: Sequence[str],
    task: TaskEntry | None,
    model: str | None,
    slug: str,
    count: int,
) -> Member:
    """What is shared, then what its data set says, then the overrides, then its own base and place.

    Of hours it gets one part in ``count``.
    """
    settings: dict[str, Any] = {"data": {}, "train": {}, "compare": {}} | copy.deepcopy(dict(shared))
    for section in ("data", "train", "compare") if task else ():
        if isinstance(settings[section], Mapping):  # else whoever loads it says so
            settings[section] = {**settings[section], **getattr(task, section)}
    if task and task.methods:
        settings["methods"] = _with_changes(settings.get("methods", STANDARD), task)
    own = [o for o in overrides if o.partition("=")[0].strip() not in Suite.model_fields]
    if wrong := override(settings, own, Comparison):
        raise ConfigError("\n".join(wrong))
    if model is not None and isinstance(about := settings.get("base", {}), Mapping):
        settings["base"] = {**about, "model": model}
    rules = settings["compare"]
    if isinstance(rules, Mapping):
        folder = f"{rules.get('folder', 'comparisons')}/{settings.get('name', 'comparison')}"
        hours = {"hours": rules["hours"] / count} if isinstance(rules.get("hours"), int | float) else {}
        settings["compare"] = {**rules, "folder": folder, **hours}
    settings["name"] = "-".join(part for part in (task.name if task else "", slug) if part)
    return Member(task.name if task else "", settings)


def _with_changes(entries: Sequence[Mapping[str, Any]], task: TaskEntry) -> list[dict[str, Any]]:
    """The methods of a file with what a data set changes in them."""
    names = [entry.get("name") for entry in entries]
    for name in task.methods:
        if name not in names:
            raise ConfigError(f"tasks, {task.name!r}: no method is called {name!r}.")
    return [
        {**entry, "method": {**entry.get("method", {}), **task.methods[name]}}
        if name in task.methods
        else dict(entry)
        for name, entry in zip(names, entries, strict=True)
    ]


def _slugs(bases: Sequence[str]) -> list[str]:
    """Short names of bases for folders: the last part of each, with a number where two are alike."""
    found: list[str] = []
    for model in bases:
        last = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip("-._") or "base"
        found.append(last if last not in found else f"{last}-{len(found) + 1}")
    return found


def _check(found: Sequence[Member]) -> None:
    """Every member's settings, before any of them runs."""
    wrong = []
    for member in found:
        try:
            load_comparison(member.settings)
        except ConfigError as error:
            wrong += [f"{member.name}: {line}" for line in str(error).splitlines()]
    if wrong:
        raise ConfigError("\n".join(wrong))


def compare_all(
    several: Sequence[Member],
    *,
    notify: Callable[[str], None] = lambda message: None,
    watch: Callable[[str, Report], None] = lambda what, report: None,
    stop: Callable[[], bool] = lambda: False,
    spread: Spread | None = None,
) -> SuiteResults:
    """Carry out every member, one after the other, and put what they found together.

    ``FOLDER/NAME`` gets ``results.json`` and ``report.html``, and beside them a folder for each member. What
    is done is found again when the suite is started again.

    Args:
        several: the comparisons, as ``members`` gives them; at least one.
        notify: told plain sentences as results come in.
        watch: told (what is being trained, report) of every step.
        stop: asked after every step whether to end now; raises KeyboardInterrupt then.
        spread: carries cells out elsewhere.

    Raises:
        DataError: the rows of a member are wrong; those before it are kept.
    """
    folder = several[0].folder.parent
    found: list[Results] = []
    for number, member in enumerate(several, start=1):
        notify(f"{member.name} ({number} of {len(several)})")
        try:
            found.append(compare(member.settings, notify=notify, watch=watch, stop=stop, spread=spread))
        except DataError as error:
            raise DataError(f"{member.name}: {error}") from error
        results = summed(folder.name, [one.task for one in several], found)
        results.save(folder / RESULTS)
        write_suite_report(results, folder / REPORT)
    return results
