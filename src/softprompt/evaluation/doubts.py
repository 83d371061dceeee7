"""What a reader of scores should doubt, in sentences. It knows predictions and row counts, not models."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.data.rows import Encoded
from softprompt.evaluation.intervals import wilson

__all__ = ["all_alike", "too_few"]

_FEW = 40
"""Below so many rows a 95% interval of accuracy is wider than 25 points."""


def all_alike(predictions: Sequence[int], labels: Sequence[str], rows: str = "row") -> list[str]:
    """Whether one label is given to every row; ``rows`` names one of them."""
    if len(set(predictions)) != 1 or len(labels) < 2:
        return []
    return [f"Every {rows} is given the label {labels[predictions[0]]!r}, so nothing is told apart."]


def too_few(encoded: Encoded, split: str) -> list[str]:
    """Whether so few rows with labels are to be chosen by that better and worse look alike."""
    rows = len(encoded.examples)
    if encoded.candidate_ids is None or rows >= _FEW:
        return []
    low, high = wilson(round(0.8 * rows), rows)
    return [
        f"{rows} {split} rows are few to choose by: what is right in 80% of them may be right in "
        f"{100 * low:.0f}% to {100 * high:.0f}% of all; some {_FEW} or more tell better from worse."
    ]
