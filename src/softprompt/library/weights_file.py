"""Many tensors in a safetensors file from a stranger: knows that layout, not what the tensors are.

The header is held against the file's size before any weight is read; then one tensor after the other is
read, so that never more is in memory than what the caller keeps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from softprompt.atomic import plain_disk_errors
from softprompt.errors import ArtifactError
from softprompt.library.files import opened
from softprompt.library.tensor_file import damaged, raw_header

__all__ = ["Digest", "add_file", "check_finite", "copy_tensors", "shapes_of", "stream", "write_tensors"]

_MOST_HEADER = 2**24  # about a hundred thousand tensors
_CHUNK = 2**22
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


class Digest(Protocol):
    """A hash that is still growing, as ``hashlib`` makes it."""

    def update(self, data: Any, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Entry(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


# Writing -----------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as they are, in a file that PEFT and transformers read too.

    Raises:
        ArtifactError: some numbers are not finite.
        ResourceError: the disk refuses.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    with plain_disk_errors(path), path.open("wb") as file:
        file.write(_header(ordered))
        for name, tensor in ordered:
            check_finite(tensor, f"The tensor {name}", "train it again")
            file.write(_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())


def _header(ordered: Sequence[tuple[str, Tensor]]) -> bytes:
    """What stands before the weights, byte for byte as the safetensors library writes it."""
    about: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in ordered:
        end = start + tensor.numel() * tensor.element_size()
        about[name] = {"dtype": _NAMES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, end]}
        start = end
    text = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def copy_tensors(source: Path, target: Path, digest: Digest) -> None:
    """Copy a file, held in memory one tensor at a time and checked as in ``stream``."""
    with opened(source) as file:
        header, entries = _checked_header(file, source)
        digest.update(header)
        with plain_disk_errors(target), target.open("wb") as copy:
            copy.write(header)
            for entry in entries:
                content = _content(file, source, entry)
                digest.update(content)
                check_finite(_tensor(content, entry), f"{source}: the tensor {entry.name}", "restore it")
                copy.write(content)
            copy.flush()
            os.fsync(copy.fileno())


def check_finite(tensor: Tensor, what: str, cure: str) -> None:
    """Refuse a tensor with numbers that are not finite; ``what`` and ``cure`` are parts of the message."""
    bad = 0 if torch.isfinite(tensor).all() else int((~torch.isfinite(tensor)).sum())
    if bad:
        raise ArtifactError(f"{what} has {bad} of {tensor.numel()} numbers that are not finite; {cure}.")


# Reading -----------------------------------------------------------------------------------------


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by name; no weight is read.

    Raises:
        ArtifactError: the file is missing or damaged.
        ResourceError: it cannot be read.
    """
    with opened(path) as file:
        return {entry.name: entry.shape for entry in _checked_header(file, path)[1]}


def stream(path: Path, digest: Digest, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name, on the CPU, in the order of the file.

    Args:
        path: a safetensors file.
        digest: every byte of the file has been added to it when the last tensor has been taken.
        dtype: what the tensors are wanted in; None for their own.

    Raises:
        ArtifactError: the file is missing or damaged, or some numbers are not finite.
        ResourceError: it cannot be read.
    """
    with opened(path) as file:
        header, entries = _checked_header(file, path)
        digest.update(header)
        for entry in entries:
            content = _content(file, path, entry)
            digest.update(content)
            tensor = _tensor(content, entry)
            tensor = tensor if dtype is None else tensor.to(dtype)
            check_finite(tensor, f"{path}: the tensor {entry.name}", "restore a good copy")
            yield entry.name, tensor


def add_file(path: Path, digest: Digest) -> None:
    """Add every byte of a file to a hash."""
    with opened(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)


def _content(file: IO[bytes], path: Path, entry: _Entry) -> bytearray:
    content = bytearray(entry.end - entry.start)
    if file.readinto(content) != len(content):  # type: ignore[attr-defined]
        raise damaged(path, "it became shorter while it was read")
    return content


def _tensor(content: bytearray, entry: _Entry) -> Tensor:
    if not content:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(content, dtype=entry.dtype).view(entry.shape)


def _checked_header(file: IO[bytes], path: Path) -> tuple[bytes, list[_Entry]]:
    """The bytes before the weights, and the tensors in their order, without gaps from first to last byte."""
    header, about, size = raw_header(file, path, _MOST_HEADER)
    entries = sorted((_entry(path, *item) for item in about.items()), key=lambda e: (e.start, e.end))
    end = 0
    for entry in entries:
        if entry.start != end:
            raise damaged(path, "its size is not what its header says")
        end = entry.end
    if end != size:
        raise damaged(path, "its size is not what its header says")
    return header, entries


def _entry(path: Path, name: str, about: Any) -> _Entry:
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, f"its header describes {_short(name)} in no known way")
    dtype = _TYPES.get(about["dtype"]) if isinstance(about["dtype"], str) else None
    if dtype is None:
        raise ArtifactError(
            f"{path} holds numbers of the type {str(about['dtype'])[:20]!a}; {', '.join(_TYPES)} can be read."
        )
    shape, offsets = about["shape"], about["data_offsets"]
    if not (_counts(shape) and len(shape) <= 8 and _counts(offsets) and len(offsets) == 2):
        raise damaged(path, f"its header describes {_short(name)} in no known way")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise damaged(path, f"the size of {_short(name)} is not what its header says")
    return _Entry(name, dtype, tuple(shape), *offsets)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def _short(name: str) -> str:
    return ascii(name[:80])
