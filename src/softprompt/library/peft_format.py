"""PEFT's file format for prompts, and what its formats share: needs no PEFT and knows no cards.

PEFT keeps every prompt as ``adapter_config.json`` and, in ``adapter_model.safetensors``, one fp32 tensor
``prompt_embeddings``: ``[P, E]`` for a soft prompt; ``[P, L * 2 * K * D]`` for a KV prefix, each row in the
order L0-K, L0-V, L1-K, ..., each of them ``[K, D]``, keys as they stand in the cache (already rotated).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from softprompt.atomic import write_bytes
from softprompt.base.model import Base
from softprompt.config_io import nearest, shown
from softprompt.errors import ArtifactError
from softprompt.library.files import json_object
from softprompt.library.payload import Met, Ride
from softprompt.library.tensor_file import (
    MOST_BYTES,
    add_file,
    check_file,
    read_tensor,
    refuse_changed,
    write_tensors,
)
from softprompt.packages import Need
from softprompt.prefix import Front, Prefix

__all__ = [
    "CONFIG_FILE",
    "CONFIG_LIMIT",
    "MOST_POSITIONS",
    "WEIGHTS_FILE",
    "Geometry",
    "Learnt",
    "Off",
    "PeftConfig",
    "check",
    "config_bytes",
    "from_front",
    "has_place_for",
    "parse_config",
    "read",
    "to_front",
    "weights_path",
    "write",
]

Kind = Literal["prompt-tuning", "prefix-tuning"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_LIMIT = 2**20
MOST_POSITIONS = 2**16
_PICKLE_FILE = "adapter_model.bin"
_TENSOR = "prompt_embeddings"
_TEMPLATES: dict[Kind, str] = {"prompt-tuning": "{{soft:{}}}", "prefix-tuning": ""}

# PEFT's configurations ---------------------------------------------------------------------------


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ({}, [])


def _refuse_on(value: Any) -> Any:
    if not _is_off(value):
        raise ValueError("is asked for")
    return value


Off = Annotated[Any, AfterValidator(_refuse_on)]
"""A field that asks for something that is not done here, unless it is null, false or empty."""


class PeftConfig(BaseModel):
    """``adapter_config.json`` as PEFT writes it; values are the defaults of PEFT 0.21.2.

    The text below a field ends the sentence about a value that cannot be used: "FIELD is VALUE, ...".
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, use_attribute_docstrings=True)

    auto_mapping: Any = None
    base_model_name_or_path: str | None = None
    """not text"""
    inference_mode: Any = True
    modules_to_save: Off = None
    """so a part of the model was trained too"""
    peft_type: str
    peft_version: Any = "0.21.2"
    revision: str | None = None
    """not text"""
    task_type: Literal["CAUSAL_LM"] | None = "CAUSAL_LM"
    """but only CAUSAL_LM can be read"""


C = TypeVar("C", bound=PeftConfig)

_Size = Annotated[int, Field(ge=1, le=2**20)]


class _PromptConfig(PeftConfig):
    """What PEFT notes of every prompt."""

    kind: ClassVar[Kind] = "prompt-tuning"
    num_attention_heads: _Size
    """not a whole number from 1 to 1,048,576"""
    num_layers: _Size
    """not a whole number from 1 to 1,048,576"""
    num_transformer_submodules: Literal[1]
    """but only 1 can be read, for a model that is a decoder and nothing else"""
    num_virtual_tokens: Annotated[int, Field(ge=0, le=2**20)]
    """not a whole number from 0 to 1,048,576"""
    task_type: Literal["CAUSAL_LM"]
    """but only CAUSAL_LM can be read"""
    token_dim: _Size
    """not a whole number from 1 to 1,048,576"""


class _PromptTuningConfig(_PromptConfig):
    prompt_tuning_init: Any = "RANDOM"
    prompt_tuning_init_text: Any = None
    tokenizer_kwargs: Any = None
    tokenizer_name_or_path: Any = None


class _PTuningConfig(_PromptConfig):
    """P-tuning: only what its encoder made is saved, which is a soft prompt."""

    encoder_dropout: Any = None
    encoder_hidden_size: Any = None
    encoder_num_layers: Any = None
    encoder_reparameterization_type: Any = None


class _PrefixTuningConfig(_PromptConfig):
    kind: ClassVar[Kind] = "prefix-tuning"
    encoder_hidden_size: Any = None
    init_weights: Any = None
    prefix_projection: Any = False


