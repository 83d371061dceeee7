"""Layers that keep only what enters them and are computed again for their gradient: less memory, more time.

It knows which of a model's modules transformers takes for layers; it does not know what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.base.head import backbone
from softprompt.errors import ConfigError

__all__ = ["recomputed"]


@contextmanager
def recomputed(model: Any, wanted: bool = True) -> Iterator[None]:
    """Within, if ``wanted``, layers are computed again for gradients (Chen et al. 2016), which stay the same.

    Transformers' own switch drops the cache in which rows find their front, so the layers are wrapped here.

    Raises:
        ConfigError: the model has no layers that transformers would compute again.
    """
    if not wanted:
        yield
        return
    layers = [one for one in backbone(model).modules() if isinstance(one, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            "The layers of this base cannot be computed again; set train.recompute to false, and to save "
            "memory raise train.accumulation."
        )
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        vars(layer)["forward"] = partial(_again, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = forward


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
