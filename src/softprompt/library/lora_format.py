"""LoRA adapters in PEFT's format: knows its two files and which layers they are for; adds the words in front.

PEFT keeps an adapter as ``adapter_config.json`` and ``adapter_model.safetensors``, with tensors called
``base_model.model.LAYER.lora_A.weight`` ``[r, in]``, ``lora_B.weight`` ``[out, r]`` and, for DoRA,
``lora_magnitude_vector`` ``[out]``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from softprompt.atomic import write_bytes
from softprompt.base.copies import Change
from softprompt.base.model import Base
from softprompt.errors import ArtifactError, ConfigError
from softprompt.library.changed import (
    ChangedModel,
    front_on,
    front_positions,
    hash_of,
    read_front,
    write_front,
)
from softprompt.library.files import json_object
from softprompt.library.payload import Met, Ride
from softprompt.library.peft_format import (
    CONFIG_FILE,
    CONFIG_LIMIT,
    WEIGHTS_FILE,
    Off,
    PeftConfig,
    config_bytes,
    parse_config,
    weights_path,
)
from softprompt.library.tensor_file import MOST_BYTES, refuse_changed, shapes_of, stream, write_tensors
from softprompt.methods.lora import adapted, low_rank
from softprompt.packages import Need
from softprompt.prefix import Front

__all__ = ["Adapter", "LoraConfigFile", "check", "read", "shortest_targets", "sides_of"]

_NAME = re.compile(
    r"base_model\.model\.([A-Za-z0-9_.]{1,300})\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)"
)
# How PEFT calls a part in its files, and in a model, where every adapter has a name.
_PARTS = {
    "lora_A.weight": "lora_A.default.weight",
    "lora_B.weight": "lora_B.default.weight",
    "lora_magnitude_vector": "lora_magnitude_vector.default.weight",
}

Shapes = Mapping[str, tuple[int, ...]]
_Name = Annotated[str, Field(min_length=1, max_length=300)]
_NONE: dict[str, Any] = {}


class LoraConfigFile(PeftConfig):
    """LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023) and DoRA (Liu et al. 2024) in PEFT's words.

    Whatever else PEFT's configuration can ask for changes what the model computes, so it is refused by name.
    """

    alora_invocation_tokens: Off = None
    """so it acts only behind certain tokens"""
    alpha_pattern: Off = _NONE
    """so its layers are scaled differently"""
    arrow_config: Off = None
    bias: Literal["none", False, None] = "none"
    """so biases of the model were trained too"""
    corda_config: Off = None
    ensure_weight_tying: Off = False
    eva_config: Off = None
    exclude_modules: Off = None
    """so some of its layers are left out by a rule"""
    fan_in_fan_out: Any = False
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] | None = True
    """so it belongs to a base whose weights were changed when it began"""
    kasa_config: Off = None
    layer_replication: Off = None
    """so it repeats layers of the model"""
    layers_pattern: Off = None
    """so only some layers are adapted"""
    layers_to_transform: Off = None
    """so only some layers are adapted"""
    loftq_config: Off = _NONE
    """so it belongs to a base whose weights were changed when it began"""
    lora_alpha: Annotated[int | float, Field(ge=0, le=2**20)] = 8
    """not a number from 0 to 1,048,576"""
    lora_bias: Off = False
    """so its adapters have biases"""
    lora_dropout: Any = 0.0
    lora_ga_config: Off = None
    megatron_config: Off = None
    megatron_core: Literal["megatron.core", False, None] = "megatron.core"
    monteclora_config: Off = None
    qalora_group_size: Literal[16, False, None] = 16
    r: Annotated[int, Field(ge=1, le=2**16)] = 8
    """not a whole number from 1 to 65,536"""
    rank_pattern: Off = _NONE
    """so its layers have different ranks"""
    target_modules: Annotated[list[_Name], Field(min_length=1, max_length=2**16)]
    """not a list of names; a stranger's pattern is not run, so write the layers' names there"""
    target_parameters: Off = None
    """so it adapts parameters outside of linear layers"""
    trainable_token_indices: Off = None
    """so embeddings of the model were trained too"""
    use_bdlora: Off = None
    use_dora: bool = False
    """not true or false"""
    use_qalora: Off = False
    use_rslora: bool = False
    """not true or false"""
    velora_config: Off = None

    @property
    def settings(self) -> dict[str, Any]:
        """What it says as rank, alpha, targets, rslora and dora."""
        return {
            "rank": self.r,
            "alpha": float(self.lora_alpha),
            "targets": sorted(set(self.target_modules)),
            "rslora": self.use_rslora,
            "dora": self.use_dora,
        }


@dataclass(frozen=True, eq=False)
class Adapter(ChangedModel):
    """A learnt adapter, and the words in front of the model that has it.

    Attributes:
        change: settings rank, alpha, targets (ends of the layers' names), rslora and dora; the tensors by
            their names in a model.
        transposed: whether the layers are stored as GPT-2's are; PEFT asks for it.
    """

    transposed: bool = False

    @classmethod
    def of(cls, base: Base, front: Front, change: Change) -> Adapter:
        """What to keep of an adapter that is at work in ``base``."""
        assert isinstance(front, Tensor)
        layers = _layers(change.tensors)
        settings = {**change.settings, "targets": shortest_targets(base, layers, change.settings["targets"])}
        transposed = any(getattr(base.model.get_submodule(name), "fan_in_fan_out", False) for name in layers)
        return cls(Change(change.kind, settings, change.tensors), front, transposed)

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("LoRA",)

    @property
    def kind(self) -> str:
        return "lora"

    def write(self, folder: Path, base_name: str, revision: str | None) -> str:
        """Write PEFT's two files and the front's; see ``Payload``."""
        settings, alpha = self.change.settings, float(self.change.settings["alpha"])
        config = LoraConfigFile(
            base_model_name_or_path=base_name,
            fan_in_fan_out=self.transposed,
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,
            peft_type="LORA",
            r=settings["rank"],
            revision=revision,
            target_modules=sorted(settings["targets"]),
            use_dora=settings["dora"],
            use_rslora=settings["rslora"],
        )
        tensors = {}
        for name, tensor in self.change.tensors.items():
            layer, inside = name.rsplit(".lora_", 1)
            outside = next(part for part, here in _PARTS.items() if here == f"lora_{inside}")
            tensors[f"base_model.model.{layer}.{outside}"] = tensor.to("cpu", torch.float32)
        write_tensors(folder / WEIGHTS_FILE, tensors)
        write_front(folder, self.front)
        write_bytes(folder / CONFIG_FILE, config_bytes(config))
        return hash_of(folder, WEIGHTS_FILE)

    def meet(self, base: Base) -> Met:
        """A copy of ``base`` with the adapter in it; see ``Payload``."""
        layers, front = self._fitted(base)
        exact = Change("lora", {**self.change.settings, "targets": layers}, self.change.tensors)
        try:
            return Met(adapted(base, exact), front, self.change)
        except ConfigError as error:
            raise ArtifactError(
                f"The adapter is for layers of {base.name} that cannot take one here, such as {layers[0]}; "
                "use it with PEFT."
            ) from error

    def ride(self, base: Base) -> Ride | None:
        """What every token carries beside the base's own products; see ``Payload``."""
        _, front = self._fitted(base)
        change = low_rank(base, self.change)
        return None if change is None else Ride(front, change)

    def _fitted(self, base: Base) -> tuple[list[str], Tensor]:
        """The layers it is for and the words in front, once both are known to fit the base."""
        layers = _layers(self.change.tensors)
        _check_layers(base, layers, {name: tuple(t.shape) for name, t in self.change.tensors.items()})
        return layers, front_on(base, self.front)

    def adopted(self, base: Base) -> Adapter:
        """Behind the start token, which PEFT's usual training sets before every text."""
        return self if self.positions else replace(self, front=base.embed(base.start_ids).float())


# Reading -----------------------------------------------------------------------------------------


def read(folder: Path, sha256: str | None = None) -> tuple[Adapter, LoraConfigFile]:
    """The adapter in a folder, and PEFT's configuration of it.

    Args:
        folder: of LoRA, rsLoRA or DoRA for a causal language model.
        sha256: hash the weights must have, in hex, if it is known.

    Raises:
        ArtifactError: a file is missing, damaged, changed, or asks for what cannot be done exactly.
        ResourceError: a file cannot be read.
    """
    config, path, layers = _checked(folder)
    settings = config.settings
    digest = hashlib.sha256()
    tensors = {_in_model(name): tensor for name, tensor in stream(path, digest, torch.float32)}
    front = read_front(folder, digest)
    refuse_changed(path, digest, sha256)
    used = [target for target in settings["targets"] if any(_ends(layer, target) for layer in layers)]
    change = Change("lora", {**settings, "targets": used}, tensors)
    return Adapter(change, front, config.fan_in_fan_out is True), config


def check(folder: Path) -> int:
    """P of an adapter whose files were checked but for the weights themselves; errors as in ``read``."""
    _checked(folder)
    return front_positions(folder)


def _checked(folder: Path) -> tuple[LoraConfigFile, Path, list[str]]:
    """The configuration, the file of its weights and the layers they are for, found to belong together."""
    about = folder / CONFIG_FILE
    config = parse_config(LoraConfigFile, json_object(about, CONFIG_LIMIT), about)
    settings = config.settings
    path = weights_path(folder)
    shapes = shapes_of(path)
    if path.stat().st_size > MOST_BYTES:
        raise ArtifactError(f"{path} is larger than {MOST_BYTES // 2**30} GiB, which no adapter needs.")
    for name in shapes:
        if not _NAME.fullmatch(name):
            raise ArtifactError(
                f"{path} has more than an adapter of linear layers in it, such as the tensor {name[:120]!a}; "
                "use it with PEFT."
            )
    layers = _layers(map(_in_model, shapes))
    _check_parts(path, layers, {_in_model(name): shape for name, shape in shapes.items()}, settings)
    for layer in layers:
        if not any(_ends(layer, target) for target in settings["targets"]):
            raise ArtifactError(
                f"{path} adapts {layer}, which target_modules does not name; the two files do not belong "
                "together."
            )
    return config, path, layers


def _check_parts(path: Path, layers: list[str], shapes: Shapes, settings: Mapping[str, Any]) -> None:
    """Every layer must have the parts, in the shapes, that the configuration asks for."""
    if not layers:
        raise ArtifactError(f"{path} holds no adapter; restore it from a good copy.")
    for layer in layers:
        first, second, magnitude = (shapes.get(f"{layer}.{part}", ()) for part in _PARTS.values())
        rank = settings["rank"]
        pair = len(first) == len(second) == 2 and first[0] == second[1] == rank
        if not pair or magnitude != (second[:1] if settings["dora"] else ()):
            raise ArtifactError(
                f"{path} does not hold what its configuration asks for at {layer} (rank {rank}"
                f"{', DoRA' if settings['dora'] else ''}); the two files do not belong together."
            )


# Names -------------------------------------------------------------------------------------------


def _in_model(name: str) -> str:
    found = _NAME.fullmatch(name)
    assert found is not None
    return f"{found[1]}.{_PARTS[found[2]]}"


def _layers(names: Iterable[str]) -> list[str]:
    """The layers that tensors, by their names in a model, are for."""
    return sorted({name[: name.rindex(".lora_")] for name in names})


def _ends(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")


def shortest_targets(base: Base, layers: list[str], wanted: str | list[str]) -> list[str]:
    """The shortest names by which PEFT finds these layers of ``base`` and no other module."""
    short = wanted if isinstance(wanted, list) else sorted({name.rsplit(".", 1)[-1] for name in layers})
    inside = set(layers)
    for name, _ in base.model.named_modules():
        if name not in inside and any(_ends(name, target) for target in short):
            return layers
    return short


# The base ----------------------------------------------------------------------------------------


def _check_layers(base: Base, layers: list[str], shapes: Shapes) -> None:
    """Hold every shape against the base's layers before anything is made for them."""
    modules = dict(base.model.named_modules())
    for layer in layers:
        sides = sides_of(modules.get(layer))
        first, second = (shapes[f"{layer}.{_PARTS[part]}"] for part in ("lora_A.weight", "lora_B.weight"))
        if (first[1], second[0]) != sides:
            there = f"is {sides[0]} x {sides[1]}" if sides else "is no linear layer or not there"
            raise ArtifactError(
                f"The adapter takes {layer} to be {first[1]} x {second[0]}, which in {base.name} {there}; "
                "load the base it was learnt on."
            )


def sides_of(module: Any) -> tuple[int, int] | None:
    """How many numbers a linear layer takes and gives."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    weight = getattr(module, "weight", None)
    if hasattr(module, "nf") and weight is not None and weight.dim() == 2:  # GPT-2's, stored transposed
        return int(weight.shape[0]), int(weight.shape[1])
    return None
