"""One tensor in a safetensors file from a stranger: knows that layout and its limits, not what the tensor is.

Everything the header claims is held against the file's size and the shape the caller expects before any
weight is read. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from softprompt.errors import ArtifactError
from softprompt.library.files import opened, parse_json

__all__ = ["MOST_BYTES", "check_file", "damaged", "raw_header", "read_tensor", "tensor_bytes"]

MOST_BYTES = 4 * 2**30
"""The largest tensor that is read: a prefix of 4,096 positions for a model of 70 billion parameters fits."""

_MOST_HEADER = 2**20
_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def tensor_bytes(name: str, tensor: Tensor) -> bytes:
    """The content of a file that holds ``tensor`` in fp32, as PEFT writes it."""
    plain = tensor.detach().to("cpu", torch.float32).contiguous()
    return save({name: plain}, {"format": "pt"})


def check_file(path: Path, name: str, shape: tuple[int, ...]) -> None:
    """Check the header of a file without reading its weights; errors as in ``read_tensor``."""
    with opened(path) as file:
        _checked_header(file, path, name, shape)


def read_tensor(path: Path, name: str, shape: tuple[int, ...], sha256: str | None = None) -> Tensor:
    """The tensor ``name``, which must be the only one, as fp32 of ``shape`` on the CPU.

    Args:
        path: a safetensors file.
        name: what the tensor must be called.
        shape: the shape it must have.
        sha256: hash the whole file must have, in hex, if it is known.

    Raises:
        ArtifactError: the file is missing, damaged or changed, or holds something else.
        ResourceError: it cannot be read.
    """
    with opened(path) as file:
        content = _checked_header(file, path, name, shape) + file.read()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactError(f"{path} was changed or damaged since it was saved; restore it from a good copy.")
    try:
        tensor = load(content)[name].to(torch.float32)
    except (SafetensorError, KeyError, ValueError) as error:
        raise damaged(path, str(error)) from error
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise ArtifactError(
            f"{path} holds {bad} of {tensor.numel()} numbers that are not finite; restore a good copy."
        )
    return tensor


def raw_header(file: IO[bytes], path: Path, limit: int = _MOST_HEADER) -> tuple[bytes, dict[str, Any], int]:
    """The bytes before the weights, what they say of each tensor (unchecked), and how many bytes follow.

    Raises:
        ArtifactError: they are cut off, larger than ``limit``, or no JSON object.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length < 2 or 8 + length > size:
        raise damaged(path, "its header is cut off")
    if length > limit:
        raise damaged(path, f"its header claims {length:,} bytes")
    header = file.read(length)
    tensors = parse_json(header, f"The header of {path}")
    tensors.pop("__metadata__", None)
    return start + header, tensors, size - 8 - length


def _checked_header(file: IO[bytes], path: Path, name: str, shape: tuple[int, ...]) -> bytes:
    """The bytes before the weights, once all they say has been found true."""
    header, tensors, size = raw_header(file, path)
    _check_names(path, list(tensors), name)
    _check_layout(path, name, tensors[name], shape, size)
    return header


def _check_names(path: Path, found: list[str], name: str) -> None:
    others = [other for other in found if other != name]
    if name not in found:
        there = f"only {others[0]!a}" if others else "nothing"
        raise ArtifactError(f"{path} has no tensor {name}, {there}; it does not hold a prompt.")
    if others:
        raise ArtifactError(
            f"{path} has more than a prompt in it, such as the tensor {others[0]!a}; "
            f"only {name} may be there."
        )


def _check_layout(path: Path, name: str, about: Any, shape: tuple[int, ...], size: int) -> None:
    """Hold one tensor's header entry against the shape expected and the bytes there are."""
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, f"its header describes {name} in no known way")
    width = _DTYPES.get(about["dtype"]) if isinstance(about["dtype"], str) else None
    if width is None:
        raise ArtifactError(
            f"{path} holds numbers of the type {str(about['dtype'])[:20]!a}; a prompt is in one of "
            f"{', '.join(_DTYPES)}."
        )
    if about["shape"] != list(shape):
        raise ArtifactError(
            f"{path} holds a tensor of shape {str(about['shape'])[:60]}, but its configuration asks for "
            f"{list(shape)}; the two files do not belong together."
        )
    if about["data_offsets"] != [0, math.prod(shape) * width] or size != math.prod(shape) * width:
        raise damaged(path, "its size is not what its header says")


def damaged(path: Path, reason: str) -> ArtifactError:
    """The error for a file whose own header gives it the lie."""
    return ArtifactError(f"{path} is damaged ({reason}); restore it from a good copy.")
