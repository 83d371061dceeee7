"""The rows of one job: its splits as tables, and as tokens by one template.

It knows sources, splits and templates; it does not know models beyond an ``encode`` function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from softprompt.config import DataConfig
from softprompt.data.chat import Render, conversation_rows
from softprompt.data.labels import counted, found_labels, hints
from softprompt.data.retrieve import nearest_texts
from softprompt.data.rows import Before, Encoded, Ids, Normalise, collect_faults, encode, too_long
from softprompt.data.sources import read
from softprompt.data.splits import split, subset
from softprompt.data.table import Row, Table, as_text
from softprompt.data.template import Template
from softprompt.errors import ConfigError

__all__ = ["Task", "as_meant", "load_task", "refuse_retrieval"]

Encoder = Callable[[str], list[int]]

_FEW, _REPEATED = 20, 5
"""Different values of a free text, each in so many rows on average, that make it look like labels."""


@dataclass(frozen=True)
class Task:
    """Tables of a job, by the name of their split (``train``, ``validation``, perhaps ``test``).

    Attributes:
        template: how a row becomes text.
        tables: the rows.
        notes: plain sentences about the rows.
        normalise: as in ``data.rows.encode``.
        calibrate: as in ``data.rows.encode``.
        retrieve: how many of the most similar training rows stand before each input.
        group: a column whose equal values stay together.
        solved: whether every row has its answer.
        cut_targets: as in ``data.rows.encode``.
    """

    template: Template
    tables: Mapping[str, Table]
    notes: tuple[str, ...] = ()
    normalise: Normalise = "none"
    calibrate: bool = False
    retrieve: int | None = None
    group: str | None = None
    solved: bool = True
    cut_targets: bool = False

    def without_long_targets(self, encoder: Encoder, *, max_tokens: int, end: tuple[int, ...]) -> Task:
        """The same job without rows whose target has no room, each part's told in a note."""
        tables, notes = dict(self.tables), list(self.notes)
        for name, table in self.tables.items():
            long = set(too_long(table, self.template, encoder, max_tokens=max_tokens, end=end))
            if long:
                tables[name] = table.take([i for i in range(len(table)) if i not in long], table.origin)
                notes.append(
                    f"{len(long)} of {len(table)} {name} rows were left out, because their targets are too "
                    f"long for {max_tokens} tokens."
                )
        return replace(self, tables=tables, notes=tuple(notes))

    def encode(self, name: str, encoder: Encoder, *, max_tokens: int, end: tuple[int, ...]) -> Encoded:
        """One split in tokens, behind the demonstrations each row retrieves."""
        left_out: list[int] = []
        encoded = encode(
            self.tables[name],
            self.template,
            encoder,
            max_tokens=max_tokens,
            end=end,
            normalise=self.normalise,
            calibrate=self.calibrate,
            before=self._retrieved(name, encoder, left_out) if self.retrieve else None,
            solved=self.solved,
            cut_targets=self.cut_targets,
        )
        if not left_out:
            return encoded
        many = f"{len(left_out)} retrieved demonstrations"
        note = f"{many} did not fit into {max_tokens} tokens and were left out."
        return replace(encoded, notes=(*encoded.notes, note))

    def demonstrations(self, count: int, seed: int) -> str:
        """``count`` solved training rows as text, stratified by label, a blank line behind each."""
        chosen = subset(self.tables["train"], count, seed, self._stratum())
        shown = (self.template.input_text(row) + self.template.target_text(row) for row in chosen.rows)
        return "".join(f"{text}\n\n" for text in shown)

    def _retrieved(self, name: str, encoder: Encoder, left_out: list[int]) -> Before:
        """What puts a row's most similar training rows, solved, before it: the most similar one last.

        A training row is not shown itself, nor what reads the same or shares its ``group``. One that does
        not fit into the room is left out as a whole, which ``left_out`` is told, and the next is tried.
        """
        train, template = self.tables["train"], self.template
        texts, among = (_inputs(table, template) for table in (self.tables[name], train))
        groups = [row.get(self.group) if self.group else number for number, row in enumerate(train.rows)]

        def allowed(row: int, other: int) -> bool:
            return name != "train" or (texts[row] != among[other] and groups[row] != groups[other])

        found = nearest_texts(texts, among, self.retrieve or 0, allowed=allowed)
        known: dict[int, Ids] = {}

        def solved(index: int) -> Ids:
            if index not in known:
                row = train.rows[index]
                pieces = (template.input_text(row), template.target_text(row), "\n\n")
                known[index] = tuple(i for piece in pieces for i in encoder(piece))
            return known[index]

        def before(index: int, room: int) -> Ids:
            shown: Ids = ()
            for other in found[index]:
                if len(solved(other)) + len(shown) <= room:
                    shown = solved(other) + shown
                else:
                    left_out.append(other)
            return shown

        return before

    def _stratum(self) -> str | None:
        return self.template.label_column if self.template.labels is not None else None


