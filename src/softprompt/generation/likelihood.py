"""How likely candidates are, from what the model expects at the places where their tokens stand.

It knows logits and tokens; it does not know how the places were read: packed, one after another, or as one of
many rows under way. Every score of a candidate, offline and served, is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softprompt.base.head import CHUNK, Head

__all__ = ["Expected", "Likelihood", "candidate_likelihoods", "likelihoods_from_hidden"]

Expected = Sequence[tuple[int, int]]
"""The tokens of one candidate: at which of the places each is expected, and its id."""


class Likelihood(NamedTuple):
    """Of one candidate.

    Attributes:
        logprob: the summed natural log-probability of its tokens; NaN where the logits are not finite.
        greedy: whether each of its tokens is the likeliest at its place.
    """

    logprob: float
    greedy: bool


def candidate_likelihoods(logits: Tensor, candidates: Sequence[Expected]) -> list[Likelihood]:
    """The likelihood of every candidate from fp32 logits ``[M, V]`` at M places."""
    return _summed(candidates, *_of_tokens(logits, *_flat(candidates)))


def likelihoods_from_hidden(head: Head, hidden: Tensor, candidates: Sequence[Expected]) -> list[Likelihood]:
    """The same from hidden states ``[M, E]``; no more logits than ``head.CHUNK`` x V exist at one time."""
    places, tokens = _flat(candidates)
    logprobs, greedy = torch.empty(len(tokens)), torch.empty(len(tokens), dtype=torch.bool)
    for start in range(0, len(hidden), CHUNK):
        here = ((places >= start) & (places < start + CHUNK)).nonzero()[:, 0]
        found = _of_tokens(head.logits(hidden[start : start + CHUNK]), places[here] - start, tokens[here])
        logprobs[here], greedy[here] = found
    return _summed(candidates, logprobs, greedy)


def _flat(candidates: Sequence[Expected]) -> tuple[Tensor, Tensor]:
    """Places and ids of all tokens of all candidates, [N] each."""
    pairs = [pair for candidate in candidates for pair in candidate]
    places, tokens = torch.tensor(pairs, dtype=torch.long).view(-1, 2).unbind(1)
    return places, tokens


def _of_tokens(logits: Tensor, places: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability [N] of each token at its place, and whether it is the likeliest [N], on the CPU."""
    if len(tokens) and int(tokens.amax()) >= logits.shape[1]:
        raise IndexError(f"token {int(tokens.amax())} is beyond the {logits.shape[1]} there are")
    at, ids = places.to(logits.device), tokens.to(logits.device)
    total = logits.logsumexp(1)  # [M]
    total = total.masked_fill(~total.isfinite(), torch.nan)
    return (logits[at, ids] - total[at]).cpu(), (logits.argmax(1)[at] == ids).cpu()


def _summed(candidates: Sequence[Expected], logprobs: Tensor, greedy: Tensor) -> list[Likelihood]:
    sizes = [len(candidate) for candidate in candidates]
    parts = zip(logprobs.split(sizes), greedy.split(sizes), strict=True)
    return [Likelihood(float(logprob.sum()), bool(best.all())) for logprob, best in parts]
