"""``adapter_config.json`` as PEFT writes it for prompts: knows fields and sizes, not weights or models."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from softprompt.config_io import nearest, shown
from softprompt.errors import ArtifactError
from softprompt.library.files import json_object
from softprompt.library.tensor_file import MOST_BYTES

__all__ = [
    "CONFIG_LIMIT",
    "MOST_POSITIONS",
    "VERSION",
    "Fields",
    "Geometry",
    "Kind",
    "build_config",
    "kind_of",
    "read_config",
    "shape_of",
]

Fields = dict[str, Any]
Kind = Literal["prompt-tuning", "prefix-tuning"]

VERSION = "0.21.2"
"""The PEFT whose format is written."""

CONFIG_LIMIT = 2**20
MOST_POSITIONS = 2**16
_MOST = 2**20  # of any other size

_SIZES = ("num_attention_heads", "num_layers", "num_virtual_tokens", "token_dim")
_SHARED = {
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "inference_mode": True,
    "modules_to_save": None,
    "num_transformer_submodules": 1,
    "peft_version": VERSION,
    "revision": None,
    "task_type": "CAUSAL_LM",
}
_SOFT_PROMPT = {
    "prompt_tuning_init": "RANDOM",
    "prompt_tuning_init_text": None,
    "tokenizer_kwargs": None,
    "tokenizer_name_or_path": None,
}
_KV_PREFIX = {"encoder_hidden_size": None, "init_weights": None, "prefix_projection": False}
_ENCODER = ("encoder_dropout", "encoder_hidden_size", "encoder_num_layers", "encoder_reparameterization_type")
_OWN_FIELDS: dict[str, tuple[str, ...]] = {
    "PROMPT_TUNING": tuple(_SOFT_PROMPT),
    "P_TUNING": _ENCODER,  # only what its encoder made is saved
    "PREFIX_TUNING": tuple(_KV_PREFIX),
}
_REQUIRED = ("peft_type", "task_type", "num_transformer_submodules", *_SIZES)


@dataclass(frozen=True)
class Geometry:
    """What PEFT notes of a base, under PEFT's names.

    For a KV prefix the heads are the K key/value heads and ``token_dim`` is K * D; for a soft prompt
    they are the query heads and E.
    """

    num_layers: int
    num_attention_heads: int
    token_dim: int


def build_config(
    kind: Kind, positions: int, geometry: Geometry, base_name: str, revision: str | None
) -> Fields:
    """The fields PEFT writes for a prompt of ``kind``, in its order."""
    own: Fields = _SOFT_PROMPT | {"peft_type": "PROMPT_TUNING"}
    if kind == "prefix-tuning":
        own = _KV_PREFIX | {"peft_type": "PREFIX_TUNING", "encoder_hidden_size": geometry.token_dim}
    about = {"base_model_name_or_path": base_name, "revision": revision, "num_virtual_tokens": positions}
    return dict(sorted((_SHARED | own | about | asdict(geometry)).items()))


def read_config(path: Path) -> Fields:
    """The configuration in ``path``, its fields known and complete, of a prompt for a causal language model.

    Raises:
        ArtifactError: it is missing, malformed, or describes no such prompt.
        ResourceError: it cannot be read.
    """
    config = json_object(path, CONFIG_LIMIT)
    kind = config.get("peft_type")
    if kind is None:
        raise ArtifactError(f"{path}: the field peft_type is missing; name the folder of a PEFT prompt.")
    if not isinstance(kind, str) or kind not in _OWN_FIELDS:
        name = "a LoRA" if kind == "LORA" else f"a {shown(kind)}"
        raise ArtifactError(
            f"{path} is {name} adapter, not a prompt; prompt tuning, P-tuning, prefix tuning and LoRA can be "
            "read."
        )
    _check_names(path, config)
    _check_values(path, config)
    return config


def _check_names(path: Path, config: Fields) -> None:
    known = {*_SHARED, *_SIZES, "peft_type", *_OWN_FIELDS[config["peft_type"]]}
    for field in config:
        if field not in known:
            near = nearest(field, known)
            hint = f"did you mean {near}?" if near else "a newer PEFT may have written it."
            raise ArtifactError(f"{path}: unknown field {shown(field)}; {hint}")
    for field in _REQUIRED:
        if field not in config:
            raise ArtifactError(f"{path}: the field {field} is missing; save the prompt with PEFT again.")


def _check_values(path: Path, config: Fields) -> None:
    if config["task_type"] != "CAUSAL_LM":
        raise ArtifactError(
            f"{path} is a prompt for {shown(config['task_type'])}; only those for CAUSAL_LM can be read."
        )
    if config["num_transformer_submodules"] != 1:
        raise ArtifactError(
            f"{path}: num_transformer_submodules is {shown(config['num_transformer_submodules'])}, but only "
            "1 can be read, for a model that is a decoder and nothing else."
        )
    for field in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(field), str | None):
            raise ArtifactError(
                f"{path}: {field} is {shown(config[field])}, not text; restore it from a good copy."
            )
    if config.get("modules_to_save"):
        raise ArtifactError(
            f"{path}: modules_to_save is {shown(config['modules_to_save'])}, so a part of the model was "
            "trained too; only prompts for an unchanged model can be read."
        )


def shape_of(path: Path, config: Fields) -> tuple[int, int]:
    """The shape ``[P, E]`` or ``[P, L * 2 * K * D]`` that a configuration implies.

    Raises:
        ArtifactError: a size is no whole number, or all of them together are beyond limits.
    """
    for field in _SIZES:
        least, value = int(field != "num_virtual_tokens"), config[field]
        if type(value) is not int or not least <= value <= _MOST:
            raise ArtifactError(
                f"{path}: {field} is {shown(value)}, not a whole number from {least} to {_MOST:,}; "
                "restore it from a good copy."
            )
    positions, width = config["num_virtual_tokens"], config["token_dim"]
    if kind_of(config) == "prefix-tuning":
        if width % config["num_attention_heads"]:
            raise ArtifactError(
                f"{path}: token_dim {width} cannot be split over num_attention_heads "
                f"{config['num_attention_heads']}; restore it from a good copy."
            )
        width *= 2 * config["num_layers"]
    if positions > MOST_POSITIONS or positions * width * 4 > MOST_BYTES:
        raise ArtifactError(
            f"{path}: a prompt of {positions} positions and {width} numbers each is beyond all limits "
            f"({MOST_POSITIONS} positions, {MOST_BYTES // 2**30} GiB); make a shorter one."
        )
    return positions, width


def kind_of(config: Fields) -> Kind:
    """How the tensor is to be read."""
    # P-tuning saves what its encoder made, which is a soft prompt.
    return "prefix-tuning" if config["peft_type"] == "PREFIX_TUNING" else "prompt-tuning"