def load_task(
    config: DataConfig,
    seed: int,
    *,
    input: str | None = None,
    unsolved: bool = False,
    render: Render | None = None,
) -> Task:
    """Read and cut the splits a configuration names.

    Args:
        config: sources, templates, sizes.
        seed: draws subsets and, where no validation source is named, the validation rows.
        input: replaces ``config.input``, where a chat stands around it.
        unsolved: whether rows may lack their answers; then nobody's are used.
        render: messages -> text of the base's chat template, where rows are conversations.

    Raises:
        ConfigError: no training source.
        DataError: a source, template or label is wrong, or a split is smaller than asked for.
    """
    if config.train is None:
        raise ConfigError(
            "data.train is missing: name a file, bundled:NAME/SPLIT, superglue:TASK/SPLIT or "
            "hub:OWNER/NAME/SPLIT."
        )
    found = {
        name: conversation_rows(
            read(spec, separator=config.separator), config.messages, config.answers, render
        )
        for name, spec in _sources(config).items()
    }
    template = _template(config, found["train"], config.input if input is None else input)
    solved = not unsolved or all(
        row.get(column) is not None
        for table in found.values()
        for row in table.rows
        for column in template.columns
    )
    # Where an answer begins in a conversation, the base's chat template says.
    notes = template.warnings() if config.messages is None else []
    for name, table in found.items() if solved else ():
        found[name], left_out = as_meant(table, config, template)
        notes += [left_out] if left_out else []
    tables = _cut(config, seed, template, found, solved)
    if solved:
        notes += _spellings(config, found["train"], template)
    _refuse_faults(tables, template, solved)
    notes += _shared(tables, template)
    return Task(
        template,
        tables,
        (*notes, *(_absent(tables, template) if solved else ())),
        config.normalise,
        config.calibrate,
        config.retrieve,
        config.group,
        solved,
        config.long_targets == "cut",
    )


def as_meant(table: Table, config: DataConfig, template: Template) -> tuple[Table, str]:
    """The rows that are not empty, labels spelt as the job does, and a sentence on what was empty."""
    table.require_columns(template.columns)
    table, note = table.without_blank(template.columns)
    column, aliases = template.label_column, config.label_aliases
    if not aliases or column is None:
        return table, note
    rows = tuple(
        {**row, column: aliases.get(as_text(row.get(column)), row.get(column))} for row in table.rows
    )
    return replace(table, rows=rows), note


def _template(config: DataConfig, train: Table, input: str) -> Template:
    """How a row becomes text; labels that are to be found are those of the training rows."""
    labels = config.labels
    if labels == "auto":
        column = Template(input, config.target, ["a", "b"], config.label_column).label_column
        assert column is not None
        labels = [label for label in found_labels(train, column) if label not in (config.label_aliases or {})]
    return Template(input, config.target, labels, config.label_column, config.choices)


