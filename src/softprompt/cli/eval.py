"""The verb ``eval``: a prompt and labelled rows in, scores with intervals out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import (
    BaseChoice,
    base_options,
    examples,
    json_option,
    library_option,
    open_prompt,
)

if TYPE_CHECKING:
    from softprompt.data.table import Table
    from softprompt.evaluation.score import Scores
    from softprompt.library.prompt import Prompt

__all__ = ["command"]


EXAMPLES = r"""
softprompt eval topics test.jsonl --untuned
"""


@click.command("eval", epilog=examples(EXAMPLES))
@click.argument("name")
@click.argument("data")
@click.option("--rows", type=click.IntRange(min=1), metavar="N", help="Score only N rows, drawn by --seed.")
@click.option("--seed", type=int, default=0, metavar="N", help="Which rows --rows draws.")
@click.option("--untuned", is_flag=True, help="Score the bare base beside it.")
@library_option
@base_options
@json_option
def command(
    name: str, data: str, rows: int | None, seed: int, untuned: bool, library: str, as_json: bool, **base: Any
) -> None:
    """Score a saved prompt on labelled rows: a file, bundled:NAME/SPLIT or hub:..."""
    from softprompt.data.sources import read

    table = read(data)
    prompt = open_prompt(name, library, BaseChoice(**base))
    table = _drawn(table, prompt, rows, seed)
    found = {"learnt": _scored(prompt, table, "Scoring")}
    if untuned:
        bare = replace(prompt, front=prompt.base.embed(prompt.base.start_ids))
        found["untuned"] = _scored(bare, table, "Scoring the bare base")
    _tell(prompt, data, table.origin, found, as_json)


def _drawn(table: Table, prompt: Prompt, rows: int | None, seed: int) -> Table:
    from softprompt.data.splits import subset

    table.require_columns(prompt.template.columns)
    if rows is None or rows >= len(table):
        return table
    return subset(table, rows, seed, prompt.template.label_column)


def _scored(prompt: Prompt, table: Table, what: str) -> Scores:
    """Scores of the prompt, behind a bar where stderr is a terminal."""
    from rich.progress import Progress

    from softprompt.cli import screen
    from softprompt.evaluation.score import score

    console = screen.err()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=len(table))
        return score(
            prompt.base,
            prompt.prefix,
            prompt.encode(table),
            lambda done, total: bar.update(task, completed=done, total=total),
        )


def _tell(prompt: Prompt, data: str, origin: str, found: dict[str, Scores], as_json: bool) -> None:
    from softprompt.cli import screen
    from softprompt.cli.scores import print_scores

    summaries = {name: scores.summary() for name, scores in found.items()}
    if as_json:
        screen.print_json({"name": prompt.name, "data": origin, "scores": summaries})
        return
    named = {data: summaries["learnt"]}
    if "untuned" in summaries:
        named[f"{data}, untuned"] = summaries["untuned"]
    print_scores(named)
