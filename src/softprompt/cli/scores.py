"""Scores on the terminal: knows the tables they stand in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from softprompt.cli.screen import clean, print_grid
from softprompt.evaluation.words import SCORE_HEADS, Summary, headline, score_rows, with_interval

__all__ = ["headline", "print_labels", "print_scores", "with_interval"]

_SHOWN = 8
"""So many labels have a column of the confusion table each; of more, the commonest mistake is told."""


def print_scores(scores: Mapping[str, Summary]) -> None:
    """Splits and measures down, what was learnt beside the untuned base across."""
    rows = score_rows(scores)
    print_grid(SCORE_HEADS[: len(rows[0]) if rows else 4], rows, right=(2, 3))


def print_labels(labels: Sequence[str], table: Sequence[Sequence[int]]) -> None:
    """Precision and recall of every label, and what its rows were taken for."""
    from softprompt.evaluation.metrics import precision_recall

    names = [clean(label) for label in labels]
    few = len(names) <= _SHOWN
    heads = ["label", "rows", "precision", "recall", *(names if few else ["mostly mistaken for"])]
    rows = []
    for number, (row, shares) in enumerate(zip(table, precision_recall(table), strict=True)):
        told = ["-" if share is None else f"{100 * share:.1f}%" for share in shares]
        wrong = max((n for n in range(len(row)) if n != number), key=row.__getitem__)
        mistake = f"{names[wrong]} ({row[wrong]})" if row[wrong] else "-"
        rows.append([names[number], str(sum(row)), *told, *(map(str, row) if few else [mistake])])
    print_grid(heads, rows, right=range(1, len(heads) if few else 4))
