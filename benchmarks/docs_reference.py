"""Writes the reference of the documents: every setting from its pydantic model, every verb from click.

    python benchmarks/docs_reference.py

A test holds ``docs/reference`` against what this makes.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from softprompt.cli.main import VERBS, group
from softprompt.comparison.settings import Comparison
from softprompt.comparison.suite import Suite
from softprompt.config import Config
from softprompt.config_io import toml_value

FOLDER = Path(__file__).parent.parent / "docs" / "reference"

EXAMPLES: dict[str, Any] = {
    "data.task": "superglue:cb",
    "data.train": "tickets.csv",
    "data.validation": "held-out.csv",
    "data.test": "hub:ag_news/ag_news/test",
    "data.separator": ";",
    "data.long_targets": "cut",
    "data.input": "Ticket: {text}\nQueue:",
    "data.target": " {queue}",
    "data.labels": ["billing", "outage"],
    "data.label_aliases": {"biling": "billing"},
    "data.choices": ["{choice1}", "{choice2}"],
    "data.label_column": "label",
    "data.end_of_text": True,
    "data.scale_labels": True,
    "data.train_rows": 500,
    "data.validation_rows": 100,
    "data.test_rows": 500,
    "data.group": "passage",
    "data.retrieve": 4,
    "data.draw": 0,
    "data.messages": "messages",
    "data.answers": "last",
    "base.revision": "main",
    "method.init_text": "Name the queue of the ticket:",
    "method.init_artifact": "other-prompt",
    "method.positions": 32,
    "method.most": 64,
    "teacher.text": "Answer politely and in one sentence.",
    "teacher.file": "handbook.txt",
    "teacher.prompt": "support",
    "teacher.stop": ["\n"],
    "train.max_steps": 200,
    "train.min_steps": 100,
    "train.evaluate_every": 25,
    "train.patience": 3,
    "train.threads": 2,
    "train.report_to": ["wandb"],
    "search.grid": {"train.learning_rate": [0.07, 0.2]},
    "search.seeds": [0, 1, 2],
    "methods.name": "LoRA, low rate",
    "methods.method": {"kind": "lora"},
    "methods.train": {"learning_rate": 0.0003},
    "methods.base": {"quantisation": "nf4"},
    "methods.data": {"retrieve": 4},
    "methods.trials": [{"train.learning_rate": 0.001}, {"train.learning_rate": 0.003}],
    "methods.teacher": {"text": "Answer politely.", "positions": 32},
    "methods.votes_of": "prompt tuning",
    "compare.hours": 2.0,
    "bases": ["smollm2-135m", "Qwen/Qwen3-0.6B-Base"],
    "tasks.name": "moods",
    "tasks.data": {"train": "moods/train.jsonl", "test": "moods/test.jsonl"},
    "tasks.train": {"epochs": 8},
    "tasks.compare": {"metric": "macro_f1"},
    "tasks.methods": {"prompt engineering": {"front": "Is the review negative or positive? "}},
}
"""What stands in the example of a setting that has no default, or one that says nothing."""


def main() -> None:
    """Write every page of the reference."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """The generated pages by file name."""
    return {"settings.md": settings_page(), "commands.md": commands_page()}


# Settings ----------------------------------------------------------------------------------------


def settings_page() -> str:
    """Every setting of a run and of a comparison."""
    parts = [
        "# Every setting\n\n<!-- made by benchmarks/docs_reference.py -->\n",
        "A run is one TOML file, and only `[data]` must say something. Each setting can be given in the "
        "file, as `--set train.epochs=3` on the command line, and as `epochs=3` in Python. The word "
        '`"none"` turns a setting off that may be off. A setting that is not known is refused, with the one '
        "that was probably meant.\n",
        *_sections(Config, skip=()),
        "\n# Settings of a comparison\n\n"
        "A comparison has `[base]`, `[data]` and `[train]` as above, and these.\n",
        *_sections(Comparison, skip=("base", "data", "train")),
        "\n# Several comparisons in one file\n\nBeside the settings of a comparison.\n",
        *_sections(Suite, skip=(), top="Bases"),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _sections(schema: type[BaseModel], skip: tuple[str, ...], top: str = "At the top") -> Iterator[str]:
    plain = {name: field for name, field in schema.model_fields.items() if not models(field)}
    if plain:
        yield from _table(top, "", plain)
    for name, field in schema.model_fields.items():
        if name in skip:
            continue
        listed = any(get_origin(arm) is list for arm in _arms(field))
        for model in models(field):
            kind = model.model_fields.get("kind")
            heading = f"`[[{name}]]`" if listed else f"`[{name}]`"
            if kind is not None:
                heading += f" with `kind = {toml_value(kind.default)}`"
            yield from _table(heading, name, model.model_fields, model.__doc__ or "")


def _table(title: str, section: str, fields: dict[str, FieldInfo], about: str = "") -> Iterator[str]:
    yield f"\n## {title}\n"
    if about:
        yield f"{about.strip()}\n"
    yield "| setting | type | default | meaning | example |"
    yield "|---|---|---|---|---|"
    for name, field in fields.items():
        shown = f"`{example(section, name, field)}`"
        cells = (f"`{name}`", _type(field), _default(field), _meaning(field), shown)
        yield f"| {' | '.join(_cell(cell) for cell in cells)} |"


def example(section: str, name: str, field: FieldInfo) -> str:
    """A line of TOML that sets it."""
    path = f"{section}.{name}" if section else name
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    return f"{name} = {toml_value(EXAMPLES.get(path, default))}"


def _type(field: FieldInfo) -> str:
    return " or ".join(filter(None, map(_kind, _arms(field)))) + _bounds(field)


def _kind(arm: Any) -> str:
    words = {int: "whole number", float: "number", bool: "true or false", str: "text", types.NoneType: "off"}
    if arm in words:
        return words[arm]
    if get_origin(arm) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(arm))
    if get_origin(arm) is list:
        return "list of tables" if get_origin(get_args(arm)[0]) is dict else "list"
    return "table"


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}"}
    found = [
        words.format(f"{getattr(mark, sign):,}")
        for mark in field.metadata
        for sign, words in signs.items()
        if getattr(mark, sign, None) is not None
    ]
    return f", {' and '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return "off" if default is None else f"`{toml_value(default)}`"


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _arms(field: FieldInfo) -> tuple[Any, ...]:
    union = get_origin(field.annotation) in (Union, types.UnionType)
    return get_args(field.annotation) if union else (field.annotation,)


def models(field: FieldInfo) -> list[type[BaseModel]]:
    arms = [inner for arm in _arms(field) for inner in (get_args(arm) if get_origin(arm) is list else (arm,))]
    return [arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel)]


# Verbs -------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every verb with its arguments and options."""
    context = click.Context(group, info_name="softprompt")
    parts = [
        "# Every command\n\n<!-- made by benchmarks/docs_reference.py -->\n",
        "`softprompt VERB --help` says the same. Results go to stdout and everything else to stderr; "
        "`--json` prints one object for programs. A command ends with 0 when it is done, 2 for what you can "
        "put right, 1 for a fault in softprompt and 130 when it was stopped.\n",
    ]
    for verb in VERBS:
        command = group.get_command(context, verb)
        assert command is not None
        parts += _verb(command, click.Context(command, info_name=verb, parent=context), "##")
    return "\n".join(parts).rstrip() + "\n"


def _verb(command: click.Command, context: click.Context, level: str) -> Iterator[str]:
    yield f"\n{level} {context.command_path}\n"
    yield f"```text\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```\n"
    yield _paragraphs(command.help or "")
    options = [param for param in command.params if isinstance(param, click.Option)]
    if options:
        yield "\n| option | meaning |\n|---|---|"
        for option in options:
            names = ", ".join(f"`{name}`" for name in option.opts)
            metavar = "" if option.is_flag else f" `{option.make_metavar(context)}`"
            default = f"  [default: {option.default}]" if option.show_default else ""
            yield f"| {_cell(names + metavar)} | {_cell((option.help or '') + default)} |"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _verb(inner, click.Context(inner, info_name=name, parent=context), level + "#")
    if command.epilog:
        lines = [line.strip(" ") for line in command.epilog.replace("\b", "").splitlines()]
        examples = "\n".join(line for line in lines if line and line != "Examples:")
        yield f"\n```console\n{re.sub('^(?=softprompt)', '$ ', examples, flags=re.MULTILINE)}\n```"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.replace("\b", "").split("\n\n"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "\\n").replace("<", "&lt;") if text else ""


if __name__ == "__main__":
    main()
