"""The verb ``init``: a file of rows in, a configuration to read, change and train out."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from softprompt.cli.options import examples, json_option, plain_text
from softprompt.config_io import toml_value

if TYPE_CHECKING:
    from softprompt.data.guess import Guess
    from softprompt.data.table import Table

__all__ = ["command"]

EXAMPLES = """
softprompt init tickets.csv
softprompt init reviews.parquet --text title --text body --label stars --out stars.toml
"""
_STEPS, _BATCH = 120, 8
"""Steps after which most prompts have learnt a job of a few hundred rows, and the rows of each."""


@click.command("init", epilog=examples(EXAMPLES))
@click.argument("data")
@click.option("--text", multiple=True, metavar="COLUMN", help="A column the model reads; may repeat.")
@click.option("--label", metavar="COLUMN", help="The column it answers with.")
@click.option("--name", metavar="N", help="Name of the prompt.  [default: the data's name]")
@click.option("--model", metavar="M", help="The base: a bundled name, hub id, folder or .gguf file.")
@click.option("--out", metavar="FILE", help="Where the configuration goes.  [default: NAME.toml]")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@json_option
def command(
    data: str,
    text: tuple[str, ...],
    label: str | None,
    name: str | None,
    model: str | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Look at rows and write a configuration that learns from them, with comments.

    It says which column holds text and which labels, joins labels that are spelt in several ways, and trains
    nothing. Read the file, change what is wrong, then train it.
    """
    from softprompt.atomic import write_bytes
    from softprompt.cli import screen
    from softprompt.cli.flags import name_from
    from softprompt.data.guess import guess
    from softprompt.data.sources import read
    from softprompt.data.template import Template
    from softprompt.errors import ConfigError

    table = read(data)
    found = guess(table, text=[plain_text(column) for column in text], label=label)
    Template(
        _input(found), f" {{{found.target}}}", list(found.labels) if found.labels else None
    )  # says so if a column cannot be a field
    name = name or name_from(data)
    path = Path(out or f"{name}.toml")
    if path.exists() and not overwrite:
        raise ConfigError(f"There is a file {path} already; name another with --out, or give --overwrite.")
    write_bytes(path, "\n".join(_lines(found, table, data, path, name, model)).encode())
    following = screen.command_line("train", str(path))
    if as_json:
        screen.print_json({"path": str(path), **vars(found)})
        return
    screen.out().print(screen.facts(_facts(found, table)))
    screen.out().print(
        f"\n{screen.clean(str(path))} says so and may be changed. What one would type next:\n"
        f"  {screen.clean(following)}",
        soft_wrap=True,
    )


def _facts(found: Guess, table: Table) -> dict[str, str]:
    empty = len(table) - found.rows
    facts = {"rows": f"{found.rows:,}" + (f", and {empty} empty" if empty else "")}
    facts["reads"] = ", ".join(found.inputs) or "nothing; the text itself is learnt"
    if found.labels is None:
        return facts | {"writes": f"{found.target}, as free text", **_left_out(found)}
    labels = ", ".join(f"{label} ({count})" for label, count in found.labels.items())
    facts["answers with"] = f"{found.target}, one of {len(found.labels)} labels: {labels}"
    if found.aliases:
        spelt = ", ".join(f"{other!r} is {label!r}" for other, label in found.aliases.items())
        facts["taken for one"] = spelt
    return facts | _left_out(found)


def _left_out(found: Guess) -> dict[str, str]:
    return {"left out": ", ".join(found.left_out)} if found.left_out else {}


def _lines(found: Guess, table: Table, data: str, path: Path, name: str, model: str | None) -> list[str]:
    """The file: every line that is likely to be changed says what it is for."""
    source = data
    if ":" not in data:
        source = os.path.relpath(Path(data).expanduser().absolute(), path.absolute().parent)
    lines = [
        f"# Made of {len(table):,} rows by `softprompt init`; change what is wrong, then train it.",
        f"name = {toml_value(name)}",
        *([] if model is None else ["", "[base]", f"model = {toml_value(model)}"]),
        "",
        "[data]",
        f"train = {toml_value(source)}",
        "validation_fraction = 0.2     # held back to choose by; or name rows of their own: validation = ...",
        '# test = "test.csv"           # rows to score once, at the end',
    ]
    if found.left_out:
        lines.append(f"# Columns that are not read: {', '.join(map(toml_value, found.left_out))}")
    lines += [f"input = {toml_value(_input(found))}", f"target = {toml_value(f' {{{found.target}}}')}"]
    if found.labels is not None:
        counts = ", ".join(f"{label} {count}" for label, count in found.labels.items())
        lines.append(
            f'# Rows of each: {_comment(counts)}. A table gives them other words: {{0 = "no", 1 = "yes"}}'
        )
        lines.append(f"labels = {toml_value(list(found.labels))}")
    if found.aliases:
        lines += ["# Read as if they were spelt so:", f"label_aliases = {toml_value(found.aliases)}"]
    lines += ["", "[method]", 'front = "{soft:20}"           # 20 learnt vectors stand before every row']
    if found.labels is not None:
        start = f"Name the {_said(found.target)} of the {_said(' and '.join(found.inputs) or 'text')}: "
        lines += [f"init_text = {toml_value(start + ', '.join(found.labels) + '.')}   # what they start as"]
    epochs = max(2, math.ceil(_STEPS * _BATCH / max(1, 0.8 * found.rows)))
    lines += ["", "[train]", f"epochs = {min(epochs, 20)}", f"batch_size = {_BATCH}", ""]
    return lines


def _input(found: Guess) -> str:
    """The template: each column after its name, then the name of what is asked for."""
    parts = [f"{_said(column).capitalize()}: {{{column}}}" for column in found.inputs]
    return "\n".join([*parts, f"{_said(found.target).capitalize()}:"]) if parts else ""


def _said(column: str) -> str:
    return re.sub(r"[\s_{}-]+", " ", column).strip()


def _comment(text: str) -> str:
    return " ".join(text.split())
