"""What vLLM is asked for a request, in its own fields, and how likelihoods of candidates are put together.

Plain values: it knows no vLLM. Text, stop strings and the end of an answer are not vLLM's business here: the
tokens it chooses go through ``AnswerState``, as those of our own scheduler do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from softprompt.generation.request import GenerateRequest, ScoreRequest
from softprompt.generation.sampler import TokenChoice, row_seed

__all__ = ["MOST_IDS", "Question", "choice_of", "questions", "sampling_fields", "summed"]

MOST_IDS = 128
"""Token ids of which vLLM tells the likelihood in one request (its ``MAX_LOGPROB_TOKEN_IDS``)."""


def sampling_fields(request: GenerateRequest, ends: Iterable[int]) -> dict[str, Any]:
    """Fields of vLLM's ``SamplingParams``; ``ends`` are the tokens at which the answer is over."""
    sampling = request.sampling
    pairs = cast(tuple[tuple[int, float], ...], sampling.logit_bias)
    fields: dict[str, Any] = {
        "max_tokens": max(1, request.longest),
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": dict(pairs) or None,
        "stop_token_ids": sorted(ends),
        "min_tokens": sampling.min_new_tokens,
        "ignore_eos": True,  # all that ends an answer is among ``ends``
        "logprobs": sampling.logprobs,
        "detokenize": False,
    }
    if not sampling.greedy:
        fields |= {"top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": sampling.min_p}
        fields["seed"] = row_seed(sampling.seed, request.row)
    if request.echo:
        fields["prompt_logprobs"] = sampling.logprobs or 0
    return fields


def choice_of(token: int, told: Mapping[int, Any] | None, count: int | None) -> TokenChoice:
    """A token as our sampler would tell it; ``told`` is what vLLM tells of it: by id, logprob and rank."""
    if told is None or count is None:
        return TokenChoice(token)
    likeliest = sorted((-said.logprob, other) for other, said in told.items() if (said.rank or 0) <= count)
    top = tuple((other, -negative) for negative, other in likeliest[:count])
    return TokenChoice(token, told[token].logprob, top)


class Question(NamedTuple):
    """How likely each of some tokens is behind the text and ``behind``, tokens of a candidate."""

    behind: tuple[int, ...]
    tokens: tuple[int, ...]


def questions(request: ScoreRequest) -> list[Question]:
    """What to ask to score all candidates; those that begin alike share what is asked of their beginning."""
    asked: dict[tuple[int, ...], dict[int, None]] = {}
    for candidate in request.candidates:
        for place in range(len(candidate) if request.whole else 1):
            asked.setdefault(candidate[:place], {})[candidate[place]] = None
    found = []
    for behind, some in asked.items():
        tokens = tuple(some)
        found += [Question(behind, tokens[i : i + MOST_IDS]) for i in range(0, len(tokens), MOST_IDS)]
    return found


def summed(request: ScoreRequest, told: Sequence[tuple[Question, Mapping[int, float]]]) -> tuple[float, ...]:
    """The log-likelihood of every candidate, from the answers to its ``questions``."""
    known = {(q.behind, token): logprob for q, found in told for token, logprob in found.items()}
    return tuple(
        sum(known[c[:place], c[place]] for place in range(len(c) if request.whole else 1))
        for c in request.candidates
    )
