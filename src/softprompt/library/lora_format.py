"""LoRA adapters in PEFT's format: knows its two files and which layers they are for; adds the words in front.

PEFT keeps an adapter as ``adapter_config.json`` and ``adapter_model.safetensors``, with tensors called
``base_model.model.LAYER.lora_A.weight`` ``[r, in]``, ``lora_B.weight`` ``[out, r]`` and, for DoRA,
``lora_magnitude_vector`` ``[out]``; of an embedding ``lora_embedding_A`` ``[r, V]`` and ``lora_embedding_B``
``[E, r]``. What was learnt whole beside them (biases, a head, some words) stands there under its own name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from softprompt.atomic import write_bytes
from softprompt.base.copies import Change, linear_layers, with_parameters
from softprompt.base.model import Base
from softprompt.errors import ArtifactError, ConfigError
from softprompt.library.changed import (
    ChangedModel,
    front_on,
    front_positions,
    hash_of,
    merged_into,
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

_NAME = re.compile(r"base_model\.model\.([A-Za-z0-9_.]{1,300})")
# How PEFT calls a part in its files, and in a model, where every adapter has a name.
_PARTS = {
    "lora_A.weight": "lora_A.default.weight",
    "lora_B.weight": "lora_B.default.weight",
    "lora_embedding_A": "lora_embedding_A.default",
    "lora_embedding_B": "lora_embedding_B.default",
    "lora_magnitude_vector": "lora_magnitude_vector.default.weight",
    "token_adapter.trainable_tokens_delta": "token_adapter.trainable_tokens_delta.default",
}
_PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
_MAGNITUDE = "lora_magnitude_vector"
_WORDS = "token_adapter.trainable_tokens_delta"
_ADAPTERS = tuple(f".{here}" for part, here in _PARTS.items() if part != _WORDS)
_INSIDE = ".base_layer."
"""Stands in the name of what an adapted layer had before."""
_SAVED_WITH = ("embed_tokens", "lm_head")
"""Layers that PEFT can save as they are beside an adapter, whatever it is for."""

_PLAIN = re.compile(r"(?P<whole>\^)?(\.\*\\\.)?(?P<name>([A-Za-z0-9_]|\\?\.)+)\$?")
"""A pattern that says no more than how a name ends or, with ^, the whole of it."""

Shapes = Mapping[str, tuple[int, ...]]


def _plain_keys(pattern: dict[str, Any]) -> dict[str, Any]:
    if not all(map(_PLAIN.fullmatch, pattern)):
        raise ValueError("holds patterns")
    return pattern


def _of_layers(parameters: list[str]) -> list[str]:
    if not all(name.endswith(".weight") for name in parameters):
        raise ValueError("names others")
    return parameters


_Name = Annotated[str, Field(min_length=1, max_length=300)]
_Rank = Annotated[int, Field(ge=1, le=2**16)]
_Alpha = Annotated[int | float, Field(ge=0, le=2**20)]
_Tokens = Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=2**20)]
_NONE: dict[str, Any] = {}


class LoraConfigFile(PeftConfig):
    """LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023) and DoRA (Liu et al. 2024) in PEFT's words.

    Which layers a rule means (a regular expression, some layers only, exclusions) the tensors tell, so no
    rule is run. Whatever else PEFT's configuration can ask for changes what the model computes, so it is
    refused by name.
    """

    alora_invocation_tokens: Off = None
    """so it acts only behind certain tokens"""
    alpha_pattern: Annotated[dict[_Name, _Alpha], AfterValidator(_plain_keys)] | None = _NONE
    """no table of numbers by names; a stranger's pattern is not run, so write the layers' names there"""
    arrow_config: Off = None
    bias: Literal["none", "all", "lora_only", False, None] = "none"
    corda_config: Off = None
    ensure_weight_tying: Off = False
    """so layers that share their weights share an adapter"""
    eva_config: Off = None
    exclude_modules: Any = None
    fan_in_fan_out: Any = False
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] | None = True
    """so it belongs to a base whose weights were changed when it began"""
    kasa_config: Off = None
    layer_replication: Off = None
    """so it repeats layers of the model"""
    layers_pattern: Any = None
    layers_to_transform: Any = None
    loftq_config: Off = _NONE
    """so it belongs to a base whose weights were changed when it began"""
    lora_alpha: _Alpha = 8
    """not a number from 0 to 1,048,576"""
    lora_bias: Off = False
    """so its adapters have biases"""
    lora_dropout: Any = 0.0
    lora_ga_config: Off = None
    megatron_config: Off = None
    megatron_core: Literal["megatron.core", False, None] = "megatron.core"
    modules_to_save: Annotated[list[_Name], Field(max_length=2**12)] | None = None
    """not a list of names"""
    monteclora_config: Off = None
    qalora_group_size: Literal[16, False, None] = 16
    r: _Rank = 8
    """not a whole number from 1 to 65,536"""
    rank_pattern: dict[str, _Rank] | None = _NONE
    """not a table of whole numbers from 1 to 65,536 by names"""
    target_modules: (
        Annotated[list[_Name], Field(min_length=1, max_length=2**16)] | Annotated[str, Field(min_length=1)]
    )
    """not a list of names or a pattern"""
    target_parameters: Annotated[list[_Name], AfterValidator(_of_layers)] | None = None
    """so it adapts parameters outside of linear layers"""
    trainable_token_indices: _Tokens | dict[_Name, _Tokens] | None = None
    """not a list of tokens, or one for each of some embeddings"""
    use_bdlora: Off = None
    use_dora: bool = False
    """not true or false"""
    use_qalora: Off = False
    use_rslora: bool = False
    """not true or false"""
    velora_config: Off = None

    @property
    def targets(self) -> list[str] | None:
        """The ends of the layers' names; None where a rule says which are meant."""
        by_rule = self.exclude_modules or self.layers_to_transform is not None
        if by_rule or isinstance(self.target_modules, str):
            return None
        weights = (name.removesuffix(".weight") for name in self.target_parameters or ())
        return sorted({*self.target_modules, *weights})

    def settings(self, ranks: Mapping[str, int]) -> dict[str, Any]:
        """What it says of layers with these ranks.

        That is rank, alpha, targets, rslora and dora; where they are asked for also ``ranks`` and ``alphas``
        of layers that have others, and ``bias``, ``modules_to_save`` and ``tokens``, which were learnt whole.
        """
        alpha, targets = float(self.lora_alpha), self.targets
        if targets is not None:
            targets = [target for target in targets if any(_ends(layer, target) for layer in ranks)]
        more = {
            "ranks": {layer: rank for layer, rank in ranks.items() if rank != self.r},
            "alphas": {
                x: other for x, other in _alphas(self.alpha_pattern or {}, ranks).items() if other != alpha
            },
            "bias": None if self.bias == "none" else self.bias,
            "modules_to_save": self.modules_to_save,
            "tokens": self.trainable_token_indices,
        }
        return {
            "rank": self.r,
            "alpha": alpha,
            "targets": sorted(ranks) if targets is None else targets,
            "rslora": self.use_rslora,
            "dora": self.use_dora,
        } | {name: value for name, value in more.items() if value}


