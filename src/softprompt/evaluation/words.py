"""Scores in words: knows the summaries a card holds, not how anything was scored nor where they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["SCORE_HEADS", "Summary", "headline", "score_rows", "with_interval"]

Summary = Mapping[str, Any]

SCORE_HEADS = ("data (rows)", "measure", "learnt", "untuned base")
_MEASURES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "nll": "loss per token",
    "perplexity": "perplexity",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bleu": "BLEU",
    "chrf": "chrF",
}
_UNTUNED = ", untuned"
_SHARES = ("accuracy", "whole_sentences")


def score_rows(scores: Mapping[str, Summary]) -> list[tuple[str, ...]]:
    """Splits and measures down, what was learnt beside the untuned base across, if that is known."""
    splits = [name for name in scores if not name.endswith(_UNTUNED)]
    rows = [
        (
            f"{split} ({_count(scores[split].get('rows'))})",
            words,
            with_interval(scores[split], measure),
            with_interval(scores.get(f"{split}{_UNTUNED}", {}), measure),
        )
        for split in splits
        for measure, words in _MEASURES.items()
        if scores[split].get(measure) is not None
    ]
    width = 3 if all(row[3] == "-" for row in rows) else 4
    return [row[:width] for row in rows]


def headline(summary: Summary) -> str:
    """The measure that counts: accuracy where there are labels, else the loss."""
    return _number(summary, "accuracy") if summary.get("accuracy") is not None else _number(summary, "nll")


def with_interval(summary: Summary, measure: str) -> str:
    """A measure with its 95% interval, such as ``81.0% (75.2-85.7)``."""
    number, bounds = _number(summary, measure), summary.get(f"{measure}_interval")
    if number == "-" or not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return number
    if not all(isinstance(bound, int | float) for bound in bounds):
        return number
    low, high = (_format(bound, measure).rstrip("%") for bound in bounds)
    return f"{number} ({low}-{high})"


def _number(summary: Summary, measure: str) -> str:
    value = summary.get(measure)
    return _format(value, measure) if isinstance(value, int | float) else "-"


def _format(value: float, measure: str) -> str:
    return f"{100 * value:.1f}%" if measure in _SHARES else f"{value:.3f}"


def _count(rows: Any) -> str:
    return f"{rows:,}" if isinstance(rows, int) else "-"
