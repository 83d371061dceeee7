"""Tensors in a safetensors file from a stranger: knows that layout and its limits, not what the tensors are.

The safetensors library holds all that the header claims against the file's size before any weight is read;
then one tensor after the other is read, so that never more is in memory than what the caller keeps. Nothing
is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softprompt.atomic import plain_disk_errors
from softprompt.errors import ArtifactError
from softprompt.harmless import clipped
from softprompt.library.files import opened

__all__ = [
    "MOST_BYTES",
    "Digest",
    "add_file",
    "check_file",
    "check_finite",
    "copy_tensors",
    "read_tensor",
    "refuse_changed",
    "shapes_of",
    "stream",
    "write_tensors",
]

MOST_BYTES = 4 * 2**30
"""The largest prompt that is read: a prefix of 4,096 positions for a model of 70 billion parameters fits."""

_MOST_HEADER = 2**24  # about a hundred thousand tensors
_MOST_DIMENSIONS = 8
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


class Digest(Protocol):
    """A hash that is still growing, as ``hashlib`` makes it."""

    def update(self, data: Any, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Info(NamedTuple):
    """What a header says of a tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


# Writing -----------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as they are, byte for byte as the safetensors library does, but one at a time.

    Raises:
        ArtifactError: some numbers are not finite.
        ResourceError: the disk refuses.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    names = {dtype: name for name, dtype in _TYPES.items()}
    about: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in ordered:
        end = start + tensor.numel() * tensor.element_size()
        about[name] = {"dtype": names[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, end]}
        start = end
    header = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with plain_disk_errors(path), path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, tensor in ordered:
            check_finite(tensor, f"The tensor {name}", "train it again")
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def copy_tensors(source: Path, target: Path, digest: Digest) -> None:
    """Copy a file, held in memory one tensor at a time and checked as in ``stream``."""
    with _opened(source) as (file, header, infos):
        digest.update(header)
        with plain_disk_errors(target), target.open("wb") as copy:
            copy.write(header)
            for info in infos:
                content, _ = _read(file, source, info, digest)
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
    with _opened(path) as (_, _, infos):
        return {info.name: info.shape for info in infos}


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
    with _opened(path) as (file, header, infos):
        digest.update(header)
        for info in infos:
            yield info.name, _read(file, path, info, digest, dtype)[1]


def check_file(path: Path, name: str, shape: tuple[int, ...]) -> None:
    """Check the header of a file of one tensor without reading its weights; errors as in ``read_tensor``."""
    with _opened(path) as (_, _, infos):
        _check_only(path, infos, name, shape)


def read_tensor(path: Path, name: str, shape: tuple[int, ...], digest: Digest) -> Tensor:
    """The tensor ``name``, which must be the only one, as fp32 of ``shape`` on the CPU.

    Args:
        path: a safetensors file.
        name: what the tensor must be called.
        shape: the shape it must have.
        digest: every byte of the file is added to it.

    Raises:
        ArtifactError: the file is missing or damaged, or holds something else.
        ResourceError: it cannot be read.
    """
    with _opened(path) as (file, header, infos):
        info = _check_only(path, infos, name, shape)
        digest.update(header)
        return _read(file, path, info, digest, torch.float32)[1]


def add_file(path: Path, digest: Digest) -> None:
    """Add every byte of a file to a hash."""
    with opened(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)


def refuse_changed(path: Path, digest: Digest, sha256: str | None) -> None:
    """Raise ``ArtifactError`` if the hash of what was read is not the one that is known, if one is."""
    if sha256 is not None and digest.hexdigest() != sha256:
        raise ArtifactError(f"{path} was changed or damaged since it was saved; restore it from a good copy.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], bytes, list[_Info]]]:
    """A file at its first weight, the bytes before it, and the tensors, which follow without gaps to its end.

    The weights are read from the file and not through safetensors' memory map: a map of a file that somebody
    shortens kills the process.
    """
    with opened(path) as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if length > _MOST_HEADER:
            raise _damaged(path, f"its header claims {length:,} bytes")
        try:
            with safe_open(path, "np") as known:
                slices = {name: known.get_slice(name) for name in known.offset_keys()}
                told = [(name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()]
        except SafetensorError as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise _damaged(path, clipped(reason, 120)) from error
        infos = []
        for name, dtype, shape in told:
            if dtype not in _TYPES:
                raise ArtifactError(
                    f"{path} holds numbers of the type {dtype!a}; {', '.join(_TYPES)} can be read."
                )
            if len(shape) > _MOST_DIMENSIONS:
                raise _damaged(path, f"{name[:80]!a} has {len(shape)} dimensions")
            infos.append(_Info(name, _TYPES[dtype], shape))
        header = start + file.read(length)
        # It may be another file by now.
        if len(header) + sum(info.nbytes for info in infos) != os.fstat(file.fileno()).st_size:
            raise _damaged(path, "its size is not what its header says")
        yield file, header, infos


def _check_only(path: Path, infos: list[_Info], name: str, shape: tuple[int, ...]) -> _Info:
    """The one tensor there may be, of floating point numbers and the shape that is expected."""
    others = [info.name for info in infos if info.name != name]
    if len(others) == len(infos):
        there = f"only {others[0][:80]!a}" if others else "nothing"
        raise ArtifactError(f"{path} has no tensor {name}, {there}; it does not hold a prompt.")
    if others:
        raise ArtifactError(
            f"{path} has more than a prompt in it, such as the tensor {others[0][:80]!a}; "
            f"only {name} may be there."
        )
    (info,) = infos
    if not info.dtype.is_floating_point:
        raise ArtifactError(f"{path} holds numbers of the type {info.dtype}; a prompt is of floating point.")
    if info.shape != shape:
        raise ArtifactError(
            f"{path} holds a tensor of shape {list(info.shape)}, but its configuration asks for "
            f"{list(shape)}; the two files do not belong together."
        )
    return info


def _read(
    file: IO[bytes], path: Path, info: _Info, digest: Digest, dtype: torch.dtype | None = None
) -> tuple[bytearray, Tensor]:
    """The next bytes of a file, and the tensor they are, in ``dtype`` if one is given."""
    content = bytearray(info.nbytes)
    if file.readinto(content) != len(content):  # type: ignore[attr-defined]
        raise _damaged(path, "it became shorter while it was read")
    digest.update(content)
    if content:
        tensor = torch.frombuffer(content, dtype=info.dtype).view(info.shape)
    else:
        tensor = torch.empty(info.shape, dtype=info.dtype)
    tensor = tensor if dtype is None else tensor.to(dtype)
    check_finite(tensor, f"{path}: the tensor {info.name}", "restore a good copy")
    return content, tensor


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged ({reason}); restore it from a good copy.")