@dataclass(frozen=True, eq=False)
class Adapter(ChangedModel):
    """A learnt adapter, and the words in front of the model that has it.

    Attributes:
        change: its settings, as ``LoraConfigFile.settings`` gives them; tensors by their names in a model.
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

    @property
    def opened_by(self) -> str:
        return "peft"

    def write(self, folder: Path, base_name: str, revision: str | None) -> str:
        """Write PEFT's two files and the front's; see ``Payload``."""
        settings, alpha = self.change.settings, float(self.change.settings["alpha"])
        config = LoraConfigFile(
            alpha_pattern=settings.get("alphas", {}),
            base_model_name_or_path=base_name,
            bias=settings.get("bias", "none"),
            fan_in_fan_out=self.transposed,
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,
            modules_to_save=settings.get("modules_to_save"),
            peft_type="LORA",
            r=settings["rank"],
            rank_pattern=settings.get("ranks", {}),
            revision=revision,
            target_modules=sorted(settings["targets"]),
            trainable_token_indices=settings.get("tokens"),
            use_dora=settings["dora"],
            use_rslora=settings["rslora"],
        )
        tensors, layers = self.change.tensors, set(_layers(self.change.tensors))
        kept = {_in_file(name, layers): tensor.to("cpu", torch.float32) for name, tensor in tensors.items()}
        write_tensors(folder / WEIGHTS_FILE, kept)
        write_front(folder, self.front)
        write_bytes(folder / CONFIG_FILE, config_bytes(config))
        return hash_of(folder, WEIGHTS_FILE)

    def meet(self, base: Base) -> Met:
        """A copy of ``base`` with the adapter in it; see ``Payload``."""
        front = self._fitted(base)
        changed, rest = self._beside(base)
        layers = _layers(rest.tensors)
        if layers:
            exact = Change("lora", {**rest.settings, "targets": layers}, rest.tensors)
            try:
                changed = adapted(changed, exact)
            except ConfigError as error:
                raise ArtifactError(
                    f"The adapter is for layers of {base.name} that cannot take one here, such as "
                    f"{layers[0]}; use it with PEFT."
                ) from error
        return Met(changed, front, self.change)

    def ride(self, base: Base) -> Ride | None:
        """What every token carries beside the base's own products; see ``Payload``."""
        front = self._fitted(base)
        changed, rest = self._beside(base)
        change = low_rank(base, rest) if changed is base else None
        return None if change is None else Ride(front, change)

    def merged(self, base: Base) -> Base:
        """A copy of ``base`` with the adapter in its weights; see ``Payload``."""
        self._fitted(base)
        changed, rest = self._beside(base)
        return merged_into(changed, low_rank(changed, rest))

    def adopted(self, base: Base) -> Adapter:
        """Behind the start token, which PEFT's usual training sets before every text."""
        if self.positions:
            return self
        self._fitted(base)
        return replace(self, front=self._beside(base)[0].embed(base.start_ids).float())

    def _beside(self, base: Base) -> tuple[Base, Change]:
        """The base with all of it that no row could carry, itself if that is nothing; and the rest."""
        settings, carried = self.change.settings, set(linear_layers(base))
        own = {name: t for name, t in self.change.tensors.items() if name.endswith(_ADAPTERS)}
        rest = {name: t for name, t in own.items() if _layer(name) in carried}
        apart = {name: t for name, t in own.items() if name not in rest}
        whole = self._whole(base)
        changed = with_parameters(base, whole) if whole else base
        if apart:  # of embeddings and heads
            changed = merged_into(changed, low_rank(changed, Change("lora", settings, apart)))
        return changed, Change("lora", settings, rest)

    def _whole(self, base: Base) -> dict[str, Tensor]:
        """Parameters that were learnt as they are, those among them of which only some words were."""
        held = dict(base.model.named_parameters(remove_duplicate=False))
        found = {name: t for name, t in self.change.tensors.items() if name in held}
        for name, rows in self.change.tensors.items():
            if not name.endswith(_PARTS[_WORDS]):
                continue
            layer = _layer(name)
            places = torch.tensor(_tokens(self.change.settings["tokens"], layer))
            weight: Tensor = held[f"{layer}.weight"]
            made = found.get(f"{layer}.weight", weight).cpu().float().index_copy(0, places, rows)
            found |= {other: made for other, tensor in held.items() if tensor is weight}
        return found

    def _fitted(self, base: Base) -> Tensor:
        """The words in front, once they and every tensor are known to fit the base."""
        _check_fit(
            base, {name: tuple(t.shape) for name, t in self.change.tensors.items()}, self.change.settings
        )
        return front_on(base, self.front)


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
    config, path, ranks = _checked(folder)
    digest = hashlib.sha256()
    tensors = {_in_model(name): tensor for name, tensor in stream(path, digest, torch.float32)}
    front = read_front(folder, digest)
    refuse_changed(path, digest, sha256)
    change = Change("lora", config.settings(ranks), tensors)
    return Adapter(change, front, config.fan_in_fan_out is True), config


