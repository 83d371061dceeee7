"""What a job needs of each of several like cards, the ways it can be spread over them; nothing is loaded."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from softprompt.checkpoints.spread import OF_CARD, layer_places, weights_of_layers
from softprompt.config import Config
from softprompt.errors import ResourceError
from softprompt.planning.advice import needed
from softprompt.planning.blueprint import Blueprint
from softprompt.planning.needs import Needs
from softprompt.planning.rehearsal import PURPOSES
from softprompt.planning.target import Target
from softprompt.planning.workload import Assumed
from softprompt.team import BUCKET

__all__ = ["Way", "ways"]


@dataclass(frozen=True)
class Way:
    """One way to use several cards.

    Attributes:
        name: what it is called.
        needs: bytes of the fullest card; None where the cards together do not hold it.
        fits: whether that is no more than a card holds.
        how: what to type, or why it does not go.
    """

    name: str
    needs: int | None
    fits: bool
    how: str


def ways(
    config: Config,
    sketch: Blueprint,
    alone: Needs,
    trained: int,
    target: Target,
    assumed: Assumed | None,
    cards: int,
) -> tuple[Way, ...]:
    """What each of ``cards`` cards like ``target`` needs.

    Args:
        config: the job.
        sketch: of its base.
        alone: what it needs on one card.
        trained: numbers that train.
        target: one of the cards.
        assumed: as in ``plan``.
        cards: how many.
    """
    return (
        _data_parallel(config, trained, target, assumed, cards),
        _layers_apart(config, sketch, alone, trained, target, cards),
    )


def _data_parallel(config: Config, trained: int, target: Target, assumed: Assumed | None, cards: int) -> Way:
    """Every card holds all of the base and reads its share of the rows; gradients travel."""
    share = math.ceil(config.train.batch_size / cards)
    parts = min(config.train.accumulation, share)
    train = config.train.model_copy(update={"batch_size": share, "accumulation": parts})
    each = needed(config.model_copy(update={"train": train}), target, assumed)
    total = None if each is None else each + 4 * min(trained, BUCKET)  # the message, beside the gradients
    return Way(
        "data parallel",
        total,
        total is not None and total <= target.capacity,
        f"torchrun --nproc-per-node {cards} -m softprompt train ...; {share} of {config.train.batch_size} "
        "rows on each",
    )


def _layers_apart(
    config: Config, sketch: Blueprint, alone: Needs, trained: int, target: Target, cards: int
) -> Way:
    """The layers of one base on several cards, which read one after the other; see ``checkpoints.spread``."""
    name = "layers over the cards"
    if config.base.quantisation != "none" or trained >= sketch.parameters:
        what = "a quantised base" if trained < sketch.parameters else "full fine-tuning"
        return Way(name, None, False, f"not for {what}")
    free = int(OF_CARD * (target.capacity - target.reserve))
    try:
        places = layer_places(sketch.base.model, {f"cuda:{number}": free for number in range(cards)})
    except ResourceError:
        return Way(name, None, False, "one card does not hold the embeddings and the head")
    layers = Counter(place for part, place in places.items() if part.rpartition(".")[2].isdecimal())
    if missing := layers.pop("disk", 0):
        return Way(name, None, False, f"{missing} of {missing + layers.total()} layers find no room")
    kept = sum(part.bytes for part in alone.parts if part.name == PURPOSES["activations"])
    stacked = sum(weights_of_layers(sketch.base.model))
    of_layer = (stacked + kept) // layers.total()  # with what it keeps for the backward pass
    first = alone.total - target.reserve - stacked - kept
    each = [
        target.reserve + count * of_layer + (first if place == "cuda:0" else 0)
        for place, count in layers.items()
    ]
    spread = "/".join(str(count) for count in layers.values())
    return Way(
        name,
        max(each),
        max(each) <= target.capacity,
        f'base.device = "auto", one process; {spread} layers on each',
    )
