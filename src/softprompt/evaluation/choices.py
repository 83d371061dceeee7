"""Which of its candidates a row gets: from log-likelihoods to probabilities, as its job asks.

It knows encoded rows and likelihoods; it does not know how the likelihoods were read, offline or served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.data.rows import Encoded, Scaling

__all__ = ["ChoiceScores", "calibrated", "fitted_scaling", "padded", "probabilities", "texts_to_score"]

_SCALE_SPREAD, _SHIFT_SPREAD = 1.0, 3.0
"""How far the logarithm of a scale, and a shift in nats, are expected to go: what holds few rows back."""


@dataclass(frozen=True)
class ChoiceScores:
    """What a front thinks of every candidate of B rows; C is the most candidates a row has.

    Attributes:
        likelihoods: ``[B, C]`` log-likelihood in nats, ``-inf`` where a row has fewer candidates.
        weights: ``[B, C]`` the same after length and calibration; the greatest is what is predicted,
            and their softmax is how sure of it the front is.
    """

    likelihoods: Tensor
    weights: Tensor

    @property
    def probabilities(self) -> Tensor:
        """``[B, C]``, each row adding up to 1."""
        return self.weights.softmax(1)

    def scaled(self, scaling: Scaling | None) -> ChoiceScores:
        """The same with every label's share of the probability scaled and shifted as was fitted."""
        if scaling is None:
            return self
        scale, shift = (torch.tensor(side, dtype=self.weights.dtype) for side in scaling)
        return ChoiceScores(self.likelihoods, self.weights.log_softmax(1) * scale + shift)


def calibrated(encoded: Encoded, found: Tensor, neutral: Tensor) -> ChoiceScores:
    """What follows from log-likelihoods ``[B, C]`` of candidates, and from those behind the neutral input."""
    weights = found - neutral
    if encoded.by_length:
        weights = weights / padded([[float(len(c)) for c in encoded.candidates(e)] for e in encoded.examples])
    scores = ChoiceScores(found, weights.where(found != -torch.inf, -torch.inf))
    return scores.scaled(encoded.scaling)


def fitted_scaling(weights: Tensor, labels: Sequence[int]) -> Scaling:
    """The scale and shift of every label's score that make the right labels of B rows likeliest.

    Vector scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks") of ``weights`` [B, C], with
    normal priors, so that a label without rows keeps about its own scale.

    Args:
        weights: of ``ChoiceScores`` that are not scaled.
        labels: the right label of each row.
    """
    shares = weights.double().log_softmax(1)
    right = torch.tensor(labels)
    way = torch.zeros(2, shares.shape[1], dtype=torch.float64, requires_grad=True)  # log scale, shift
    optimizer = torch.optim.LBFGS([way], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = torch.nn.functional.cross_entropy(shares * way[0].exp() + way[1], right, reduction="sum")
        prior = (way[0] / _SCALE_SPREAD).square().sum() + (way[1] / _SHIFT_SPREAD).square().sum()
        total = found + prior / 2
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    scale, shift = way.detach()
    return Scaling(tuple(scale.exp().tolist()), tuple(shift.tolist()))


def padded(rows: Sequence[Sequence[float]], filler: float = 1.0) -> Tensor:
    """Rows of different length as one tensor ``[B, C]``."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


def texts_to_score(encoded: Encoded) -> list[tuple[int, ...]]:
    """The inputs behind which a row's candidates decide: its own and, to calibrate, the neutral one."""
    (example,) = encoded.examples
    return [example.input_ids, *([example.neutral_ids] if example.neutral_ids is not None else [])]


def probabilities(
    encoded: Encoded, answers: Sequence[str], likelihoods: Sequence[Sequence[float]]
) -> dict[str, float]:
    """The probability of every answer of one row, the likeliest first.

    ``likelihoods``: of the candidates behind each of ``texts_to_score``.
    """
    found, *neutral = (torch.tensor([values]) for values in likelihoods)
    scores = calibrated(encoded, found, neutral[0] if neutral else torch.zeros_like(found))
    pairs = zip(answers, scores.probabilities[0].tolist(), strict=True)
    return dict(sorted(pairs, key=lambda pair: -pair[1]))
