"""``adapter_config.json`` as PEFT writes it for LoRA: knows fields and what can be done exactly, no weights.

Plain LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023) and DoRA (Liu et al. 2024) can be read. Whatever else
PEFT's configuration can ask for changes what the model computes, so it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.config_io import nearest, shown
from softprompt.errors import ArtifactError
from softprompt.library.files import json_object
from softprompt.library.peft_config import CONFIG_LIMIT, VERSION, Fields

__all__ = ["build_lora_config", "read_lora_config"]

_MOST_RANK = 2**16
_MOST_TARGETS = 2**16
_LONGEST_TARGET = 300
_MOST_ALPHA = 2**20

# PEFT's fields with its values for an adapter that does nothing but what LoRA, rsLoRA and DoRA do.
_PLAIN: Fields = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_bias": False,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "qalora_group_size": 16,
    "rank_pattern": {},
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_qalora": False,
    "velora_config": None,
}
_ABOUT: Fields = {  # says nothing about what the adapter computes
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_dropout": 0.0,
    "peft_version": VERSION,
    "revision": None,
}
_READ = ("lora_alpha", "peft_type", "r", "target_modules", "task_type", "use_dora", "use_rslora")
_HARMLESS_STARTS = (True, False, "gaussian", "orthogonal")
"""Starts of the adapter that leave the base's weights as they are."""

_WHY = {
    "alora_invocation_tokens": "so it acts only behind certain tokens",
    "alpha_pattern": "so its layers are scaled differently",
    "bias": "so biases of the model were trained too",
    "exclude_modules": "so some of its layers are left out by a rule",
    "init_lora_weights": "so it belongs to a base whose weights were changed when it began",
    "layer_replication": "so it repeats layers of the model",
    "layers_pattern": "so only some layers are adapted",
    "layers_to_transform": "so only some layers are adapted",
    "loftq_config": "so it belongs to a base whose weights were changed when it began",
    "lora_bias": "so its adapters have biases",
    "modules_to_save": "so a part of the model was trained too",
    "rank_pattern": "so its layers have different ranks",
    "target_parameters": "so it adapts parameters outside of linear layers",
    "trainable_token_indices": "so embeddings of the model were trained too",
}


# Writing -----------------------------------------------------------------------------------------


def build_lora_config(
    settings: Mapping[str, Any], base_name: str, revision: str | None, transposed: bool
) -> Fields:
    """The fields PEFT writes for an adapter of ``settings``, in its order.

    ``transposed`` says whether the layers are stored as GPT-2's are.
    """
    alpha = float(settings["alpha"])
    own = {
        "base_model_name_or_path": base_name,
        "fan_in_fan_out": transposed,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "peft_type": "LORA",
        "r": settings["rank"],
        "revision": revision,
        "target_modules": sorted(settings["targets"]),
        "task_type": "CAUSAL_LM",
        "use_dora": settings["dora"],
        "use_rslora": settings["rslora"],
    }
    return dict(sorted((_PLAIN | _ABOUT | own).items()))


# Reading -----------------------------------------------------------------------------------------


def read_lora_config(path: Path) -> tuple[Fields, dict[str, Any]]:
    """The configuration in ``path``, and what it says as rank, alpha, targets, rslora and dora.

    Raises:
        ArtifactError: it is missing, malformed, or asks for what cannot be done exactly.
        ResourceError: it cannot be read.
    """
    config = json_object(path, CONFIG_LIMIT)
    for field, value in config.items():
        if field not in _READ and field not in _ABOUT:
            _check_plain(path, field, value)
    _check_about(path, config)
    settings = {
        "rank": _number(path, config, "r", 8, whole=True, least=1, most=_MOST_RANK),
        "alpha": float(_number(path, config, "lora_alpha", 8, whole=False, least=0, most=_MOST_ALPHA)),
        "targets": _targets(path, config.get("target_modules")),
        "rslora": _truth(path, config, "use_rslora"),
        "dora": _truth(path, config, "use_dora"),
    }
    return config, settings


def _check_plain(path: Path, field: str, value: Any) -> None:
    """Refuse a field whose value asks for something that is not done here."""
    if value is None or value is False or value in ({}, []):
        return
    if field == "init_lora_weights":
        if any(value is start or (value == start and isinstance(value, str)) for start in _HARMLESS_STARTS):
            return
    elif field in _PLAIN and type(value) is type(_PLAIN[field]) and value == _PLAIN[field]:
        return
    if field not in _PLAIN:
        near = nearest(field, (*_PLAIN, *_ABOUT, *_READ))
        hint = f"did you mean {near}?" if near else "a newer PEFT may have written it."
        raise ArtifactError(f"{path}: unknown field {shown(field)} with the value {shown(value)}; {hint}")
    why = _WHY.get(field, "which is more than LoRA, rsLoRA and DoRA do")
    raise ArtifactError(
        f"{path}: {field} is {shown(value)}, {why}; such an adapter cannot be used exactly here, "
        "so use it with PEFT."
    )


def _check_about(path: Path, config: Fields) -> None:
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise ArtifactError(
            f"{path} is an adapter for {shown(config['task_type'])}; only those for CAUSAL_LM can be read."
        )
    for field in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(field), str | None):
            raise ArtifactError(
                f"{path}: {field} is {shown(config[field])}, not text; restore it from a good copy."
            )


def _number(
    path: Path, config: Fields, field: str, default: int, *, whole: bool, least: int, most: int
) -> float | int:
    value = config.get(field, default)
    if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise ArtifactError(
            f"{path}: {field} is {shown(value)}, not {kind} from {least} to {most:,}; "
            "restore it from a good copy."
        )
    return value  # type: ignore[no-any-return]


def _truth(path: Path, config: Fields, field: str) -> bool:
    value = config.get(field, False)
    if not isinstance(value, bool):
        raise ArtifactError(
            f"{path}: {field} is {shown(value)}, not true or false; restore it from a good copy."
        )
    return value


def _targets(path: Path, value: Any) -> Sequence[str]:
    """The names of the adapted layers; a pattern from a stranger is not run."""
    if isinstance(value, str):
        raise ArtifactError(
            f"{path}: target_modules is the pattern {shown(value)}; write the names of the layers as a list."
        )
    fits = isinstance(value, list) and 0 < len(value) <= _MOST_TARGETS
    if not fits or not all(isinstance(name, str) and 0 < len(name) <= _LONGEST_TARGET for name in value):
        raise ArtifactError(
            f"{path}: target_modules is {shown(value)}, not a list of names; restore it from a good copy."
        )
    return sorted(set(value))