def check(folder: Path) -> int:
    """P of an adapter whose files were checked but for the weights themselves; errors as in ``read``."""
    _checked(folder)
    return front_positions(folder)


def _checked(folder: Path) -> tuple[LoraConfigFile, Path, dict[str, int]]:
    """The configuration, the file of its weights and the layers' ranks, found to belong together."""
    about = folder / CONFIG_FILE
    config = parse_config(LoraConfigFile, json_object(about, CONFIG_LIMIT), about)
    path = weights_path(folder)
    shapes = shapes_of(path)
    if path.stat().st_size > MOST_BYTES:
        raise ArtifactError(f"{path} is larger than {MOST_BYTES // 2**30} GiB, which no adapter needs.")
    inside = {_in_model(name): shape for name, shape in shapes.items() if _NAME.fullmatch(name)}
    layers = _layers(inside)
    for name in shapes:
        if not _NAME.fullmatch(name) or not _asked_for(name, set(layers), config):
            raise ArtifactError(
                f"{path} has more in it than its configuration says, such as the tensor {name[:120]!a}; "
                "use it with PEFT."
            )
    if not layers:
        raise ArtifactError(f"{path} holds no adapter; restore it from a good copy.")
    for layer in layers:
        if config.targets is not None and not any(_ends(layer, target) for target in config.targets):
            raise ArtifactError(
                f"{path} adapts {layer}, which target_modules does not name; the two files do not belong "
                "together."
            )
    return config, path, {layer: _rank(path, layer, inside, config) for layer in layers}


