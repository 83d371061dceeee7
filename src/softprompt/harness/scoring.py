"""Log-likelihoods of continuations behind one prefix; knows token ids, not text, tasks or lm_eval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.base.head import CHUNK
from softprompt.base.model import Base, Batch
from softprompt.base.packing import TokenRow, batches
from softprompt.evaluation.score import BATCH_TOKENS
from softprompt.prefix import Prefix

__all__ = ["Query", "log_likelihoods"]

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Query:
    """How likely is ``target`` after ``context``?

    The context may be empty only behind a prefix that expects a next token by itself.
    """

    context: Ids
    target: Ids

    @property
    def read(self) -> Ids:
        """What the model reads for it: everything but the last token, which is only predicted."""
        return (self.context + self.target)[:-1]


def log_likelihoods(
    base: Base,
    prefix: Prefix,
    queries: Sequence[Query],
    on_done: Callable[[int], object] = lambda count: None,
) -> list[tuple[float, bool]]:
    """For every query, in order: the summed log-probability of its target, and whether greedy would write it.

    Queries that read the same tokens, such as the one-token choices of one question, are read once.

    Args:
        base: the model.
        prefix: what stands in front of every query.
        queries: none with an empty target.
        on_done: called with how many queries have been answered since the last call.
    """
    askers: dict[Ids, list[int]] = defaultdict(list)
    for number, query in enumerate(queries):
        askers[query.read].append(number)
    rows = [TokenRow(ids) for ids in askers]
    asked = list(askers.values())
    found: list[tuple[float, bool]] = [(0.0, False)] * len(queries)
    with torch.no_grad():
        for batch in batches(rows, BATCH_TOKENS):
            numbers = [number for row in batch for number in asked[row]]
            places = [place for place, row in enumerate(batch) for _ in asked[row]]
            answers = _answers(
                base, prefix, [rows[i] for i in batch], places, [queries[number] for number in numbers]
            )
            for number, answer in zip(numbers, answers, strict=True):
                found[number] = answer
            on_done(len(numbers))
    return found


def _answers(
    base: Base, prefix: Prefix, rows: list[TokenRow], places: list[int], queries: list[Query]
) -> list[tuple[float, bool]]:
    """Answers to queries, of which query i reads ``rows[places[i]]``."""
    slots: dict[tuple[int, int], int] = {}  # (row, token) -> where its hidden state is; token -1: the front
    which: list[int] = []
    for place, query in zip(places, queries, strict=True):
        for token in range(len(query.context) - 1, len(query.read)):
            which.append(slots.setdefault((place, token), len(slots)))
    # Base has no public way yet to ask for the hidden states of chosen tokens.
    hidden = base.hidden([Batch(rows, prefix)], [list(slots)])
    targets = torch.tensor([token for query in queries for token in query.target])
    logs, greedy = _token_answers(base, hidden, torch.tensor(which), targets)
    sizes = [len(query.target) for query in queries]
    return [
        (float(log.sum()), bool(best.all()))
        for log, best in zip(logs.split(sizes), greedy.split(sizes), strict=True)
    ]


def _token_answers(base: Base, hidden: Tensor, which: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability [M] of each target [M] at ``hidden[which]``, and whether it is the likeliest [M]."""
    logs, greedy = torch.empty(len(targets)), torch.empty(len(targets), dtype=torch.bool)
    for start in range(0, len(hidden), CHUNK):
        logits = base.head.logits(hidden[start : start + CHUNK])  # [C, V]
        mine = ((which >= start) & (which < start + CHUNK)).nonzero()[:, 0]
        at, wanted = (t[mine].to(logits.device) for t in (which - start, targets))
        logs[mine] = logits.log_softmax(-1)[at, wanted].cpu()
        greedy[mine] = (logits.argmax(-1)[at] == wanted).cpu()
    return logs, greedy
