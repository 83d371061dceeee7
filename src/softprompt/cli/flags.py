"""The plain flags of ``train`` as settings: knows which flag means which setting, not what settings do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from softprompt import recipes
from softprompt.cli.options import plain_text
from softprompt.config import Config, load, parse
from softprompt.config_io import toml_value

__all__ = ["label_words", "name_from", "settings"]

_SETTINGS = {
    "name": "name",
    "seed": "seed",
    "seeds": "search.seeds",
    "model": "base.model",
    "data": "data.train",
    "validation": "data.validation",
    "test": "data.test",
    "input": "data.input",
    "target": "data.target",
    "labels": "data.labels",
    "front": "method.front",
    "learning_rate": "train.learning_rate",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "device": "base.device",
    "dtype": "base.dtype",
    "library": "output.library",
    "overwrite": "output.overwrite",
}
_TYPED = ("input", "target", "front")
_TRIED = {
    "front": "search.grid.method.front",
    "learning_rate": "search.grid.train.learning_rate",
    "seed": "search.seeds",
}
"""Where the values of a flag go if they are to be tried, or one for all that a file tries."""
_ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def settings(file: str | None, flags: Mapping[str, Any], assignments: tuple[str, ...]) -> Config:
    """The configuration of a file, with flags and then ``--set`` assignments over it.

    Raises:
        ConfigError: a setting is wrong.
        ResourceError: the file cannot be read.
    """
    if file is None and flags["data"] is None and not assignments:
        raise click.UsageError(
            "There is nothing to learn from; give a configuration file, a recipe "
            f"({', '.join(recipes.names())}), or --data, --input and --target.",
            click.get_current_context(),
        )
    if file is not None and Path(file.removesuffix(".gz")).suffix.lower() in _ROWS:
        raise click.UsageError(
            f"{file} looks like rows, not like a configuration; give it as --data {file}, or let "
            f"`softprompt init {file}` write one.",
            click.get_current_context(),
        )
    given = {flag: value for flag, value in flags.items() if value not in (None, ()) and value is not False}
    if file is None and "name" not in given and "data" in given:
        given["name"] = name_from(given["data"])
    overrides = [_override(flag, value) for flag, value in given.items()]
    if file is None:
        return parse({}, [*overrides, *assignments], folder=Path.cwd())
    config = load(file, [*overrides, *assignments])
    single = [
        f"{_TRIED[flag]}=[{toml_value(_value(flag, given[flag]))}]"
        for flag in _TRIED.keys() & given.keys()
        if _tries(config, flag) and not _several(given[flag])
    ]
    return load(file, [*overrides, *single, *assignments]) if single else config


def label_words(text: str) -> str | list[str] | dict[str, str]:
    """Labels as typed: ``a,b,c``, ``auto``, or ``0=no,1=yes`` where labels stand for other words."""
    if text.strip() == "auto":
        return "auto"
    parts = [part.strip() for part in text.split(",")]
    if all("=" in part for part in parts):
        pairs = (part.split("=", 1) for part in parts)
        return {label.strip(): word.strip() for label, word in pairs}
    return parts


def _override(flag: str, value: Any) -> str:
    """One value is the setting; several are tried."""
    place = _TRIED[flag] if _several(value) and flag in _TRIED else _SETTINGS[flag]
    return f"{place}={toml_value(_value(flag, value))}"


def _several(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 1


def _tries(config: Config, flag: str) -> bool:
    """Whether a file tries several values of what a flag sets."""
    if config.search is None:
        return False
    return bool(config.search.seeds) if flag == "seed" else _SETTINGS[flag] in config.search.grid


def _value(flag: str, value: Any) -> Any:
    if flag == "labels":
        return label_words(value)
    if isinstance(value, tuple):
        values = [_value(flag, one) for one in value]
        return values if len(values) > 1 or flag == "seeds" else values[0]
    return plain_text(value) if flag in _TYPED else value


def name_from(data: str) -> str:
    """A name for what is learnt from ``data``: a file's stem, or the name of a bundled or hub set."""
    name = Path(data.removesuffix(".gz")).stem
    if data.startswith("bundled:"):
        name = data.removeprefix("bundled:").split("/")[0]
    elif data.startswith("hub:"):
        name = data.removeprefix("hub:").split("/")[1:2][0] if "/" in data else "prompt"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "prompt"
