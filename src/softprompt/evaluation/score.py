"""Scores of one front on encoded rows: label accuracy, or loss per token of free text.

It knows token rows and candidates; it does not know which method made the front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from softprompt.base.model import Base
from softprompt.base.packing import TokenRow, batches
from softprompt.data.rows import Encoded, Example
from softprompt.evaluation.intervals import Interval, bootstrap_ratio, wilson
from softprompt.prefix import Front

__all__ = ["Scores", "likelihoods", "score", "target_rows"]

BATCH_TOKENS = 2048
"""Text tokens read in one pass; bounds memory, changes no score."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scores:
    """How one front did on one set of rows.

    Attributes:
        rows: how many rows were scored.
        nll: mean negative log-likelihood of a target token, in nats; where labels are told apart
            by their first token, of that token.
        nll_interval: its 95% bootstrap interval over rows.
        accuracy: share of rows whose likeliest label is right; None for free text.
        accuracy_interval: its 95% Wilson interval.
        predictions: the likeliest label's number for each row; empty for free text.
    """

    rows: int
    nll: float
    nll_interval: Interval
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    predictions: tuple[int, ...] = ()

    def summary(self) -> dict[str, object]:
        """The scores without the predictions, for a card or a log."""
        return {k: v for k, v in asdict(self).items() if k != "predictions" and v is not None}

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Scores:
        """What ``to_json`` gave."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**known)


def score(base: Base, front: Front, encoded: Encoded, progress: Progress | None = None) -> Scores:
    """Score a front on rows it was not trained on."""
    with torch.no_grad():
        prefix = base.prefill(front)
        if encoded.candidate_ids is None:
            return _score_text(base, prefix, encoded.examples, progress)
        table = likelihoods(base, prefix, encoded, progress)
    return _score_labels(table, encoded)


def target_rows(examples: Sequence[Example], *, whole_text: bool = False) -> list[TokenRow]:
    """Input and target as one row, of which the target, or everything, is scored."""
    return [TokenRow(e.input_ids + e.target_ids, 0 if whole_text else len(e.input_ids)) for e in examples]


def likelihoods(base: Base, front: Front, encoded: Encoded, progress: Progress | None = None) -> Tensor:
    """Log-likelihood ``[B, C]`` of every candidate behind every row, fp32 on the CPU.

    Where the candidates' first tokens tell them apart only those are compared, in one pass over
    the inputs; else whole candidates are, each read behind each input.
    """
    candidates = encoded.candidate_ids
    assert candidates is not None
    inputs = [e.input_ids for e in encoded.examples]
    if encoded.needs_whole_words:
        rows = [TokenRow(ids + word, len(ids)) for ids in inputs for word in candidates]
        found = _in_batches(base, rows, lambda batch: -base.nll(batch, front).per_row(), progress)
        return found.view(len(inputs), len(candidates))
    first = torch.tensor([word[0] for word in candidates], device=base.device)

    def compare(batch: list[TokenRow]) -> Tensor:
        return base.next_logits(batch, front).log_softmax(-1)[:, first]

    return _in_batches(base, [TokenRow(ids) for ids in inputs], compare, progress)


def _in_batches(
    base: Base,
    rows: Sequence[TokenRow],
    read: Callable[[list[TokenRow]], Tensor],
    progress: Progress | None,
) -> Tensor:
    """Results of ``read`` for all rows, in order, read a bounded number of tokens at a time."""
    results: list[Tensor] = [torch.empty(0)] * len(rows)
    done = 0
    for numbers in batches(rows, BATCH_TOKENS):
        values = read([rows[i] for i in numbers]).float().cpu()
        for number, value in zip(numbers, values, strict=True):
            results[number] = value
        done += len(numbers)
        if progress is not None:
            progress(done, len(rows))
    return torch.stack(results)


def _score_text(base: Base, front: Front, examples: Sequence[Example], progress: Progress | None) -> Scores:
    rows = target_rows(examples)
    losses = _in_batches(base, rows, lambda batch: base.nll(batch, front).per_row(), progress).tolist()
    tokens = [float(row.scored) for row in rows]
    return Scores(len(rows), sum(losses) / sum(tokens), bootstrap_ratio(losses, tokens))


def _score_labels(table: Tensor, encoded: Encoded) -> Scores:
    candidates = encoded.candidate_ids
    assert candidates is not None
    labels = torch.tensor([e.label for e in encoded.examples])
    predictions = table.argmax(1)
    hits, total = int((predictions == labels).sum()), len(labels)
    losses = (-table[torch.arange(total), labels]).tolist()
    tokens = [float(len(candidates[i])) if encoded.needs_whole_words else 1.0 for i in labels.tolist()]
    return Scores(
        rows=total,
        nll=sum(losses) / sum(tokens),
        nll_interval=bootstrap_ratio(losses, tokens),
        accuracy=hits / total,
        accuracy_interval=wilson(hits, total),
        predictions=tuple(predictions.tolist()),
    )