def _asked_for(name: str, layers: set[str], config: LoraConfigFile) -> bool:
    """Whether a tensor of the file, by its name there, is one that the configuration accounts for."""
    inside = _in_model(name)
    layer = _layer(inside)
    if inside.endswith(_PARTS[_WORDS]):
        return bool(_tokens(config.trainable_token_indices, layer))
    if layer in layers and any(name.endswith(f".{part}") for part in _PARTS):
        return True
    if _INSIDE in name or layer in layers:
        there = _INSIDE in name and layer in layers
        return there and (inside.endswith(".weight") or config.bias in ("all", "lora_only"))
    if inside.endswith(".bias") and config.bias == "all":
        return True
    if any(_ends(layer, saved) for saved in _SAVED_WITH):
        return True
    parts = layer.split(".")  # PEFT takes any module, and all in it, whose name ends so, within a word too
    holders = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(holder.endswith(tuple(config.modules_to_save or ())) for holder in holders)


def _rank(path: Path, layer: str, shapes: Shapes, config: LoraConfigFile) -> int:
    """The rank of a layer, which must have the parts, in the shapes, that the configuration asks for."""
    embeds = any(f"{layer}.{_PARTS[part]}" in shapes for part in _PAIRS[True])
    first, second = (shapes.get(f"{layer}.{_PARTS[part]}", ()) for part in _PAIRS[embeds])
    magnitude = shapes.get(f"{layer}.{_PARTS[_MAGNITUDE]}", ())
    fits = len(first) == len(second) == 2 and first[0] == second[1]
    ranks = {config.r, *(config.rank_pattern or {}).values()}
    if embeds and config.use_dora:
        raise ArtifactError(
            f"{path} adapts the embeddings {layer} by DoRA, which is not done here; use it with PEFT."
        )
    if not fits or first[0] not in ranks or magnitude != (second[:1] if config.use_dora else ()):
        raise ArtifactError(
            f"{path} does not hold what its configuration asks for at {layer} (rank "
            f"{' or '.join(map(str, sorted(ranks)))}{', DoRA' if config.use_dora else ''}); the two files do "
            "not belong together."
        )
    return first[0]


# Names -------------------------------------------------------------------------------------------


def _in_model(name: str) -> str:
    """What a tensor of the file is called in a model."""
    inside = name.removeprefix("base_model.model.")
    for part, here in _PARTS.items():
        if inside.endswith(f".{part}"):
            return f"{inside.removesuffix(part)}{here}"
    return inside.replace(_INSIDE, ".")


