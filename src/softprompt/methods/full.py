"""Full fine-tuning: every weight of a copy of the model is learnt, the base itself stays as it is.

It knows the copy's master weights; it does not know rows, losses or optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from softprompt.base.copies import Change, in_parts, shared_copy
from softprompt.base.model import Base
from softprompt.errors import BaseModelError, ConfigError

__all__ = ["Full", "replaced"]


class Full:
    """A copy of the base whose weights all train, behind a front of words.

    Masters are fp32; where the base computes in half precision the copy reads them rounded, so steps
    smaller than a rounding are not lost.

    Args:
        base: the frozen model.
        front: ``[P, E]`` the embeddings of the words in front, often none.
    """

    def __init__(self, base: Base, front: Tensor) -> None:
        if not all(p.is_floating_point() for p in base.model.parameters()):
            raise ConfigError(
                f"{base.name} is quantised, and full fine-tuning cannot learn quantised weights; "
                'set base.quantisation = "none" or choose method.kind = "lora".'
            )
        if in_parts(base):
            raise ConfigError(
                f"Not all of {base.name} lies on its device, as full fine-tuning needs it; take a device "
                'that holds it, or choose method.kind = "prompt-tuning".'
            )
        self._front = front
        self._base = shared_copy(base)
        masters = {name: p.detach().float().clone() for name, p in base.model.named_parameters()}
        rounding = base.dtype if base.dtype != torch.float32 else None
        self._masters = _put(self._base, masters, rounding)

    @property
    def base(self) -> Base:
        """The copy."""
        return self._base

    def front(self) -> Tensor:
        return self._front

    def change(self) -> Change:
        dtype = self._base.dtype
        return Change("full", {}, {name: t.to(dtype) for name, t in self.state().items()})

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self._masters.values())

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self._masters.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._masters.items():
                tensor.copy_(state[name])


def replaced(base: Base, change: Change) -> Base:
    """A copy of ``base`` with other weights, frozen.

    Raises:
        BaseModelError: the weights are of another model.
    """
    shapes = {name: tuple(p.shape) for name, p in base.model.named_parameters()}
    if shapes != {name: tuple(t.shape) for name, t in change.tensors.items()}:
        odd = sorted(shapes.keys() ^ change.tensors.keys()) or sorted(shapes)
        raise BaseModelError(
            f"The weights are not of {base.name}: they differ in {odd[0]}; load the base they were learnt on."
        )
    changed = shared_copy(base)
    _put(changed, {name: t.to(base.device, base.dtype) for name, t in change.tensors.items()})
    changed.model.requires_grad_(False)
    return changed


def _put(
    base: Base, tensors: Mapping[str, Tensor], rounding: torch.dtype | None = None
) -> dict[str, nn.Parameter]:
    """Replace every parameter of a copy, tied ones together; by name, as they now are.

    rounding: the dtype the model reads them in, if that is not their own.
    """
    put = {}
    for name, old in list(base.model.named_parameters()):
        put[name] = nn.Parameter(tensors[name])
        for module, local in _holders(base, old):
            setattr(module, local, put[name])
            if rounding is not None:
                parametrize.register_parametrization(module, local, _Rounded(rounding), unsafe=True)
    return put


def _holders(base: Base, parameter: Tensor) -> list[tuple[nn.Module, str]]:
    """Every (module, attribute) that holds a parameter: two where it is tied."""
    return [
        (module, local)
        for module in base.model.modules()
        for local, held in module.named_parameters(recurse=False)
        if held is parameter
    ]


class _Rounded(nn.Module):
    """Reads a master in the number format the model computes in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def forward(self, master: Tensor) -> Tensor:
        return master.to(self._dtype)