class _CartridgeConfig(_PromptConfig):
    """A KV prefix that PEFT trains as it is; of the same tensor as prefix tuning."""

    kind: ClassVar[Kind] = "prefix-tuning"
    num_frozen_tokens: Annotated[int, Field(ge=0, le=2**20)] = 1
    """not a whole number from 0 to 1,048,576"""


_BY_TYPE: dict[str, type[_PromptConfig]] = {
    "CARTRIDGE": _CartridgeConfig,
    "PROMPT_TUNING": _PromptTuningConfig,
    "P_TUNING": _PTuningConfig,
    "PREFIX_TUNING": _PrefixTuningConfig,
}


def parse_config(schema: type[C], values: dict[str, Any], path: Path) -> C:
    """The configuration in ``path``, its values checked; fields of a later PEFT may be there if off.

    Raises:
        ArtifactError: a field is missing, unknown, malformed, or asks for what is not done here.
    """
    for name, value in values.items():
        if name not in schema.model_fields and not _is_off(value):
            near = nearest(name, schema.model_fields)
            hint = f"did you mean {near}?" if near else "a newer PEFT may have written it."
            raise ArtifactError(f"{path}: unknown field {shown(name)} with the value {shown(value)}; {hint}")
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if first["type"] == "missing":
        raise ArtifactError(f"{path}: the field {name} is missing; save it with PEFT again.")
    why = schema.model_fields[name].description or "which is more than is done here"
    cure = "restore it from a good copy" if why.startswith("not ") else "use it with PEFT"
    raise ArtifactError(f"{path}: {name} is {shown(values[name])}, {why}; {cure}.")


def config_bytes(config: PeftConfig) -> bytes:
    """The content of the file, its fields in PEFT's order."""
    return json.dumps(dict(sorted(config.model_dump().items())), indent=2).encode()