def _spellings(config: DataConfig, train: Table, template: Template) -> list[str]:
    """Sentences on labels that look alike, and on a free text that looks like labels."""
    if template.labels is not None and template.label_column is not None:
        counts = counted(train, template.label_column)
        known = {label: count for label, count in counts.items() if label in template.labels}
        return hints(known, config.label_aliases or {})
    fields = template.target_fields
    if config.messages is not None:  # whose answers are free text
        return []
    if template.choices is not None or len(fields) != 1 or not template.input_fields:
        return []
    values = counted(train, fields[0])
    if not 2 <= len(values) <= _FEW or sum(values.values()) < _REPEATED * len(values):
        return []
    return [
        f"The column {fields[0]!r} has only {len(values)} different values in {len(train)} rows; if they are "
        'labels to choose among, set data.labels = "auto".'
    ]


def refuse_retrieval(config: DataConfig) -> None:
    """Refuse ``data.retrieve`` where a prompt is to be saved.

    Raises:
        ConfigError: it is on.
    """
    if config.retrieve is not None:
        raise ConfigError(
            "data.retrieve is for softprompt compare only, because a saved prompt does not hold the training "
            "rows it would look through: take it out, or put fixed demonstrations into method.front."
        )


def _sources(config: DataConfig) -> dict[str, str]:
    named = {"train": config.train, "validation": config.validation, "test": config.test}
    return {name: spec for name, spec in named.items() if spec is not None}


def _cut(
    config: DataConfig, seed: int, template: Template, read: dict[str, Table], solved: bool
) -> dict[str, Table]:
    """The splits in the sizes that are wanted, validation rows held back where none were read."""
    by = template.label_column if template.labels is not None and solved else None
    asked = template.columns if solved else (*template.input_fields, *template.choice_columns)
    needed = asked if config.group is None else (*asked, config.group)
    tables = dict(read)
    for table in tables.values():
        table.require_columns(needed)
    if "validation" not in tables:
        share = 1 - config.validation_fraction
        tables["train"], tables["validation"] = split(tables["train"], share, seed, by, group=config.group)
    for name in tables:
        wanted = getattr(config, f"{name}_rows")
        if wanted is not None:
            tables[name] = subset(tables[name], wanted, seed, by, group=config.group)
    return tables


def _absent(tables: Mapping[str, Table], template: Template) -> list[str]:
    """A sentence for each split in which some label has no row.

    Not a fault: few-shot draws miss labels, and a method that trains nothing needs no row of any.
    """
    if template.labels is None or template.label_column is None:
        return []
    notes = []
    for name, table in tables.items():
        there = {as_text(row.get(template.label_column)) for row in table.rows}
        missing = [repr(label) for label in template.labels if label not in there]
        if missing:
            follows = (
                "so what is learnt from them will hardly ever answer it"
                if name == "train"
                else "so its scores say nothing about it"
            )
            label = f"the label {missing[0]}" if len(missing) == 1 else f"the labels {', '.join(missing)}"
            notes.append(f"No {name} row has {label}, {follows}.")
    return notes


def _inputs(table: Table, template: Template) -> list[str]:
    """What is compared of each row: its fields, without the template's words, which all rows share."""
    return collect_faults(table, lambda _, row: "\n".join(template.input_values(row).values()))


def _refuse_faults(tables: Mapping[str, Table], template: Template, solved: bool) -> None:
    """Raise ``DataError`` for rows that do not fit the template: the first, and how many of all parts."""
    every = [(row, table.place(index)) for table in tables.values() for index, row in enumerate(table.rows)]
    together = Table(tuple(row for row, _ in every), "", tuple(place for _, place in every))
    collect_faults(
        together, lambda _, row: (template.input_text(row), template.target_text(row) if solved else "")
    )


def _shared(tables: Mapping[str, Table], template: Template) -> list[str]:
    """A sentence for each held-out split that has inputs of the training rows in it."""

    def read(row: Row) -> tuple[str, ...]:
        return tuple(str(row.get(column)) for column in template.input_fields)

    # Rows without an input all have the same one, and learn nothing from each other by it.
    seen = {read(row) for row in tables["train"].rows}
    seen = {found for found in seen if any(text.strip() for text in found)}
    notes = []
    for name in tables.keys() - {"train"}:
        again = sum(read(row) in seen for row in tables[name].rows)
        if again:
            notes.append(f"{again} of {len(tables[name])} {name} rows have the input of a training row.")
    return notes
