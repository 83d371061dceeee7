"""LoRA (Hu et al. 2021) through PEFT: low-rank adapters in a copy of the model over the same weights.

The one place that calls PEFT. It knows which layers get an adapter; it does not know rows, losses or
files. On a quantised base the same adapters are QLoRA (Dettmers et al. 2023).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.base.copies import Change, in_parts, shared_copy
from softprompt.base.lowrank import LayerChange, LowRank, plain_weight
from softprompt.base.model import Base
from softprompt.checkpoints.quantise import quiet_bitsandbytes
from softprompt.errors import BaseModelError, ConfigError
from softprompt.methods.targets import targeted
from softprompt.packages import require

__all__ = ["Lora", "adapted", "low_rank"]


class Lora:
    """Adapters in a copy of the base, behind a front of words.

    Args:
        base: the frozen model; not a module of it changes.
        front: ``[P, E]`` the embeddings of the words in front, often none.
        settings: rank, alpha, targets, rslora, dora; ``ranks`` and ``alphas`` of layers that have others.
        seed: draws the adapters' first halves; their second halves start at zero.
    """

    def __init__(self, base: Base, front: Tensor, settings: Mapping[str, Any], seed: int) -> None:
        self._front = front
        self._settings = dict(settings)
        self._base, self._tensors = _fresh(base, settings, seed)
        found = _adapted_layers(self._tensors)
        self.left_out = [layer for layer in targeted(base, settings["targets"]) if layer not in found]
        """Linear layers that were asked for and can take no adapter."""

    @property
    def base(self) -> Base:
        """The copy with the adapters in it."""
        return self._base

    def front(self) -> Tensor:
        return self._front

    def change(self) -> Change:
        return Change("lora", self._settings, self.state())

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self._tensors.values())

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self._tensors.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(state[name])


def adapted(base: Base, change: Change) -> Base:
    """A copy of ``base`` with saved adapters in it, frozen.

    Raises:
        BaseModelError: the adapters are for another model's layers.
    """
    changed, tensors = _with_adapters(base, change.settings, seed=0)
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if shapes != {name: tuple(t.shape) for name, t in change.tensors.items()}:
        odd = sorted(shapes.keys() ^ change.tensors.keys()) or sorted(shapes)
        raise BaseModelError(
            f"The adapter does not fit {base.name}: they differ in {odd[0]}; load the base it was learnt on."
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(change.tensors[name]).requires_grad_(False)
    return changed


def low_rank(base: Base, change: Change) -> LowRank | None:
    """Saved adapters as rows can carry them into the base's own pass, among rows that carry others.

    None where that takes what the base does not keep: DoRA rescales by the norm of the full weight, which a
    quantised layer has not. The factors are in the base's number format.
    """
    settings, tensors = change.settings, change.tensors
    layers = {}
    for name in sorted(_adapted_layers(tensors)):
        first, second = (f"{name}.{part}" for part in _pair(name, tensors))
        down = tensors[first].to(base.device)
        alpha = settings.get("alphas", {}).get(name, settings["alpha"])
        factor = alpha / len(down) ** (0.5 if settings["rslora"] else 1.0)
        up = factor * tensors[second].to(base.device)
        scale = None
        if settings["dora"]:
            weight = plain_weight(base.model.get_submodule(name))
            if weight is None:
                return None
            magnitude = tensors[f"{name}.lora_magnitude_vector.default.weight"].to(base.device)
            scale = (magnitude / (weight.float() + up @ down).norm(dim=1)).to(base.dtype)
        layers[name] = LayerChange(down.to(base.dtype), up.to(base.dtype), scale)
    return LowRank(layers)


def _pair(layer: str, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """What PEFT calls the factors ``[r, in]`` and ``[out, r]`` of a layer; those of embeddings otherwise."""
    if f"{layer}.lora_embedding_A.default" in tensors:
        return "lora_embedding_A.default", "lora_embedding_B.default"
    return "lora_A.default.weight", "lora_B.default.weight"


def _fresh(base: Base, settings: Mapping[str, Any], seed: int) -> tuple[Base, dict[str, nn.Parameter]]:
    """Adapters to learn in layers that PEFT finds again in a file: of all linear ones no others get any."""
    changed, tensors = _with_adapters(base, settings, seed)
    found = _adapted_layers(tensors)
    lost = _lost_in_peft(changed, found)
    if not lost:
        return changed, tensors
    left = [layer for layer in targeted(base, settings["targets"]) if layer in found - lost]
    if not left or settings["targets"] != "all-linear":
        raise ConfigError(
            f"PEFT takes {min(lost)} of {base.name} for a name of older checkpoints and would not find it "
            "again in what is saved; leave its kind out of method.targets."
        )
    return _injected(base, settings, left, seed)


def _lost_in_peft(changed: Base, layers: set[str]) -> set[str]:
    """Those of the layers whose adapters PEFT looks for elsewhere once it has read them from a file.

    It does to their names what transformers does to those of checkpoints, and a rule for an older name may
    fit today's too: of Laguna ``mlp.shared_expert.``, in which the last dot is any letter.
    """
    from peft.utils.transformers_weight_conversion import (
        convert_peft_adapter_state_dict_for_transformers as as_read,
    )

    owners = {f"base_model.model.{n}.{half}.weight": n for n in layers for half in ("lora_A", "lora_B")}
    config = changed.model.peft_config["default"]
    read = as_read(changed.model, config, dict.fromkeys(owners, torch.ones(1, 1)))
    return {owners[name] for name in owners.keys() - read.keys()}


def _with_adapters(
    base: Base, settings: Mapping[str, Any], seed: int
) -> tuple[Base, dict[str, nn.Parameter]]:
    """A copy with fresh fp32 adapters, and these by name, in the model's order.

    PEFT takes some names for those of experts in one tensor (in DeepSeek-V3 the gate_proj of dense layers and
    shared experts) and adapts those, which no file of it holds; such layers stay as they are. So do, of all
    linear ones, those of a kind that it refuses, as kernels of state spaces take their weights past them.
    """
    wanted = targeted(base, settings["targets"])
    try:
        changed, tensors = _injected(base, settings, wanted, seed)
    except ConfigError:
        if settings["targets"] != "all-linear" or not (wanted := _taken(base, settings, wanted)):
            raise
        changed, tensors = _injected(base, settings, wanted, seed)
    found = _adapted_layers(tensors)
    if found == set(wanted):
        return changed, tensors
    left = [layer for layer in wanted if layer in found]
    if left and settings["targets"] == "all-linear":
        changed, tensors = _injected(base, settings, left, seed)
    if _adapted_layers(tensors) != set(left) or settings["targets"] != "all-linear":
        odd = next((layer for layer in wanted if layer not in found), wanted[0])
        raise ConfigError(
            f"PEFT takes {odd} of {base.name} for a part of experts in one tensor, which could not be saved "
            "and read again; leave its kind out of method.targets."
        )
    return changed, tensors


def _taken(base: Base, settings: Mapping[str, Any], layers: Sequence[str]) -> list[str]:
    """The layers of those kinds that PEFT takes, each tried by itself."""
    refused = set[str]()
    for kind in {name.rsplit(".", 1)[-1] for name in layers}:
        try:
            _injected(base, settings, [name for name in layers if name.rsplit(".", 1)[-1] == kind], seed=0)
        except ConfigError:
            refused.add(kind)
    return [name for name in layers if name.rsplit(".", 1)[-1] not in refused]


def _adapted_layers(tensors: Mapping[str, Tensor]) -> set[str]:
    return {name[: name.rindex(".lora_")] for name in tensors}


def _injected(
    base: Base, settings: Mapping[str, Any], layers: Sequence[str], seed: int
) -> tuple[Base, dict[str, nn.Parameter]]:
    if in_parts(base):
        raise ConfigError(
            f"Not all of {base.name} lies on its device, and an adapter takes the layers it changes there; "
            "learn a prompt on it, or take a device that holds it."
        )
    peft = _peft()
    changed = shared_copy(base)
    wanted = peft.LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        target_modules=list(layers),
        rank_pattern={re.escape(layer): rank for layer, rank in settings.get("ranks", {}).items()},
        alpha_pattern={re.escape(layer): alpha for layer, alpha in settings.get("alphas", {}).items()},
        use_rslora=settings["rslora"],
        use_dora=settings["dora"],
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Convolution-shaped linears (GPT-2) are stored transposed; PEFT says that it takes note of it.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        # Said of experts that it took layers for.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern")
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(wanted, changed.model)
        except ValueError as error:
            raise ConfigError(
                f"{base.name} cannot take these adapters ({str(error).splitlines()[0][:200]}); "
                "change method.targets."
            ) from error
    changed.model.eval().requires_grad_(False)
    tensors = {}
    for name, parameter in changed.model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            tensors[name] = parameter.requires_grad_()
    return changed, tensors


def _peft() -> Any:
    require("LoRA")
    quiet_bitsandbytes()  # peft imports it where it is installed
    import peft

    return peft
