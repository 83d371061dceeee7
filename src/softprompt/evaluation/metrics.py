"""Metrics of predictions against the truth, each with its 95% interval over rows.

Arithmetic on labels, probabilities and short answers; it knows no model and no method. Notation: B rows,
C labels, R resamplings. How rows are resampled is ``intervals``' business, whose names stand here too.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from softprompt.evaluation.intervals import RESAMPLES, Sampled, Value, average, resampled, sampled_mean

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
    "precision_recall",
    "resampled",
    "sampled_mean",
    "token_f1",
]

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


def precision_recall(table: Sequence[Sequence[int]]) -> list[tuple[float | None, float | None]]:
    """Of each label of a ``confusion``: the share of its predictions that are right, and of its rows found.

    None where there is no prediction, or no row, of the label.
    """
    predicted = [sum(column) for column in zip(*table, strict=True)]
    return [
        (row[i] / predicted[i] if predicted[i] else None, row[i] / sum(row) if sum(row) else None)
        for i, row in enumerate(table)
    ]


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
