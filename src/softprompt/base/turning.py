"""Keys brought to other places: a rotary model's key at position p, turned to stand at position q.

It knows rotary embeddings as transformers' models carry them; it does not know which positions are chosen, or
why. Whether a model's keys can be turned so is found out by reading one token at two places.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt.base.cache import Recorder
from softprompt.base.model import Base
from softprompt.errors import BaseModelError
from softprompt.prefix import Prefix

__all__ = ["picked"]

_FAR = 11
"""How far the token is moved that a model is tried with."""


@torch.no_grad()
def picked(base: Base, prefix: Prefix, places: Sequence[Sequence[int] | Tensor] | Tensor) -> Prefix:
    """Some positions of a prefix, a choice for each layer, moved together to stand at 0, 1, 2, ...

    Args:
        base: the model of the prefix.
        prefix: of P positions.
        places: for each layer which C positions are kept, in order; or ``[K, C]``, which of each head.

    Raises:
        BaseModelError: the model's keys cannot be moved.
    """
    chosen = [torch.as_tensor(layer, device=base.device) for layer in places]  # [C] or [K, C]
    chosen = [layer.expand(len(k), -1) for layer, k in zip(chosen, prefix.keys, strict=True)]
    way = [torch.arange(layer.shape[1], device=base.device) - layer for layer in chosen]
    keys, values = (
        [t.take_along_dim(layer[:, :, None], 1) for t, layer in zip(side, chosen, strict=True)]
        for side in (prefix.keys, prefix.values)
    )
    if any(bool(steps.any()) for steps in way):
        _check(base)
        each = zip(prefix.places, keys, way, strict=True)
        keys = [_turned(base, layer, k, steps) for layer, k, steps in each]
    return prefix.over(keys, values)


def _check(base: Base) -> None:
    """A token alone has the same hidden states wherever it stands, so only the turn of its keys differs."""
    here, there = (_alone(base, place) for place in (0, _FAR))
    for layer, moved in there.items():
        found = _turned(base, layer, here[layer], torch.tensor([[_FAR]], device=moved.device))
        if not (found - moved).norm() <= 0.02 * moved.norm():
            raise BaseModelError(
                f"Keys of {base.name} cannot be moved to other positions, so none can be picked; "
                'set method.keep = "last" or "first".'
            )


def _alone(base: Base, place: int) -> dict[int, Tensor]:
    """By layer the keys [K, 1, D] of one token read at a position."""
    backbone = getattr(base.model, base.model.base_model_prefix)
    known = inspect.signature(type(backbone).forward).parameters
    at = {"position_ids": torch.tensor([[place]], device=base.device)} if "position_ids" in known else {}
    recorder = Recorder()
    base.run(input_ids=torch.tensor([[5]], device=base.device), cache=recorder, **at)
    return {layer: k[0] for layer, (k, _) in recorder.pairs.items()}


def _turned(base: Base, layer: int, keys: Tensor, steps: Tensor) -> Tensor:
    """Keys [K, P, D] moved on by ``steps`` [K or 1, P]; of a model without a rotary embedding as they are."""
    backbone: Any = getattr(base.model, base.model.base_model_prefix)
    rotary = getattr(backbone, "rotary_emb", None)
    if rotary is None:
        return keys
    kinds: Any = getattr(base.text_config, "layer_types", None)
    more = (
        {"layer_type": kinds[layer]} if "layer_type" in inspect.signature(rotary.forward).parameters else {}
    )
    cos, sin = (side.float() for side in rotary(keys.float(), steps, **more))  # [K or 1, P, D'] each
    length = (cos**2 + sin**2).sqrt()  # some embeddings scale what they turn
    cos, sin = cos / length, sin / length
    wide = cos.shape[-1]
    turning, rest = keys[..., :wide].float(), keys[..., wide:]
    left, right = turning.chunk(2, dim=-1)
    turning = turning * cos + torch.cat([-right, left], -1) * sin
    return torch.cat([turning.to(keys.dtype), rest], -1)
