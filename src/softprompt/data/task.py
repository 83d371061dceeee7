"""The rows of one job: its splits as tables, and as tokens by one template.

It knows sources, splits and templates; it does not know models beyond an ``encode`` function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from softprompt.config import DataConfig
from softprompt.data.rows import Encoded, encode
from softprompt.data.sources import read
from softprompt.data.splits import split, subset
from softprompt.data.table import Table
from softprompt.data.template import Template
from softprompt.errors import ConfigError

__all__ = ["Task", "load_task"]


@dataclass(frozen=True)
class Task:
    """Tables of a job, by the name of their split (``train``, ``validation``, perhaps ``test``)."""

    template: Template
    tables: Mapping[str, Table]
    notes: tuple[str, ...] = ()

    def encode(
        self, name: str, encoder: Callable[[str], list[int]], *, max_tokens: int, end: tuple[int, ...]
    ) -> Encoded:
        """One split in tokens."""
        return encode(self.tables[name], self.template, encoder, max_tokens=max_tokens, end=end)

    def demonstrations(self, count: int, seed: int) -> str:
        """``count`` solved training rows as text, stratified by label, a blank line behind each."""
        chosen = subset(self.tables["train"], count, seed, self._stratum())
        shown = (self.template.input_text(row) + self.template.target_text(row) for row in chosen.rows)
        return "".join(f"{text}\n\n" for text in shown)

    def _stratum(self) -> str | None:
        return self.template.label_column if self.template.labels is not None else None


def load_task(config: DataConfig, seed: int, *, input: str | None = None) -> Task:
    """Read and cut the splits a configuration names.

    Args:
        config: sources, templates, sizes.
        seed: draws subsets and, where no validation source is named, the validation rows.
        input: replaces ``config.input``, where a chat stands around it.

    Raises:
        ConfigError: no training source.
        DataError: a source, template or label is wrong, or a split is smaller than asked for.
    """
    template = Template(
        config.input if input is None else input, config.target, config.labels, config.label_column
    )
    by = template.label_column if template.labels is not None else None
    if config.train is None:
        raise ConfigError("data.train is missing: name a file, bundled:NAME/SPLIT or hub:OWNER/NAME/SPLIT.")
    tables = {name: read(spec) for name, spec in _sources(config).items()}
    for table in tables.values():
        table.require_columns(template.columns)
    if "validation" not in tables:
        tables["train"], tables["validation"] = split(
            tables["train"], 1 - config.validation_fraction, seed, by
        )
    for name in tables:
        wanted = getattr(config, f"{name}_rows")
        if wanted is not None:
            tables[name] = subset(tables[name], wanted, seed, by)
    return Task(template, tables, (*template.warnings(), *_shared(tables, template)))


def _sources(config: DataConfig) -> dict[str, str]:
    named = {"train": config.train, "validation": config.validation, "test": config.test}
    return {name: spec for name, spec in named.items() if spec is not None}


def _shared(tables: Mapping[str, Table], template: Template) -> list[str]:
    """A sentence for each held-out split that has inputs of the training rows in it."""
    columns = template.input_fields
    seen = {tuple(str(row.get(c)) for c in columns) for row in tables["train"].rows}
    notes = []
    for name in tables.keys() - {"train"}:
        again = sum(tuple(str(row.get(c)) for c in columns) in seen for row in tables[name].rows)
        if again:
            notes.append(f"{again} of {len(tables[name])} {name} rows have the input of a training row.")
    return notes
