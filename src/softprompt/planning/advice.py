"""What to change where a job does not fit, each change planned itself before it is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch

from softprompt.config import Config, LoraConfig
from softprompt.errors import SoftpromptError
from softprompt.planning.blueprint import Blueprint, draw
from softprompt.planning.needs import needs
from softprompt.planning.rehearsal import rehearse
from softprompt.planning.target import Target
from softprompt.planning.workload import Assumed

__all__ = ["Advice", "advise", "needed", "sketched"]

_ENOUGH = 2
_FEWEST = 16
"""Rows of fewer tokens are not advised."""


@dataclass(frozen=True)
class Advice:
    """A change of settings, as one would type it, and the bytes that are needed then."""

    change: str
    needs: int
    fits: bool


def sketched(config: Config, target: Target) -> Blueprint:
    """The blueprint of a job's base; errors as in ``planning.blueprint.draw``."""
    about = config.base
    return draw(
        about.model, revision=about.revision, dtype=target.dtype(about.dtype), quantisation=about.quantisation
    )


def advise(
    config: Config, target: Target, assumed: Assumed | None, now: int, whole: bool
) -> tuple[Advice, ...]:
    """Changes that need less than ``now`` bytes: those that fit, else the two that need least.

    Args:
        config: the job.
        target: the device.
        assumed: as in ``plan``.
        now: what it needs as it is.
        whole: whether all of the base's weights train.
    """
    found: list[Advice] = []
    lacks_bfloat16 = target.kind == "cuda" and target.dtype(config.base.dtype) == torch.float32
    halved = [_halved(config)] if lacks_bfloat16 and config.base.dtype == "auto" else []
    shortened = _shortened(config, _tokens(config, assumed))
    for one_of in chain(_changes(config, whole), halved, [shortened]):
        if one_of is shortened and any(advice.fits for advice in found):
            break  # it leaves out what the rows say: only where nothing else fits
        for change, other in one_of:
            rows = assumed
            if assumed is not None and other.data is not config.data:
                rows = Assumed(other.data.max_tokens, assumed.rows)
            taken = needed(other, target, rows)
            if taken is None or taken >= now:
                continue
            found.append(Advice(change, taken, taken <= target.capacity))
            if found[-1].fits:
                break
        if sum(advice.fits for advice in found) == _ENOUGH:
            break
    fitting = [advice for advice in found if advice.fits]
    return tuple(fitting or sorted(found, key=lambda advice: advice.needs)[:_ENOUGH])


def needed(config: Config, target: Target, assumed: Assumed | None) -> int | None:
    """Bytes; None where the method cannot do it, as full fine-tuning cannot learn 4-bit weights."""
    try:
        sketch = sketched(config, target)
        return needs(sketch, rehearse(config, sketch.base, target.kind, assumed), target).total
    except SoftpromptError:
        return None


_Change = tuple[str, Config]


def _tokens(config: Config, assumed: Assumed | None) -> int:
    """The most that a row has."""
    known = None if assumed is None else assumed.tokens
    return config.data.max_tokens if known is None else known


def _changes(config: Config, whole: bool) -> Iterator[list[_Change]]:
    """What one may try, what alters results least first; of each group the first that fits is enough."""
    yield _accumulated(config)
    if config.base.quantisation == "none" and not whole:
        yield _quantised(config)
    if whole:
        lora = config.model_copy(update={"method": LoraConfig(front=config.method.front)})
        yield [('method.kind = "lora"', lora), *_and('method.kind = "lora"', _quantised(lora))]


def _accumulated(config: Config) -> list[_Change]:
    """Smaller and smaller micro-batches of the same batch."""
    found, train = [], config.train
    parts = 2 * train.accumulation
    while parts <= train.batch_size:
        other = train.model_copy(update={"accumulation": parts})
        found.append((f"train.accumulation = {parts}", config.model_copy(update={"train": other})))
        parts *= 2
    return found


def _halved(config: Config) -> list[_Change]:
    """Float16, where a card has no bfloat16; not taken unasked, for the loss is not scaled for it."""
    change, base = 'base.dtype = "float16"', config.base.model_copy(update={"dtype": "float16"})
    other = config.model_copy(update={"base": base})
    return [(change, other), *_and(change, _accumulated(other)[-1:])]


def _shortened(config: Config, tokens: int) -> list[_Change]:
    """Rows of half as many tokens and of a quarter, in the smallest micro-batches too."""
    found: list[_Change] = []
    for most in (tokens // 2, tokens // 4):
        data = config.data.model_copy(update={"max_tokens": max(_FEWEST, most)})
        change, other = f"data.max_tokens = {data.max_tokens}", config.model_copy(update={"data": data})
        found += [(change, other), *_and(change, _accumulated(other)[-1:])]
    return found


def _quantised(config: Config) -> list[_Change]:
    """The base in 4 bits, and with the smallest micro-batches too."""
    base = config.base.model_copy(update={"quantisation": "nf4"})
    change, other = 'base.quantisation = "nf4"', config.model_copy(update={"base": base})
    return [(change, other), *_and(change, _accumulated(other)[-1:])]


def _and(first: str, changes: list[_Change]) -> list[_Change]:
    return [(f"{first} and {change}", other) for change, other in changes]