def _in_file(name: str, layers: set[str]) -> str:
    """The inverse of ``_in_model``, given the layers that have adapters."""
    for part, here in _PARTS.items():
        if name.endswith(f".{here}"):
            return f"base_model.model.{name.removesuffix(here)}{part}"
    layer, _, own = name.rpartition(".")
    return f"base_model.model.{layer}{_INSIDE if layer in layers else '.'}{own}"


def _layer(name: str) -> str:
    """Whose tensor it is, by its name in a model."""
    for here in _PARTS.values():
        if name.endswith(f".{here}"):
            return name.removesuffix(f".{here}")
    return name.rpartition(".")[0]


def _layers(names: Iterable[str]) -> list[str]:
    """The layers that have adapters, by the names of tensors in a model."""
    return sorted({_layer(name) for name in names if name.endswith(_ADAPTERS)})


def _tokens(asked: list[int] | Mapping[str, list[int]] | None, layer: str) -> list[int]:
    """Which words of an embedding were learnt."""
    if isinstance(asked, Mapping):
        return next((tokens for name, tokens in asked.items() if _ends(layer, name)), [])
    return asked or []


def _alphas(pattern: Mapping[str, float], layers: Iterable[str]) -> dict[str, float]:
    """The alpha of every layer that a key of the pattern names; the first such key counts."""
    places: dict[tuple[bool, str], tuple[int, float]] = {}
    for place, (key, alpha) in enumerate(pattern.items()):
        said = _PLAIN.fullmatch(key)
        assert said is not None
        name = said["name"].replace("\\", "")
        places.setdefault((said["whole"] is not None, name), (place, float(alpha)))
    found = {}
    for layer in layers:
        parts = layer.split(".")
        keys = [(True, layer), *((False, ".".join(parts[start:])) for start in range(len(parts)))]
        if named := [places[key] for key in keys if key in places]:
            found[layer] = min(named)[1]
    return found


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


def _check_fit(base: Base, shapes: Shapes, settings: Mapping[str, Any]) -> None:
    """Hold every shape against the base's layers before anything is made for them."""
    modules = dict(base.model.named_modules())
    held = dict(base.model.named_parameters(remove_duplicate=False))
    for layer in _layers(shapes):
        module, embeds = modules.get(layer), f"{layer}.{_PARTS[_PAIRS[True][0]]}" in shapes
        first, second = (shapes[f"{layer}.{_PARTS[part]}"] for part in _PAIRS[embeds])
        sides = sides_of(module)
        if embeds:
            sides = (
                (module.num_embeddings, module.embedding_dim) if isinstance(module, nn.Embedding) else None
            )
        if (first[1], second[0]) != sides:
            there = f"is {sides[0]} x {sides[1]}" if sides else "is no linear layer or not there"
            raise ArtifactError(
                f"The adapter takes {layer} to be {first[1]} x {second[0]}, which in {base.name} {there}; "
                "load the base it was learnt on."
            )
    for name, shape in shapes.items():
        if name.endswith(_ADAPTERS):
            continue
        own = name
        if name.endswith(_PARTS[_WORDS]):
            own, tokens = f"{_layer(name)}.weight", _tokens(settings["tokens"], _layer(name))
            rows = shape[:1] == (len(tokens),) and own in held and max(tokens) < len(held[own])
            shape = (*held[own].shape[:1], *shape[1:]) if rows else shape
        here = tuple(held[own].shape) if own in held else ()
        if shape != here:
            raise ArtifactError(
                f"The adapter brings {own} in the shape {list(shape)}, which in {base.name} "
                f"{f'has {list(here)}' if here else 'is not there'}; load the base it was learnt on."
            )


def sides_of(module: Any) -> tuple[int, int] | None:
    """How many numbers a linear layer takes and gives."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    weight = getattr(module, "weight", None)
    if hasattr(module, "nf") and weight is not None and weight.dim() == 2:  # GPT-2's, stored transposed
        return int(weight.shape[0]), int(weight.shape[1])
    return None
