"""Log-likelihoods of continuations behind one prefix; knows token ids, not text, tasks or lm_eval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from softprompt.base.model import Base, Batch
from softprompt.base.packing import TokenRow, batches
from softprompt.evaluation.score import BATCH_TOKENS
from softprompt.generation.likelihood import Likelihood, likelihoods_from_hidden
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
                found[number] = (answer.logprob, answer.greedy)
            on_done(len(numbers))
    return found


def _answers(
    base: Base, prefix: Prefix, rows: list[TokenRow], places: list[int], queries: list[Query]
) -> list[Likelihood]:
    """Answers to queries, of which query i reads ``rows[places[i]]``."""
    states: dict[tuple[int, int], int] = {}  # (row, token) -> where its hidden state is; token -1: the front
    expected = []
    for place, query in zip(places, queries, strict=True):
        tokens = range(len(query.context) - 1, len(query.read))
        which = [states.setdefault((place, token), len(states)) for token in tokens]
        expected.append(list(zip(which, query.target, strict=True)))
    hidden = base.hidden([Batch(rows, prefix)], [list(states)])
    return likelihoods_from_hidden(base.head, hidden, expected)