# A prompt ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """What PEFT notes of a base, under PEFT's names.

    For a KV prefix the heads are the K key/value heads and ``token_dim`` is K * D; for a soft prompt
    they are the query heads and E.
    """

    num_layers: int
    num_attention_heads: int
    token_dim: int


@dataclass(frozen=True, eq=False)
class Learnt:
    """What a file holds: one tensor, and how to read it.

    Attributes:
        tensor: fp32, ``[P, E]`` for a soft prompt, ``[P, L * 2 * K * D]`` for a KV prefix.
        kind: which of the two.
        geometry: of the base it belongs to.
        frozen: where it is to be PEFT's CARTRIDGE, how many of its first positions stay as they are there;
            None for PEFT's prefix tuning, whose tensor is the same.
    """

    tensor: Tensor = field(repr=False)
    kind: Kind
    geometry: Geometry
    frozen: int | None = None

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    @property
    def opened_by(self) -> str:
        return "peft"

    @property
    def positions(self) -> int:
        """P."""
        return len(self.tensor)

    @property
    def numbers(self) -> int:
        return self.tensor.numel()

    @property
    def front_template(self) -> str:
        return _TEMPLATES[self.kind].format(self.positions)

    def write(self, folder: Path, base_name: str, revision: str | None) -> str:
        """Write both files into ``folder``; see ``Payload``."""
        return write(folder, self, base_name, revision)

    def meet(self, base: Base) -> Met:
        """The base itself, behind what was learnt; see ``Payload``."""
        return Met(base, to_front(self, base), None)

    def ride(self, base: Base) -> Ride:
        """Nothing but what stands in front; see ``Payload``."""
        return Ride(to_front(self, base), None)

    def merged(self, base: Base) -> Base:
        """Refused: it stands in front of a text; see ``Payload``."""
        raise ArtifactError(
            "A prompt stands in front of a text and changes no weight of the model, so there is nothing to "
            "merge; export it as it is."
        )

    def adopted(self, base: Base) -> Learnt:
        """Itself: what stands in front is all there is."""
        return self


# Writing -----------------------------------------------------------------------------------------


def write(folder: Path, learnt: Learnt, base_name: str, revision: str | None = None) -> str:
    """Write both files into ``folder``; returns the SHA-256 of the weights file in hex.

    Raises:
        ArtifactError: some numbers are not finite, or there are more than can be read again.
        ResourceError: the disk refuses.
    """
    bad = int((~torch.isfinite(learnt.tensor)).sum())
    if bad:
        raise ArtifactError(f"The prompt has {bad} numbers that are not finite; train it again.")
    own: dict[str, Any] = {"peft_type": "PROMPT_TUNING"}
    if learnt.kind == "prefix-tuning":
        own = {"peft_type": "PREFIX_TUNING", "encoder_hidden_size": learnt.geometry.token_dim}
    if learnt.frozen is not None:
        own = {"peft_type": "CARTRIDGE", "num_frozen_tokens": learnt.frozen}
    config = _BY_TYPE[own["peft_type"]](
        **own,
        **asdict(learnt.geometry),
        base_model_name_or_path=base_name,
        num_transformer_submodules=1,
        num_virtual_tokens=learnt.positions,
        revision=revision,
        task_type="CAUSAL_LM",
    )
    assert tuple(learnt.tensor.shape) == _shape_of(folder / CONFIG_FILE, config)
    write_bytes(folder / CONFIG_FILE, config_bytes(config))
    write_tensors(folder / WEIGHTS_FILE, {_TENSOR: learnt.tensor.detach().to("cpu", torch.float32)})
    digest = hashlib.sha256()
    add_file(folder / WEIGHTS_FILE, digest)
    return digest.hexdigest()


# Reading -----------------------------------------------------------------------------------------


def read(folder: Path, sha256: str | None = None) -> tuple[Learnt, PeftConfig]:
    """What a PEFT folder holds, and its configuration.

    Args:
        folder: of prompt tuning, P-tuning or prefix tuning for a causal language model.
        sha256: hash the weights file must have, in hex, if it is known.

    Raises:
        ArtifactError: a file is missing, damaged, changed, or no prompt.
        ResourceError: a file cannot be read.
    """
    config, shape = _checked(folder)
    path, digest = weights_path(folder), hashlib.sha256()
    tensor = read_tensor(path, _TENSOR, shape, digest)
    refuse_changed(path, digest, sha256)
    geometry = Geometry(config.num_layers, config.num_attention_heads, config.token_dim)
    frozen = config.num_frozen_tokens if isinstance(config, _CartridgeConfig) else None
    return Learnt(tensor, config.kind, geometry, frozen), config


def check(folder: Path) -> int:
    """P of a prompt whose files were checked but for the weights themselves; errors as in ``read``."""
    config, shape = _checked(folder)
    check_file(weights_path(folder), _TENSOR, shape)
    return config.num_virtual_tokens


def weights_path(folder: Path) -> Path:
    """The weights file of a PEFT folder, which may be missing; a pickle in its place is refused."""
    if not (folder / WEIGHTS_FILE).is_file() and (folder / _PICKLE_FILE).is_file():
        raise ArtifactError(
            f"{folder / _PICKLE_FILE} is a pickle, which can run any code when it is opened; load it in PEFT "
            "where you trust it and write it anew with save_pretrained(folder, safe_serialization=True)."
        )
    return folder / WEIGHTS_FILE


def _checked(folder: Path) -> tuple[_PromptConfig, tuple[int, int]]:
    """The configuration and the shape of the tensor that it asks for."""
    path = folder / CONFIG_FILE
    values = json_object(path, CONFIG_LIMIT)
    kind = values.get("peft_type")
    if kind is None:
        raise ArtifactError(f"{path}: the field peft_type is missing; name the folder of a PEFT prompt.")
    if not isinstance(kind, str) or kind not in _BY_TYPE:
        name = "a LoRA" if kind == "LORA" else f"a {shown(kind)}"
        raise ArtifactError(
            f"{path} is {name} adapter, not a prompt; prompt tuning, P-tuning, prefix tuning, CARTRIDGE, "
            "LoRA and IA3 can be read."
        )
    config = parse_config(_BY_TYPE[kind], values, path)
    return config, _shape_of(path, config)


def _shape_of(path: Path, config: _PromptConfig) -> tuple[int, int]:
    """The shape ``[P, E]`` or ``[P, L * 2 * K * D]`` that a configuration implies, within limits."""
    positions, width = config.num_virtual_tokens, config.token_dim
    if config.kind == "prefix-tuning":
        if width % config.num_attention_heads:
            raise ArtifactError(
                f"{path}: token_dim {width} cannot be split over num_attention_heads "
                f"{config.num_attention_heads}; restore it from a good copy."
            )
        width *= 2 * config.num_layers
    if positions > MOST_POSITIONS or positions * width * 4 > MOST_BYTES:
        raise ArtifactError(
            f"{path}: a prompt of {positions} positions and {width} numbers each is beyond all limits "
            f"({MOST_POSITIONS} positions, {MOST_BYTES // 2**30} GiB); make a shorter one."
        )
    return positions, width


# Meeting a base ----------------------------------------------------------------------------------


def to_front(learnt: Learnt, base: Base) -> Front:
    """What may stand in front of a batch on ``base``.

    Returns:
        embeddings, fp32 ``[P, E]`` on the base's device, for a soft prompt; for a KV prefix a ``Prefix``
        in the base's dtype, as its own cache would hold it.

    Raises:
        ArtifactError: it was made for a model of another shape.
    """
    if learnt.kind == "prefix-tuning":
        return _to_prefix(learnt, base)
    width = learnt.tensor.shape[1]
    if width != base.width:
        raise ArtifactError(
            f"The prompt is {width} numbers wide, but {base.name} takes {base.width}; "
            "load the base it was learnt on."
        )
    return learnt.tensor.to(base.device, torch.float32)


def has_place_for(front: Front, base: Base) -> bool:
    """Whether PEFT's format can hold a front: a prefix only of layers alike, each with keys and values."""
    if not isinstance(front, Prefix):
        return True
    shapes = _shapes(front)
    layers = base.text_config.num_hidden_layers
    return not front.states and len(set(shapes)) == 1 and len(shapes[0]) == 2 and len(shapes) == layers


