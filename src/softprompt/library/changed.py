"""What all artifacts that change the model share: words in front, one hash, a size; no model's format.

The words in front of a changed model, often none, are kept as embeddings ``[P, E]`` in ``front.safetensors``,
which is there only where P > 0.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from softprompt.base.copies import Change
from softprompt.base.lowrank import LowRank, folded, plain_weight
from softprompt.base.model import Base
from softprompt.errors import ArtifactError
from softprompt.library.peft_format import MOST_POSITIONS, WEIGHTS_FILE
from softprompt.library.tensor_file import MOST_BYTES, Digest, add_file, shapes_of, stream, write_tensors

__all__ = [
    "FRONT_FILE",
    "MODEL_FILE",
    "ChangedModel",
    "artifact_bytes",
    "front_on",
    "front_positions",
    "hash_of",
    "merged_into",
    "read_front",
    "write_front",
]

FRONT_FILE = "front.safetensors"
MODEL_FILE = "model.safetensors"
_TENSOR = "front"


def artifact_bytes(folder: str | os.PathLike[str]) -> int:
    """The size of an artifact's weights: the files that must be kept to use it.

    Raises:
        ArtifactError: the folder holds none.
    """
    files = [Path(folder) / name for name in (WEIGHTS_FILE, MODEL_FILE, FRONT_FILE)]
    sizes = [file.stat().st_size for file in files if file.is_file()]
    if not sizes:
        raise ArtifactError(f"{folder} holds no learnt weights, so it is no saved prompt; check the path.")
    return sum(sizes)


@dataclass(frozen=True, eq=False)
class ChangedModel:
    """What a change holds in memory, and what stands in front of the model that has it; see ``Payload``.

    Attributes:
        change: the tensors by their names in a model, and the settings that go with them.
        front: fp32 ``[P, E]``, often of no positions.
    """

    change: Change
    front: Tensor = field(repr=False)

    @property
    def positions(self) -> int:
        return len(self.front)

    @property
    def numbers(self) -> int:
        return sum(tensor.numel() for tensor in self.change.tensors.values())

    @property
    def front_template(self) -> str:
        return ""


def merged_into(base: Base, change: LowRank | None) -> Base:
    """A copy of ``base`` with a change in its weights; None for one that few bits do not let be known.

    Raises:
        ArtifactError: the base keeps weights in few bits, where no change fits in.
    """
    layers = change.layers if change is not None else {}
    if change is None or any(plain_weight(base.model.get_submodule(name)) is None for name in layers):
        raise ArtifactError(
            f"{base.name} keeps weights in few bits, where no change fits in; keep the adapter beside it."
        )
    return folded(base, change)


# The front ---------------------------------------------------------------------------------------


def write_front(folder: Path, front: Tensor) -> None:
    """Keep a front ``[P, E]`` in fp32 if it has any positions."""
    assert front.dim() == 2
    if len(front):
        write_tensors(folder / FRONT_FILE, {_TENSOR: front.detach().to("cpu", torch.float32)})


def front_positions(folder: Path) -> int:
    """P, by the header of the file alone.

    Raises:
        ArtifactError: the file holds something else, or more than can be read.
    """
    return _front_shape(folder)[0]


def read_front(folder: Path, digest: Digest) -> Tensor:
    """The front, fp32 ``[P, E]`` on the CPU, or ``[0, 0]`` where there is none.

    ``digest`` grows by the bytes of the file; errors as in ``front_positions``.
    """
    if _front_shape(folder) == (0, 0):
        return torch.empty(0, 0)
    return dict(stream(folder / FRONT_FILE, digest, torch.float32))[_TENSOR]


def front_on(base: Base, front: Tensor) -> Tensor:
    """A kept front on the device of ``base``, ``[P, E]``.

    Raises:
        ArtifactError: it was made for a model of another width.
    """
    if not len(front):
        return torch.empty(0, base.width, device=base.device)
    if front.shape[1] != base.width:
        raise ArtifactError(
            f"The words in front are {front.shape[1]} numbers wide, but {base.name} takes {base.width}; "
            "load the base it was learnt on."
        )
    return front.to(base.device, torch.float32)


def _front_shape(folder: Path) -> tuple[int, int]:
    path = folder / FRONT_FILE
    if not os.path.lexists(path):
        return 0, 0
    shapes = shapes_of(path)
    shape = shapes.get(_TENSOR, ())
    if len(shapes) != 1 or len(shape) != 2 or not shape[0]:
        raise ArtifactError(
            f"{path} does not hold one tensor {_TENSOR} of positions and widths; restore it from a good copy."
        )
    if shape[0] > MOST_POSITIONS or path.stat().st_size > MOST_BYTES:
        raise ArtifactError(
            f"{path} holds {shape[0]} positions, which is beyond all limits ({MOST_POSITIONS} positions, "
            f"{MOST_BYTES // 2**30} GiB); make a shorter one."
        )
    return shape[0], shape[1]


# The hash ----------------------------------------------------------------------------------------


def hash_of(folder: Path, weights: str) -> str:
    """SHA-256 in hex of the file ``weights`` and, behind it, of the front's if there is one."""
    digest = hashlib.sha256()
    add_file(folder / weights, digest)
    if (folder / FRONT_FILE).exists():
        add_file(folder / FRONT_FILE, digest)
    return digest.hexdigest()
