"""How large an artifact's weights will be, to the byte: knows the files' layout, and tensors by their sizes.

Fronts and adapters are kept in fp32 as PEFT writes them, a fine-tuned model in the base's number format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from softprompt.base.copies import Change
from softprompt.base.model import Base
from softprompt.library.peft_format import has_place_for
from softprompt.library.prefix_format import tensors_of
from softprompt.methods.method import Method
from softprompt.prefix import Prefix

__all__ = ["artifact_size", "file_size"]

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_NAMES |= {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.int8: "I8", torch.bool: "BOOL"}
_ALIGNED = 8

Sizes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def artifact_size(method: Method) -> int:
    """Bytes of the files that must be kept to use what ``method`` learns; its tensors need no numbers."""
    with torch.no_grad():
        front = method.front()
    change = method.change()
    if isinstance(front, Prefix) and not has_place_for(front, method.base):
        return file_size({name: (tuple(t.shape), torch.float32) for name, t in tensors_of(front).items()})
    if isinstance(front, Prefix):
        width = sum(t.shape[0] * t.shape[2] for t in (*front.keys, *front.values))
        return file_size({"prompt_embeddings": ((front.length, width), torch.float32)})
    shape = tuple(front.shape)
    if change is None:
        return file_size({"prompt_embeddings": (shape, torch.float32)})
    beside = file_size({"front": (shape, torch.float32)}) if len(front) else 0
    return file_size(_FILES[change.kind](method.base, change)) + beside


def file_size(tensors: Sizes) -> int:
    """Bytes of a safetensors file: 8, a header in JSON filled up to a multiple of 8, the numbers."""
    about: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The layout's own order: widest numbers first, then by name.
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: (-item[1][1].itemsize, item[0])):
        start, end = end, end + prod(shape) * dtype.itemsize
        about[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    header = len(json.dumps(about, separators=(",", ":")).encode())
    return 8 + header + -header % _ALIGNED + end


def _adapter(base: Base, change: Change) -> Sizes:
    """PEFT's names, in which an adapter has no name of its own."""
    names = {name: name.replace(".default.", ".") for name in change.tensors}
    magnitude = "lora_magnitude_vector"
    names = {
        n: f.removesuffix(".weight") if f.endswith(f"{magnitude}.weight") else f for n, f in names.items()
    }
    return {
        f"base_model.model.{names[name]}": (tuple(t.shape), torch.float32)
        for name, t in change.tensors.items()
    }


def _model(base: Base, change: Change) -> Sizes:
    """Every weight once, and the buffers that are saved with them."""
    saved = base.model.state_dict().keys()
    kept: dict[str, Tensor] = {name: b for name, b in base.model.named_buffers() if name in saved}
    return {name: (tuple(t.shape), t.dtype) for name, t in (dict(change.tensors) | kept).items()}


def _vectors(base: Base, change: Change) -> Sizes:
    """PEFT's names, one column each."""
    return {f"base_model.model.{name}": ((t.numel(), 1), torch.float32) for name, t in change.tensors.items()}


_FILES = {"lora": _adapter, "ia3": _vectors, "full": _model}
