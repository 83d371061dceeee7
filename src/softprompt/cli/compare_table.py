"""The summary of a comparison for a terminal and for a README; it does not know how anything was compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from softprompt.cli import screen
from softprompt.comparison.results import Results
from softprompt.comparison.suite_results import Mean, SuiteResults
from softprompt.comparison.suite_words import averages, missing_from, shown_base, verdicts
from softprompt.comparison.table import Cell, Column, SummaryRow, columns, summary_rows
from softprompt.comparison.words import missing, verdict
from softprompt.harmless import code_span, table
from softprompt.numbers import NOTHING, count_text, interval_text, metric_text

__all__ = ["markdown_table", "print_comparison", "print_suite"]

_PLAIN = re.compile(r"[\w ,.()/:+=-]+")
"""Names that mean nothing to Markdown; underscores are looked at apart."""


def print_comparison(results: Results) -> None:
    """The verdict, a row for each method, and what is missing, on stdout."""
    console = screen.out()
    console.print(screen.clean(verdict(results)), soft_wrap=True)
    console.print()
    shown, rows = _shown(results), summary_rows(results)
    spread = any(row.seeds > 1 for row in rows)
    first, *others = shown
    heads = ["method", first.head, *(["± seeds"] if spread else []), *(column.head for column in others)]
    cells = [[row.name, *_numbers(row, first, others, spread=spread)] for row in rows]
    screen.print_grid(heads, cells, right=range(1, len(heads)))
    if any(cell.best for row in rows for cell in row.cells.values()):
        console.print()
        console.print("* best of its column; 95% intervals in brackets", style="dim")
    for sentence in missing(results):
        console.print(screen.clean(sentence), style="yellow", soft_wrap=True)


def print_suite(results: SuiteResults) -> None:
    """Who leads on each base, a table of data sets for each, and one of bases where there are several."""
    console = screen.out()
    for sentence in verdicts(results):
        console.print(screen.clean(sentence), soft_wrap=True)
    if len(results.bases) > 1:
        heads = [f"{shown_base(base.name)} ({count_text(base.parameters)})" for base in results.bases]
        columns = [(results.shown, base.means) for base in results.bases]
        _print_scores(heads, columns, results.ranked(results.bases[-1]))
    for base in results.bases if len(results.tasks) > 1 else ():
        console.print(f"\n{screen.clean(shown_base(base.name))}", style="bold")
        columns = [(member.metric, member.scores) for member in base.members]
        heads = [member.task for member in base.members]
        _print_scores([*heads, "mean"], [*columns, (results.shown, base.means)], results.ranked(base))
    console.print(f"\n{screen.clean(averages(results))}", style="dim", soft_wrap=True)
    for sentence in missing_from(results):
        console.print(screen.clean(sentence), style="yellow", soft_wrap=True)


def _print_scores(
    heads: Sequence[str], columns: Sequence[tuple[str, Mapping[str, Mean]]], methods: Sequence[str]
) -> None:
    """Methods down, and across what they scored where, with intervals."""
    cells = [[name, *(_scored(metric, found.get(name)) for metric, found in columns)] for name in methods]
    screen.out().print()
    screen.print_grid(["method", *heads], cells, right=range(1, len(heads) + 1))


def _scored(metric: str, found: Mean | None) -> str:
    if found is None:
        return NOTHING
    interval = interval_text(metric, found.low, found.high)
    return metric_text(metric, found.mean) + (f" ({interval})" if interval and found.low < found.high else "")


def markdown_table(results: Results) -> str:
    """The summary as a Markdown table; the best of a column is bold. No name can break out of its cell."""
    shown, rows = _shown(results), summary_rows(results)
    heads = ["method", *(column.head for column in shown)]
    lines = [[_safe(row), *(_bold(row.cells[column.key]) for column in shown)] for row in rows]
    made = table(heads, lines)
    head, _, *body = made.split("\n")
    return "\n".join([head, f"| --- |{' ---: |' * len(shown)}", *body])


def _shown(results: Results) -> Sequence[Column]:
    """The headline score, validation and costs: what fits a line."""
    hidden = {f"test.{metric}" for method in results.methods for metric in method.summary}
    hidden |= {f"test.{metric}" for method in results.methods for run in method.runs for metric in run.test}
    hidden -= {f"test.{results.metric}"}
    return [column for column in columns(results) if column.key not in hidden | {"perturbed", "trials"}]


def _numbers(row: SummaryRow, first: Column, others: Sequence[Column], *, spread: bool) -> list[str]:
    """The cells of a terminal's row; the spread over seeds of the headline score stands by itself."""
    headline = row.cells[first.key]
    apart = [headline.spread.lstrip("±")] if spread else []
    return [_number(headline, star="*"), *apart, *(_number(row.cells[one.key], star="*") for one in others)]


def _number(cell: Cell, *, star: str) -> str:
    """A number with its interval, such as ``*88.1% (85.1-90.8)``; the star stands before the best."""
    return f"{star if cell.best else ''}{cell.text}{f' ({cell.interval})' if cell.interval else ''}"


def _bold(cell: Cell) -> str:
    """A number with its interval and its spread over seeds, bold if it is the best."""
    parts = [f"**{cell.text}**" if cell.best else cell.text]
    parts += [f"({cell.interval})"] if cell.interval else []
    return " ".join([*parts, cell.spread] if cell.spread else parts)


def _safe(row: SummaryRow) -> str:
    plain = _PLAIN.fullmatch(row.name) and "_" not in row.name and row.name == row.name.strip()
    return row.name if plain else code_span(row.name)
