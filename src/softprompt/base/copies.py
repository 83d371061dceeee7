"""A second model over the same weights, for methods that change the model without touching the base.

Modules are new, tensors are shared: changing a module of the copy leaves the base as it was, and the copy
costs no memory until something is added to it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from softprompt.base.model import Base

__all__ = ["Change", "in_parts", "linear_layers", "shared_copy", "twin", "with_parameters"]

_OF_MODELS = ("transformers.models.", "transformers_modules.")
"""Where the code of single models is, those that bring their own included."""

_numbers = itertools.count(1)


@dataclass(frozen=True, eq=False)
class Change:
    """What turns a frozen base into a changed model: enough to make the change again.

    Attributes:
        kind: the format it is kept in, such as ``"lora"``.
        settings: JSON values: rank, targets and the like.
        tensors: its learnt tensors by name, as they stand now.
    """

    kind: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)


def linear_layers(base: Base) -> list[str]:
    """Full names of every linear layer but the head, those that GPT-2 stores transposed included.

    What a model derives from one and gives a pass of its own is such a layer if it gives the same product, as
    Falcon's does, and none if it gives something else, as a router of experts.
    """
    head = base.model.get_output_embeddings()
    kinds = (nn.Linear, Conv1D)
    found = [(name, m) for name, m in base.model.named_modules() if isinstance(m, kinds) and m is not head]
    own = {type(m): m for _, m in found if type(m).forward.__module__.startswith(_OF_MODELS)}
    others = {kind for kind, module in own.items() if not _is_product(module)}
    return [name for name, m in found if type(m) not in others]


def _is_product(layer: nn.Module) -> bool:
    """Whether a layer gives its input times its weight, plus its bias."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    ones = torch.ones(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        try:
            found, wanted = layer(ones), functional.linear(ones, weight, layer.bias)  # type: ignore[arg-type]
        except (RuntimeError, TypeError, ValueError):
            return False
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return False
    return found.is_meta or torch.allclose(found, wanted, rtol=1e-2, atol=1e-2)


def shared_copy(base: Base) -> Base:
    """A base with modules of its own over the tensors of ``base``.

    Its fingerprint names it apart from the original, so a prefix made by one is refused by the other.
    """
    return replace(base, model=twin(base), fingerprint=f"{base.fingerprint}+{next(_numbers)}")


def with_parameters(base: Base, tensors: Mapping[str, Tensor]) -> Base:
    """A copy of ``base`` with other numbers in some of its parameters, frozen.

    Where two modules share a parameter, as embedding and head may, only the one that is named gets them.
    """
    changed = shared_copy(base)
    for name, tensor in tensors.items():
        owner, _, own = name.rpartition(".")
        module = changed.model.get_submodule(owner)
        old = getattr(module, own)
        setattr(module, own, nn.Parameter(tensor.to(old.device, old.dtype), requires_grad=False))
    return changed


def twin(base: Base) -> Any:
    """A model with modules of its own over the tensors of the base's."""
    tensors = itertools.chain(base.model.parameters(), base.model.buffers(), _kept_aside(base.model))
    return copy.deepcopy(base.model, {id(t): t for t in (*tensors, *_elsewhere(base.model))})


def in_parts(base: Base) -> bool:
    """Whether some of the weights lie in memory or on disk, and come to the device while they are used."""
    return not base.embedding.weight.is_meta and any(p.is_meta for p in base.model.parameters())


def _elsewhere(model: Any) -> Iterator[Any]:
    """What accelerate brings weights from, where they do not lie on the device."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in (hook, *getattr(hook, "hooks", ())):
            shared = (getattr(one, name, None) for name in ("weights_map", "tied_params_map"))
            yield from (held for held in shared if held is not None)


def _kept_aside(model: Any) -> Iterator[Tensor]:
    """What bitsandbytes' layers hold beside their weights: the scales, and in 8 bits the weights again."""
    for module in model.modules():
        aside = [getattr(module, name, None) for name in ("state", "quant_state")]
        nested = [getattr(holder, "state2", None) for holder in aside]  # the scales of the scales
        for holder in (*aside, *nested):
            yield from (held for held in getattr(holder, "__dict__", {}).values() if isinstance(held, Tensor))
