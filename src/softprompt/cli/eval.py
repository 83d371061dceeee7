"""The verb ``eval``: a prompt and labelled rows, or tasks of lm_eval, in; scores out."""

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
    plain_text,
)

if TYPE_CHECKING:
    from softprompt.data.rows import Encoded
    from softprompt.data.table import Table
    from softprompt.library.card import Card
    from softprompt.library.prompt import Prompt

__all__ = ["command"]


EXAMPLES = r"""
softprompt eval topics test.jsonl --untuned
softprompt eval moods --harness invented_moods --include-path examples/harness
"""


@click.command("eval", epilog=examples(EXAMPLES))
@click.argument("name")
@click.argument("data", required=False)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Score only N rows, drawn by --seed; of a task the first N.",
)
@click.option("--seed", type=int, default=0, metavar="N", help="Which rows --rows draws.")
@click.option(
    "--separator",
    metavar="X",
    help="What stands between the columns of a .csv or .tsv file.  [default: the prompt's, or what is seen]",
)
@click.option("--untuned", is_flag=True, help="Score the bare base beside it.")
@click.option(
    "--write",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write answers of at most N tokens too, and score them: ROUGE, BLEU, exact match.",
)
@click.option(
    "--harness", "tasks", multiple=True, metavar="TASK", help="Run this task of lm_eval instead; repeatable."
)
@click.option("--include-path", metavar="DIR", help="A folder with tasks of your own; they may run Python.")
@library_option
@base_options
@json_option
def command(
    name: str,
    data: str | None,
    rows: int | None,
    seed: int,
    separator: str | None,
    untuned: bool,
    write: int | None,
    tasks: tuple[str, ...],
    include_path: str | None,
    library: str,
    as_json: bool,
    **base: Any,
) -> None:
    """Score a saved prompt on rows (a file, bundled:NAME/SPLIT or hub:...), or on tasks of lm_eval."""
    if (data is None) == (not tasks) or (tasks and separator is not None) or (include_path and not tasks):
        raise click.UsageError(
            "Give either rows to score or --harness TASK; --separator only with the former, --include-path "
            "only with the latter.",
            click.get_current_context(),
        )
    from softprompt.cli import screen
    from softprompt.data.chat import conversation_rows
    from softprompt.data.rows import collect_faults
    from softprompt.data.sources import read
    from softprompt.data.splits import subset
    from softprompt.packages import require

    if tasks:
        require("the harness")
    if write is not None:
        require("scoring written texts")
    choice = BaseChoice(**base)
    if data is None:
        prompt = open_prompt(name, library, choice)
        _run_tasks(prompt, tasks, include_path, rows, untuned, as_json)
        return
    told = None if separator is None else _separator(separator, data)
    table: Table | None = None

    def check(card: Card) -> None:
        nonlocal table
        table = read(data, separator=told or card.separator)
        template = card.template.template
        conversations = card.conversations(table.columns)
        conversation_rows(table, *conversations).require_columns(template.columns)
        if rows is not None and rows < len(table):
            table = subset(table, rows, seed, template.label_column)
        asked = conversation_rows(table, *conversations)
        collect_faults(asked, lambda _, row: (template.input_text(row), template.target_text(row)))

    prompt = open_prompt(name, library, choice, check)
    assert table is not None
    table = prompt.rows(table)
    encoded = prompt.encode(table)
    for note in encoded.notes:
        screen.say(note)
    found, seen = {}, {}
    for which in ("learnt", "untuned") if untuned else ("learnt",):
        subject = prompt if which == "learnt" else prompt.bare()
        what = "Scoring" if which == "learnt" else "Scoring the bare base"
        found[which], seen[which] = _scored(subject, table, encoded, what, write)
    _tell(prompt, data, table.origin, found, _confusion(prompt, encoded, seen["learnt"]), as_json)


def _separator(typed: str, data: str) -> str:
    """What the flag means, by the rules of ``data.separator``."""
    from softprompt.config import parse

    rows = {"train": data, "separator": plain_text(typed), "input": "{text}", "target": " {label}"}
    return str(parse({"data": rows}).data.separator)


def _run_tasks(
    prompt: Prompt, tasks: tuple[str, ...], folder: str | None, rows: int | None, untuned: bool, as_json: bool
) -> None:
    from softprompt.cli import screen
    from softprompt.harness import evaluate, measures

    subjects = {"learnt": prompt, **({"untuned": prompt.bare()} if untuned else {})}
    found = {
        which: measures(evaluate(subject, tasks, include_path=folder, limit=rows))
        for which, subject in subjects.items()
    }
    if as_json:
        screen.print_json({"name": prompt.name, "harness": found})
        return
    lines = [
        [screen.clean(task), which, screen.clean(metric), f"{value:.4f}"]
        for which, by_task in found.items()
        for task, numbers in by_task.items()
        for metric, value in numbers.items()
    ]
    screen.print_grid(("task", "prompt", "metric", "value"), lines, right=[3])


def _scored(
    prompt: Prompt, table: Table, encoded: Encoded, what: str, write: int | None
) -> tuple[dict[str, object], tuple[int, ...]]:
    """Scores of the prompt, behind a bar where stderr is a terminal, and of what it writes if asked to; and
    what it predicts of each row, if it compares answers.
    """
    from rich.progress import Progress

    from softprompt.cli import screen
    from softprompt.evaluation.score import score
    from softprompt.evaluation.writing import perplexity

    console = screen.err()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=len(table))
        scores = score(
            prompt.base,
            prompt.prefix,
            replace(encoded, scaling=prompt.scaling),
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    found = scores.summary()
    if scores.accuracy is None:
        bounds = [perplexity(bound) for bound in scores.nll_interval]
        found |= {"perplexity": perplexity(scores.nll), "perplexity_interval": bounds}
    if write is not None:
        with screen.waiting("Writing answers"):
            metrics = prompt.write(table, max_new_tokens=write).metrics
        for name, value in metrics.items():
            found |= {name: value.value, f"{name}_interval": [value.low, value.high]}
    return found, scores.predictions


def _confusion(prompt: Prompt, encoded: Encoded, predictions: tuple[int, ...]) -> list[list[int]]:
    """How often a row of each label was taken for each; nothing where rows have no labels."""
    from softprompt.evaluation.metrics import confusion

    if prompt.template.labels is None:
        return []
    truth = [example.label for example in encoded.examples if example.label is not None]
    return confusion(truth, predictions, len(prompt.template.labels))


def _tell(
    prompt: Prompt,
    data: str,
    origin: str,
    summaries: dict[str, dict[str, object]],
    taken: list[list[int]],
    as_json: bool,
) -> None:
    from softprompt.cli import screen
    from softprompt.cli.scores import print_labels, print_scores
    from softprompt.evaluation.doubts import all_alike

    labels = list(prompt.template.labels or ())
    for doubt in all_alike([n for row in taken for n, count in enumerate(row) if count], labels):
        screen.say(doubt, style="yellow")
    if as_json:
        told = {"name": prompt.name, "data": origin, "scores": summaries}
        screen.print_json(told | ({"labels": labels, "confusion": taken} if taken else {}))
        return
    named = {data: summaries["learnt"]}
    if "untuned" in summaries:
        named[f"{data}, untuned"] = summaries["untuned"]
    print_scores(named)
    if taken:
        screen.out().print()
        print_labels(labels, taken)
