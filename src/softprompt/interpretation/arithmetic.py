"""Prompts added, averaged and scaled, and what each mixture scores.

It knows fronts of one shape and rows; it does not know how a front was learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softprompt.base.model import Base
from softprompt.data.rows import Encoded
from softprompt.errors import ConfigError
from softprompt.evaluation.score import score_many
from softprompt.interpretation.finding import Finding
from softprompt.interpretation.scored import Scored, ScoreDifference
from softprompt.prefix import Front, Prefix

__all__ = ["Mixture", "Sum", "averages", "blend", "mix", "scale", "scaling", "weigh"]


@dataclass(frozen=True)
class Sum:
    """One weighted sum of fronts, and its scores.

    Attributes:
        name: what to call it.
        weights: of each front, by name.
        scores: on the rows.
        against: this less the first sum of the list, on the same rows; None for the first itself.
    """

    name: str
    weights: dict[str, float]
    scores: Scored
    against: ScoreDifference | None


@dataclass(frozen=True)
class Mixture(Finding):
    """Sums of fronts on the same rows.

    Attributes:
        sums: in the order asked for.
        rows: how many rows.
        seed: of the resamplings.
    """

    sums: tuple[Sum, ...]
    rows: int
    seed: int


def mix(fronts: Sequence[Front], weights: Sequence[float]) -> Front:
    """The weighted sum of fronts of one kind and shape: of embeddings, or of keys and values layer by layer.

    Keys are added as they stand in the cache: a position's rotation is the same in every prefix.

    Raises:
        ConfigError: fronts of different kinds or shapes, or prefixes of different bases.
    """
    assert fronts
    assert len(fronts) == len(weights)
    if all(isinstance(front, Tensor) for front in fronts):
        vectors = [front for front in fronts if isinstance(front, Tensor)]
        _same([tuple(front.shape) for front in vectors])
        return _sum(vectors, weights)
    prefixes = [front for front in fronts if isinstance(front, Prefix)]
    if len(prefixes) < len(fronts):
        raise ConfigError("A soft prompt and a KV prefix cannot be added; choose prompts of one kind.")
    _same([(p.base, *(tuple(t.shape) for t in p.tensors)) for p in prefixes])
    sides = [zip(*(getattr(p, side) for p in prefixes), strict=True) for side in ("keys", "values")]
    keys, values = ([_sum(layer, weights) for layer in side] for side in sides)
    states = {key: _sum([p.states[key] for p in prefixes], weights) for key in prefixes[0].states}
    return replace(prefixes[0].over(keys, values), states=states)


def scale(front: Front, start: Front, factor: float) -> Front:
    """``start + factor * (front - start)``: 0 is the start, 1 the prompt, 2 as far again."""
    return front if factor == 1 else mix([start, front], [1 - factor, factor])


def weigh(
    base: Base,
    fronts: Mapping[str, Front],
    wanted: Mapping[str, Mapping[str, float]],
    encoded: Encoded,
    *,
    seed: int = 0,
) -> Mixture:
    """Score weighted sums of named fronts; differences are from the first of them.

    Args:
        base: the model.
        fronts: by name, of one kind and shape.
        wanted: for the name of each sum the weight of each front in it.
        encoded: rows to score on.
        seed: of the resamplings.

    Raises:
        ConfigError: fronts that cannot be added.
    """
    made = [mix([fronts[name] for name in weights], list(weights.values())) for weights in wanted.values()]
    return _scored(base, made, wanted, encoded, seed)


def scaling(
    base: Base,
    front: Front,
    start: Front,
    encoded: Encoded,
    *,
    factors: Sequence[float] = (1.0, 0.0, 0.25, 0.5, 0.75, 1.25, 1.5, 2.0),
    seed: int = 0,
) -> Mixture:
    """Score the prompt at shares of its way from its start; differences are from the first of them."""
    wanted = {f"{factor:g}": {"start": 1 - factor, "prompt": factor} for factor in factors}
    return _scored(base, [scale(front, start, factor) for factor in factors], wanted, encoded, seed)


def averages(base: Base, fronts: Mapping[str, Front], encoded: Encoded, *, seed: int = 0) -> Mixture:
    """Score each prompt and the average of all of them, the average last; differences are from the first."""
    wanted = {name: {name: 1.0} for name in fronts}
    wanted["average"] = dict.fromkeys(fronts, 1 / len(fronts))
    return weigh(base, fronts, wanted, encoded, seed=seed)


def blend(
    base: Base, first: Front, second: Front, encoded: Encoded, *, parts: int = 4, seed: int = 0
) -> Mixture:
    """Score the straight way from one prompt to another in equal parts; a ridge in it parts two solutions."""
    shares = [part / parts for part in range(parts + 1)]
    wanted = {f"{share:g}": {"first": 1 - share, "second": share} for share in shares}
    return weigh(base, {"first": first, "second": second}, wanted, encoded, seed=seed)


def _scored(
    base: Base,
    made: Sequence[Front],
    wanted: Mapping[str, Mapping[str, float]],
    encoded: Encoded,
    seed: int,
) -> Mixture:
    scores = score_many(base, made, encoded)
    sums = tuple(
        Sum(
            name,
            dict(weights),
            Scored.of(found),
            ScoreDifference.of(found, scores[0], encoded, seed=seed) if number else None,
        )
        for number, ((name, weights), found) in enumerate(zip(wanted.items(), scores, strict=True))
    )
    return Mixture(sums, len(encoded.examples), seed)


def _sum(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(parts[0], dtype=torch.float32)
    for part, weight in zip(parts, weights, strict=True):
        total = total + weight * part.detach().float()
    return total


def _same(shapes: Sequence[object]) -> None:
    if any(shape != shapes[0] for shape in shapes):
        raise ConfigError("The prompts differ in length or base, so they cannot be added; choose equal ones.")
