"""IA3 (Liu et al. 2022): what linear layers give is multiplied by learnt vectors, in a copy of the model.

It knows which layers are rescaled; it does not know rows, losses or files. Each vector begins at one, so the
first step reads with the base itself. No weight is needed for it, so a quantised base may have it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from softprompt.base.copies import Change, shared_copy
from softprompt.base.lowrank import LayerChange, LowRank
from softprompt.base.model import Base
from softprompt.methods.targets import targeted

__all__ = ["Ia3", "rescaled", "rescaling"]

_NAME = "ia3_l"
"""What PEFT calls the vector of a layer."""


class Ia3:
    """A vector for every linear layer of a copy of the base, behind a front of words.

    Args:
        base: the frozen model; not a module of it changes.
        front: ``[P, E]`` the embeddings of the words in front, often none.
        targets: "all-linear", or the ends of the names of the layers.
    """

    def __init__(self, base: Base, front: Tensor, targets: str | list[str]) -> None:
        self._front, self._targets = front, targets
        self._base, self._vectors = _with_vectors(base, targeted(base, targets))

    @property
    def base(self) -> Base:
        """The copy whose layers are rescaled."""
        return self._base

    def front(self) -> Tensor:
        return self._front

    def change(self) -> Change:
        return Change("ia3", {"targets": self._targets}, self.state())

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self._vectors.values())

    def state(self) -> dict[str, Tensor]:
        return {f"{layer}.{_NAME}": vector.detach() for layer, vector in self._vectors.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for layer, vector in self._vectors.items():
                vector.copy_(state[f"{layer}.{_NAME}"])


class Rescaled(nn.Module):
    """A linear layer whose outputs are multiplied by a vector, its bias among them."""

    def __init__(self, inner: nn.Module, vector: nn.Parameter) -> None:
        super().__init__()
        self.inner, self.vector = inner, vector

    @property
    def weight(self) -> Tensor:
        return self.inner.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out]."""
        out: Tensor = self.inner(x)
        return (out * self.vector).to(out.dtype)


def rescaled(base: Base, change: Change) -> Base:
    """A copy of ``base`` with saved vectors at work, frozen; they must fit its layers."""
    changed, vectors = _with_vectors(base, [name.removesuffix(f".{_NAME}") for name in change.tensors])
    with torch.no_grad():
        for layer, vector in vectors.items():
            vector.copy_(change.tensors[f"{layer}.{_NAME}"]).requires_grad_(False)
    return changed


def rescaling(base: Base, change: Change) -> LowRank:
    """Saved vectors as rows can carry them into the base's own pass: changes of rank 0 that rescale.

    They are in the base's number format.
    """
    layers = {}
    for name, vector in change.tensors.items():
        layer = base.model.get_submodule(name.removesuffix(f".{_NAME}"))
        taken = getattr(layer, "in_features", None) or layer.weight.shape[0]  # of GPT-2's, stored transposed
        scale = vector.to(base.device, base.dtype)  # [out]
        down, up = scale.new_empty(0, int(taken)), scale.new_empty(len(scale), 0)
        layers[name.removesuffix(f".{_NAME}")] = LayerChange(down, up, scale, of_bias=True)
    return LowRank(layers)


def _with_vectors(base: Base, layers: Sequence[str]) -> tuple[Base, Mapping[str, nn.Parameter]]:
    """A copy with a fresh fp32 vector at each of the layers, and these by the layers' names."""
    changed = shared_copy(base)
    vectors = {}
    for name in layers:
        parent, _, own = name.rpartition(".")
        inner = changed.model.get_submodule(name)
        count = getattr(inner, "out_features", None) or inner.nf  # of GPT-2's layers, stored transposed
        vectors[name] = nn.Parameter(torch.ones(count, device=base.device))
        setattr(changed.model.get_submodule(parent), own, Rescaled(inner, vectors[name]))
    return changed, vectors
