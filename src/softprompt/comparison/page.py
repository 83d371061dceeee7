"""The report of a comparison as one HTML file: puts tables, plots and examples into the template.

It knows the page; numbers, plots, sentences and examples are made elsewhere. The page asks for nothing from
outside, and its content security policy sees to that.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from softprompt.atomic import write_bytes
from softprompt.comparison import answer_plots, plots, tallies, words
from softprompt.comparison.examples import examples, script_json
from softprompt.comparison.plots import Plot
from softprompt.comparison.results import Results
from softprompt.comparison.table import columns, comparison, learnt, mark, ranked, summary_rows
from softprompt.numbers import difference_text, interval_text, metric_name
from softprompt.report.page import Trusted, fill, part

__all__ = ["render", "write_report"]

_HERE = "softprompt.comparison"
_CONFUSED = 8
"""Pairs of labels that are listed of each method where there are too many for a matrix."""


def write_report(results: Results, path: Path) -> None:
    """Write the report whole or not at all.

    Raises:
        ResourceError: jinja2 or matplotlib is not installed, or the disk refuses.
    """
    write_bytes(path, render(results).encode("utf-8", "backslashreplace"))


def render(results: Results) -> str:
    """The report as the text of an HTML file."""
    script = part(_HERE, "report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = part(_HERE, "report.css")
    return fill(
        _HERE, "report.html.j2", **_content(results), style=style, script=script, script_digest=digest
    )


def _content(results: Results) -> dict[str, Any]:
    """What the template shows."""
    found = examples(results)
    return {
        "results": results,
        "metric": metric_name(results.metric),
        "verdict": words.unbroken(words.verdict(results)),
        "missing": words.missing(results),
        "facts": words.facts(results),
        "columns": columns(results),
        "groups": [(name, len([*of])) for name, of in groupby(columns(results), lambda one: one.group)],
        "rows": summary_rows(results),
        "sections": [section for section in _plot_sections(results) if section.plots],
        "confused": _confused(results),
        "pairs": _matrix(results),
        "covered": words.covered(results),
        "tested": words.tested(results),
        "power": words.power(results),
        "examples": found,
        "mark": mark,
        "payload": Trusted(script_json(found.payload)) if found else "",
        "settings": json.dumps(results.settings, indent=2, ensure_ascii=False),
    }


# Plots -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    """A plot as the template takes it."""

    svg: Trusted
    title: str
    number: int | None
    trained: bool
    note: str


@dataclass(frozen=True)
class _Section:
    """Plots of one kind with the text above them."""

    title: str
    about: str
    plots: list[_Drawn]


def _plot_sections(results: Results) -> list[_Section]:
    metric = metric_name(results.metric)
    trained = {method.name for method in results.methods if learnt(method)}

    def drawn(found: Sequence[Plot]) -> list[_Drawn]:
        return [_Drawn(Trusted(p.svg), p.title, p.number, p.title in trained, p.note) for p in found]

    return [
        _Section(
            f"What {metric} costs",
            "Test scores with 95% intervals. Discs learnt something, squares did not; letters are "
            "those of the table. Costs grow in powers of ten, with a place for nothing. Methods that would "
            "cover each other stand side by side.",
            drawn(plots.cost_plots(results)),
        ),
        _Section(
            "How they learnt",
            "Thin lines are seeds, a thick line their mean; a diamond is the step a seed kept. All methods "
            "share the scales.",
            drawn(plots.learning_plots(results)),
        ),
        _Section(
            "What was tried",
            f"Validation {metric} of every setting, on the first seed. The filled diamond was chosen.",
            drawn(plots.trial_plots(results)),
        ),
        _Section(
            "What is taken for what",
            "True labels down, predicted ones across; numbers are rows, all seeds together, and the shade is "
            "the share of the true label. Framed cells are right.",
            drawn(answer_plots.confusion_plots(results)),
        ),
        _Section(
            "How far confidence can be trusted",
            "Predictions of like confidence and how many of them were right, with 95% intervals; larger dots "
            "are more rows, all seeds together. On the dashed line confidence is what it says.",
            drawn(answer_plots.reliability_plots(results)),
        ),
    ]


@dataclass(frozen=True)
class _Confusion:
    """A label that is often taken for another."""

    true: str
    predicted: str
    count: int
    share: str


def _confused(results: Results) -> list[tuple[int, str, bool, list[_Confusion]]]:
    """For each method the pairs it confuses most; only where labels are too many for a matrix."""
    labels = results.labels or []
    if len(labels) <= answer_plots.MOST_LABELS:
        return []
    found = []
    for number, method in enumerate(ranked(results)):
        counts = tallies.confusions(results, method)
        totals = tallies.totals(counts)
        wrong = [(n, pair) for pair, n in counts.items() if pair[0] != pair[1]]
        wrong.sort(key=lambda one: (-one[0], -tallies.share_of(one[0], totals[one[1][0]]), one[1]))
        lines = [
            _Confusion(labels[true], _label(labels, predicted), n, f"{tallies.share_of(n, totals[true]):.0%}")
            for n, (true, predicted) in wrong[:_CONFUSED]
        ]
        if lines:
            found.append((number, method.name, learnt(method), lines))
    return found


def _label(labels: Sequence[str], number: int) -> str:
    return labels[number] if 0 <= number < len(labels) else str(number)


# Pairs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Difference:
    """A cell of the matrix of pairs."""

    text: str
    interval: str
    p: str
    significant: bool
    better: bool


def _matrix(results: Results) -> list[tuple[int, str, bool, list[_Difference | None]]]:
    """For each method its difference from every other; methods without any pair are left out."""
    paired = {name for pair in results.pairs for name in (pair.first, pair.second)}
    shown = [(number, m) for number, m in enumerate(ranked(results)) if m.name in paired]
    return [
        (number, m.name, learnt(m), [_difference(results, m.name, other.name) for _, other in shown])
        for number, m in shown
    ]


def _difference(results: Results, first: str, second: str) -> _Difference | None:
    pair = comparison(results, first, second) if first != second else None
    if pair is None:
        return None
    metric = results.metric
    return _Difference(
        text=difference_text(metric, pair.difference),
        interval=interval_text(metric, pair.low, pair.high).replace("–", " to "),
        p=words.p_of(pair),
        significant=pair.corrected < words.SIGNIFICANT,
        better=(pair.difference > 0) == results.higher_is_better,
    )
