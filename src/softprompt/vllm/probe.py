"""Does the installed vLLM answer as the base does? A handful of mixed requests against each of them alone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import torch

from softprompt.base.copies import linear_layers
from softprompt.base.lowrank import LayerChange, LowRank, Riders, ridden
from softprompt.base.model import Base
from softprompt.generation.request import (
    CandidateLogprobs,
    Event,
    GenerateRequest,
    ModelRequest,
    PromptLogprobs,
    ScoreRequest,
    TextDelta,
)
from softprompt.generation.sampler import Sampling
from softprompt.generation.scheduler import Scheduler

__all__ = ["ADAPTERS", "worst_by_kind"]

_POSITIONS = (1, 5, 37, 12)
ADAPTERS = 2 * len(_POSITIONS)
"""How many adapters are asked for at once. A vLLM with room for more could hide what it does to rows without
one: on CPUs 0.32 gives them whatever lies in the last place."""
_NEW = 4
"""Tokens of an answer."""


async def worst_by_kind(
    base: Base, ask: Callable[[ModelRequest], Awaitable[list[Event]]], kinds: Collection[str]
) -> dict[str, float]:
    """By kind of request, how far log-probabilities are off, in nats, when all are asked at once.

    Args:
        base: what is right.
        ask: brings the events of a request.
        kinds: some of "plain", "prompt" and "LoRA".
    """
    requests = [(kind, request) for kind, request in _requests(base) if kind in kinds]
    found = await asyncio.gather(*(ask(request) for _, request in requests), return_exceptions=True)
    worst = dict.fromkeys(kinds, 0.0)
    for (kind, request), events in zip(requests, found, strict=True):
        gap = math.inf if isinstance(events, BaseException) else _gap(_alone(request), events)
        worst[kind] = max(worst[kind], gap)
    return worst


def _alone(request: ModelRequest) -> list[Event]:
    """What our own engine says, the request by itself."""
    events: list[Event] = []
    Scheduler(request.model, rows=1, room=2048).run_all([request], lambda _, event: events.append(event))
    return events


def _gap(right: list[Event], found: list[Event]) -> float:
    """The largest difference in log-probability, up to the first token chosen otherwise."""
    gap = 0.0
    for (token, one), (other_token, other) in zip(_numbers(right), _numbers(found), strict=False):
        gap = max(gap, abs(one - other) if math.isfinite(other) else math.inf)
        if token != other_token:
            break
    return gap if any(True for _ in _numbers(found)) else math.inf


def _numbers(events: list[Event]) -> Iterator[tuple[int, float]]:
    for event in events:
        if isinstance(event, CandidateLogprobs):
            yield from enumerate(event.values)
        elif isinstance(event, TextDelta | PromptLogprobs):
            yield from ((t.id, t.logprob) for t in event.tokens if t.logprob is not None)


def _requests(base: Base) -> Iterator[tuple[str, ModelRequest]]:
    """Plain texts, texts behind soft prompts and KV prefixes, and texts read with adapters, in turns."""
    draw = torch.Generator().manual_seed(0)
    model = ridden(base)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(base.embedding.num_embeddings, (count,), generator=draw).tolist())

    def like(t: Any, scale: float) -> Any:
        return (torch.randn(t.shape, generator=draw) * scale).to(t)

    writes = Sampling(max_new_tokens=_NEW, logprobs=0, ignore_end=True)
    for turn, positions in enumerate(_POSITIONS):
        with torch.no_grad():
            bare = model.prefill_text("").detached()
            soft = model.prefill(base.embed(ids(positions))).detached()
            adapter = _adapter(base, draw)
            with Riders().seated([adapter] * positions):
                changed = model.prefill(base.embed(ids(positions))).detached()
        trained = replace(
            soft,
            keys=tuple(t + like(t, 0.1 * float(t.float().std())) for t in soft.keys),
            values=tuple(t + like(t, 0.1 * float(t.float().std())) for t in soft.values),
            hidden=None,
        )
        for kind, prefix, change in (
            ("prompt", soft, None),
            ("LoRA", changed, adapter),
            ("prompt", trained, None),
            ("LoRA", replace(bare), _adapter(base, draw)),
            ("plain", bare, None),
        ):
            behind: dict[str, Any] = {"model": model, "prefix": prefix, "adapter": change}
            yield kind, GenerateRequest(**behind, ids=ids(9 + turn), sampling=writes, echo=turn == 0)
            yield kind, ScoreRequest(**behind, ids=ids(7), candidates=(ids(1), ids(3)), whole=True)


def _adapter(base: Base, draw: torch.Generator) -> LowRank:
    """A change of the attention's layers that is felt."""
    layers = {}
    for name in linear_layers(base):
        weight = base.model.get_submodule(name).weight
        down = torch.randn(4, weight.shape[1], generator=draw) / weight.shape[1] ** 0.5
        up = torch.randn(weight.shape[0], 4, generator=draw) * float(weight.float().std())
        layers[name] = LayerChange(down.to(weight), up.to(weight))
    return LowRank(layers)
