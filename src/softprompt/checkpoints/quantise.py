"""Weights of linear layers in 4 or 8 bits, through bitsandbytes: which options load a model so.

NF4 with double quantisation is the storage of QLoRA (Dettmers et al. 2023); products are computed in the
number format of the base. Whatever that is, weights are made few bits from ``STORED``: made from float32 and
from bfloat16 they would differ in places, and what was learnt on the one would be refused by the other. What
is not quantised (embeddings, norms, the head) is as in the checkpoint. It knows options and bitsandbytes'
layers, not models.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from softprompt.errors import ConfigError
from softprompt.packages import require

__all__ = ["STORED", "as_stored", "compute_in", "keep_differentiable", "quantised", "quiet_bitsandbytes"]

STORED = torch.bfloat16
"""The number format a checkpoint is read in before its weights are quantised."""


def quantised(kind: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Options of transformers' ``from_pretrained`` for a kind of storage: none, nf4 or int8.

    Raises:
        ConfigError: there is no such kind, or the device cannot compute with it.
        ResourceError: a package is missing.
    """
    if kind == "none":
        return {}
    if kind not in _KINDS:
        raise ConfigError(f"base.quantisation is none, nf4 or int8, not {kind!r}.")
    if device.type == "mps":
        raise ConfigError(f"{kind} weights cannot be computed with on {device}; use cpu or cuda, or none.")
    require("a quantised base")
    quiet_bitsandbytes()
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(**_KINDS[kind](dtype)),
        "device_map": {"": str(device)},
    }


_KINDS: dict[str, Any] = {
    "nf4": lambda dtype: {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    },
    "int8": lambda dtype: {"load_in_8bit": True},
}


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Let a model that was read in ``STORED`` and quantised compute in another number format."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == STORED:
            tensor.data = tensor.data.to(dtype)
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            state.dtype = dtype  # what 4-bit weights are unpacked to
    model.config.dtype = dtype


def as_stored(model: Any, folder: Path) -> None:
    """Give back to what is not quantised the digits that reading in ``STORED`` took from it.

    A tensor is known by its name in the checkpoint, with or without the prefix of the model's layers, and by
    being what is held once it is rounded; what transformers made of several, or renamed, stays rounded. So
    does all where the base computes in half precision: a number rounded twice has another fingerprint.
    """
    if model.dtype.itemsize < 4:
        return
    held = {
        name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_floating_point()
    }
    held |= {name.removeprefix(f"{model.base_model_prefix}."): tensor for name, tensor in held.items()}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as checkpoint:
            for name in held.keys() & set(checkpoint.keys()):
                tensor = checkpoint.get_tensor(name).to(held[name].device)
                if tensor.shape == held[name].shape and torch.equal(
                    tensor.to(STORED).to(held[name]), held[name]
                ):
                    held[name].data.copy_(tensor)


def keep_differentiable(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs the first time they are read.

    The repacked form has no gradient with respect to its input (it silently gives none), and repacking
    changes the base's bytes.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quiet_bitsandbytes() -> None:
    """Keep bitsandbytes from announcing kernels it could download, and that it rounds inputs to float16."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
