"""Metrics of predictions against the truth, each with its 95% interval over rows.

Arithmetic on labels, probabilities and short answers; it knows no model and no method. Notation: B rows,
C labels, F columns, R resamplings.

A metric here is a function of column sums: row b adds ``columns[b]``, and the metric is computed from what
the rows add up to. Its bootstrap then sums other rows. The draws depend on the number of rows and the seed
alone, so two metrics, methods or training seeds on the same rows meet the same resamplings and may be
subtracted or averaged draw by draw.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from softprompt.evaluation.intervals import wilson

__all__ = [
    "RESAMPLES",
    "Sampled",
    "Value",
    "accuracy",
    "average",
    "calibration_error",
    "confusion",
    "exact_match",
    "macro_f1",
    "normalised",
    "resampled",
    "sampled_mean",
    "token_f1",
]

RESAMPLES = 1000
"""R, how often the rows are drawn anew for an interval."""

_CELLS = 4_000_000  # the most (draw, row) pairs held at once: 32 MB
_TAILS = (0.025, 0.975)


class Value(NamedTuple):
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Sampled:
    """A metric, and what it comes to in each resampling of the rows.

    Attributes:
        value: the metric on the rows as they are.
        draws: ``[R]`` the metric on rows drawn with replacement, fp64.
    """

    value: float
    draws: Tensor

    def interval(self) -> Value:
        """The metric with its percentile bootstrap interval (Efron 1979)."""
        low, high = torch.quantile(self.draws, self.draws.new_tensor(_TAILS)).tolist()
        return Value(self.value, low, high)


def resampled(
    columns: Tensor, compute: Callable[[Tensor], Tensor], *, seed: int = 0, resamples: int = RESAMPLES
) -> Sampled:
    """A function of column sums, on all rows and on ``resamples`` resamplings of them.

    Args:
        columns: ``[B, F]`` what each row adds.
        compute: sums ``[R, F]`` (fp64) -> the metric of each, ``[R]``.
        seed: the draws.
        resamples: how many.
    """
    assert len(columns), "a metric needs rows"
    columns = columns.double()
    value = compute(columns.sum(0, keepdim=True))
    draws = [compute(weights @ columns) for weights in _weights(len(columns), resamples, seed)]
    return Sampled(float(value), torch.cat(draws))


def _weights(rows: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each row is drawn, [R, B], in parts that fit into memory."""
    generator = torch.Generator().manual_seed(seed)
    step = max(1, _CELLS // rows)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = torch.randint(rows, (count, rows), generator=generator)
        drawn += torch.arange(count)[:, None] * rows
        yield torch.bincount(drawn.flatten(), minlength=count * rows).view(count, rows).double()


# -- means ---------------------------------------------------------------------------------------


def sampled_mean(scores: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Sampled:
    """The mean of per-row scores, with its resamplings."""
    column = torch.tensor(scores, dtype=torch.float64)[:, None]
    return resampled(column, lambda sums: sums[:, 0] / len(scores), seed=seed, resamples=resamples)


def average(scores: Sequence[float], *, seed: int = 0) -> Value:
    """The mean of per-row scores with its interval.

    Where every score is 0 or 1 the interval is Wilson's, as for accuracy elsewhere: the bootstrap of a
    share of 0 or 1 has no width, whatever the number of rows. Otherwise it is the percentile bootstrap's.
    """
    assert len(scores), "a metric needs rows"
    if all(score in (0, 1) for score in scores):
        hits = int(sum(scores))
        return Value(hits / len(scores), *wilson(hits, len(scores)))
    return sampled_mean(scores, seed=seed).interval()


# -- labels --------------------------------------------------------------------------------------


def accuracy(truth: Sequence[Hashable], predicted: Sequence[Hashable]) -> Value:
    """Share of rows whose prediction is right, with Wilson's interval."""
    return average([float(t == p) for t, p in zip(truth, predicted, strict=True)])


def macro_f1(truth: Sequence[Hashable], predicted: Sequence[Hashable], *, seed: int = 0) -> Sampled:
    """Mean over labels of F1 = 2 hits / (rows of the label + predictions of it), every label alike.

    A label that is in neither the truth nor the predictions has no F1 and is left out, in each resampling
    anew. One that is in either counts, with 0 if it is never hit.
    """
    labels = {label: number for number, label in enumerate(dict.fromkeys((*truth, *predicted)))}
    true = _one_hot([labels[t] for t in truth], len(labels))
    guessed = _one_hot([labels[p] for p in predicted], len(labels))

    def compute(sums: Tensor) -> Tensor:
        hits, count = sums.tensor_split(2, dim=1)  # [R, C] each
        return (2 * hits / count.clamp(min=1)).sum(1) / (count > 0).sum(1)

    return resampled(torch.cat([true * guessed, true + guessed], 1), compute, seed=seed)


def confusion(truth: Sequence[int], predicted: Sequence[int], labels: int) -> list[list[int]]:
    """``[C, C]`` how often a row of label i was taken for label j."""
    table = [[0] * labels for _ in range(labels)]
    for t, p in zip(truth, predicted, strict=True):
        table[t][p] += 1
    return table


def calibration_error(
    confidences: Sequence[float], hits: Sequence[bool], *, bins: int = 10, seed: int = 0
) -> Sampled:
    """Expected calibration error (Guo et al. 2017): how far confidence is from the share of hits.

    Rows fall into ``bins`` bins of equal width by their confidence, (i/bins, (i+1)/bins]; the error is the
    mean over rows of the distance between a bin's mean confidence and its share of hits. Resampled rows
    scatter more than the rows themselves, so the interval of a small error lies a little high.

    Args:
        confidences: probability of the predicted label, 0 to 1.
        hits: whether that label was right.
        bins: how many bins.
        seed: of the draws.
    """
    sure = torch.tensor(confidences, dtype=torch.float64)
    edges = torch.tensor([i / bins for i in range(1, bins)], dtype=torch.float64)
    gaps = sure - torch.tensor(hits, dtype=torch.float64)
    columns = _one_hot(torch.bucketize(sure, edges).tolist(), bins) * gaps[:, None]  # [B, bins]
    return resampled(columns, lambda sums: sums.abs().sum(1) / len(sure), seed=seed)


def _one_hot(numbers: Sequence[int], count: int) -> Tensor:
    """[B, C] with a 1 at each row's number."""
    return torch.nn.functional.one_hot(torch.tensor(numbers, dtype=torch.long), count).double()


# -- short answers -------------------------------------------------------------------------------

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words one blank apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(text: str, references: Sequence[str]) -> float:
    """1 if the text is one of the references once both are normalised (Rajpurkar et al. 2016), else 0."""
    return max(float(normalised(text) == normalised(reference)) for reference in references)


def token_f1(text: str, references: Sequence[str]) -> float:
    """F1 of the words shared with a reference, the best over references (Rajpurkar et al. 2016).

    Nothing against nothing counts as 1, as in SQuAD 2.0.
    """
    words = normalised(text).split()
    return max(_overlap(words, normalised(reference).split()) for reference in references)


def _overlap(words: list[str], wanted: list[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    shared = (Counter(words) & Counter(wanted)).total()
    return 2 * shared / (len(words) + len(wanted))
