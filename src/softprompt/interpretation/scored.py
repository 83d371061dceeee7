"""What one front scores, and what it scores less or more than another on the same rows.

It knows scores and encoded rows; it does not know how a front came about.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from softprompt.data.rows import Encoded
from softprompt.evaluation.metrics import Sampled, resampled
from softprompt.evaluation.paired import paired_bootstrap, paired_difference
from softprompt.evaluation.score import Scores

__all__ = ["PairedDifference", "ScoreDifference", "Scored", "hits", "loss_gap"]

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Scored:
    """A front's scores, without what is told of each row: see ``evaluation.score.Scores``."""

    rows: int
    nll: float
    nll_interval: tuple[float, float]
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None

    @classmethod
    def of(cls, scores: Scores) -> Scored:
        """The summary of ``scores``."""
        return cls(scores.rows, scores.nll, scores.nll_interval, scores.accuracy, scores.accuracy_interval)


@dataclass(frozen=True)
class PairedDifference:
    """A difference over the same rows, with its 95% interval and two-sided p (paired bootstrap)."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class ScoreDifference:
    """The first front less the second.

    Attributes:
        nll: difference in nats per target token; above 0 the first is worse.
        accuracy: difference in share of rows right; below 0 the first is worse. None for free text.
        rows: how many rows both were scored on.
        seed: of the resamplings.
    """

    nll: PairedDifference
    accuracy: PairedDifference | None
    rows: int
    seed: int

    @classmethod
    def of(cls, first: Scores, second: Scores, encoded: Encoded, *, seed: int = 0) -> ScoreDifference:
        """Of scores of two fronts on the same rows."""
        gap = None
        if first.accuracy is not None:
            gap = PairedDifference(*paired_bootstrap(hits(first, encoded), hits(second, encoded), seed=seed))
        return cls(loss_gap(first, second, seed=seed), gap, first.rows, seed)


def loss_gap(first: Scores, second: Scores, *, seed: int = 0) -> PairedDifference:
    """The difference in nats per target token, rows drawn anew for both alike."""
    return PairedDifference(*paired_difference([_nll(first, seed)], [_nll(second, seed)]))


def hits(scores: Scores, encoded: Encoded) -> list[float]:
    """1 for every row whose prediction is right, else 0."""
    pairs = zip(scores.predictions, encoded.examples, strict=True)
    return [float(p in (e.right or (e.label,))) for p, e in pairs]


def _nll(scores: Scores, seed: int) -> Sampled:
    """Nats per token, with its resamplings."""
    columns = torch.tensor([scores.losses, scores.tokens], dtype=torch.float64).T  # [B, 2]
    return resampled(columns, lambda sums: sums[:, 0] / sums[:, 1], seed=seed, resamples=_RESAMPLES)
