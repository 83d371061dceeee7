"""Scores on the terminal: knows the table they stand in."""

from __future__ import annotations

from collections.abc import Mapping

from softprompt.cli.screen import print_grid
from softprompt.evaluation.words import SCORE_HEADS, Summary, headline, score_rows, with_interval

__all__ = ["headline", "print_scores", "with_interval"]


def print_scores(scores: Mapping[str, Summary]) -> None:
    """Splits and measures down, what was learnt beside the untuned base across."""
    rows = score_rows(scores)
    print_grid(SCORE_HEADS[: len(rows[0]) if rows else 4], rows, right=(2, 3))