def from_front(front: Front, base: Base) -> Learnt:
    """What to write of a front made on ``base`` that the format has a place for; the inverse of ``to_front``.

    Of a prefix only keys and values are kept, not what it alone makes the model expect next.

    Raises:
        WrongBaseError: a prefix of another base.
    """
    assert has_place_for(front, base)
    if isinstance(front, Prefix):
        return _from_prefix(base.accept(front), base)
    about = base.text_config
    heads = getattr(about, "num_attention_heads", 1)  # which says nothing of a soft prompt
    geometry = Geometry(about.num_hidden_layers, heads, base.width)
    return Learnt(front.detach().to("cpu", torch.float32).clone(), "prompt-tuning", geometry)


def _to_prefix(learnt: Learnt, base: Base) -> Prefix:
    about = learnt.geometry
    heads = about.num_attention_heads
    made_for: list[tuple[int, ...]] = [(heads, about.token_dim // heads)] * about.num_layers
    with torch.no_grad():
        like = base.prefill(torch.empty(0, base.width, device=base.device))
    here = _shapes(like)
    if made_for != here:
        raise ArtifactError(
            f"The prefix is for {_described(made_for)}, but {base.name} has {_described(here)}; "
            "load the base it was learnt on."
        )
    sides = learnt.tensor.view(learnt.positions, len(here), 2, *here[0])  # [P, L, 2, K, D]
    sides = sides.to(base.device, base.dtype).permute(1, 2, 3, 0, 4).contiguous()  # [L, 2, K, P, D]
    return like.over(sides[:, 0], sides[:, 1])


def _from_prefix(prefix: Prefix, base: Base) -> Learnt:
    sides = torch.stack([t for pair in zip(prefix.keys, prefix.values, strict=True) for t in pair])
    rows = (
        sides.detach().to("cpu", torch.float32).permute(2, 0, 1, 3).flatten(1)
    )  # [2L, K, P, D] -> [P, 2L*K*D]
    heads, width = prefix.keys[0].shape[0], prefix.keys[0].shape[2]
    geometry = Geometry(len(prefix.keys), heads, heads * width)
    return Learnt(rows.contiguous(), "prefix-tuning", geometry)


def _shapes(prefix: Prefix) -> list[tuple[int, ...]]:
    """(K, D) of each layer; (K, D, K, D) where keys and values differ."""
    pairs = zip(prefix.keys, prefix.values, strict=True)
    both = [((k.shape[0], k.shape[2]), (v.shape[0], v.shape[2])) for k, v in pairs]
    return [k if k == v else (*k, *v) for k, v in both]


def _described(shapes: list[tuple[int, ...]]) -> str:
    kinds = sorted({"x".join(map(str, shape)) for shape in shapes})
    return f"{len(shapes)} layers of key/value heads {' and '.join(kinds)}"
