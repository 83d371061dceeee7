"""The one home of PEFT's file format: knows its two files and their fields; needs no PEFT and knows no cards.

PEFT keeps every prompt as ``adapter_config.json`` and, in ``adapter_model.safetensors``, one fp32 tensor
``prompt_embeddings``: ``[P, E]`` for a soft prompt; ``[P, L * 2 * K * D]`` for a KV prefix, each row in the
order L0-K, L0-V, L1-K, ..., each of them ``[K, D]``, keys as they stand in the cache (already rotated).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from softprompt.atomic import write_bytes
from softprompt.base.model import Base
from softprompt.errors import ArtifactError
from softprompt.library.payload import Met, Ride
from softprompt.library.peft_config import (
    Fields,
    Geometry,
    Kind,
    build_config,
    kind_of,
    read_config,
    shape_of,
)
from softprompt.library.tensor_file import check_file, read_tensor, tensor_bytes
from softprompt.packages import Need
from softprompt.prefix import Front, Prefix

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "Geometry",
    "Learnt",
    "check",
    "from_front",
    "read",
    "to_front",
    "weights_path",
    "write",
]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
_TENSOR = "prompt_embeddings"
_TEMPLATES: dict[Kind, str] = {"prompt-tuning": "{{soft:{}}}", "prefix-tuning": ""}


@dataclass(frozen=True, eq=False)
class Learnt:
    """What a file holds: one tensor, and how to read it.

    Attributes:
        tensor: fp32, ``[P, E]`` for a soft prompt, ``[P, L * 2 * K * D]`` for a KV prefix.
        kind: which of the two.
        geometry: of the base it belongs to.
    """

    tensor: Tensor
    kind: Kind
    geometry: Geometry

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

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
    config = build_config(learnt.kind, learnt.positions, learnt.geometry, base_name, revision)
    assert tuple(learnt.tensor.shape) == shape_of(folder / CONFIG_FILE, config)
    content = tensor_bytes(_TENSOR, learnt.tensor)
    write_bytes(folder / WEIGHTS_FILE, content)
    write_bytes(folder / CONFIG_FILE, json.dumps(config, indent=2).encode())
    return hashlib.sha256(content).hexdigest()


# Reading -----------------------------------------------------------------------------------------


def read(folder: Path, sha256: str | None = None) -> tuple[Learnt, Fields]:
    """What a PEFT folder holds, and its configuration.

    Args:
        folder: of prompt tuning, P-tuning or prefix tuning for a causal language model.
        sha256: hash the weights file must have, in hex, if it is known.

    Raises:
        ArtifactError: a file is missing, damaged, changed, or no prompt.
        ResourceError: a file cannot be read.
    """
    path = folder / CONFIG_FILE
    config = read_config(path)
    tensor = read_tensor(weights_path(folder), _TENSOR, shape_of(path, config), sha256)
    geometry = Geometry(config["num_layers"], config["num_attention_heads"], config["token_dim"])
    return Learnt(tensor, kind_of(config), geometry), config


def check(folder: Path) -> Fields:
    """The configuration, both files checked but for the weights themselves; errors as in ``read``."""
    path = folder / CONFIG_FILE
    config = read_config(path)
    check_file(weights_path(folder), _TENSOR, shape_of(path, config))
    return config


def weights_path(folder: Path) -> Path:
    """The weights file of a PEFT folder, which may be missing; a pickle in its place is refused."""
    if not (folder / WEIGHTS_FILE).is_file() and (folder / _PICKLE_FILE).is_file():
        raise ArtifactError(
            f"{folder / _PICKLE_FILE} is a pickle, which can run any code when it is opened; load it in PEFT "
            "where you trust it and write it anew with save_pretrained(folder, safe_serialization=True)."
        )
    return folder / WEIGHTS_FILE


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


def from_front(front: Front, base: Base) -> Learnt:
    """What to write of a front made on ``base``; the inverse of ``to_front``.

    Of a prefix only keys and values are kept, not what it alone makes the model expect next.

    Raises:
        ArtifactError: a KV prefix over layers of unequal shapes, which the format cannot hold.
        WrongBaseError: a prefix of another base.
    """
    if isinstance(front, Prefix):
        return _from_prefix(base.accept(front), base)
    about = base.text_config
    geometry = Geometry(about.num_hidden_layers, about.num_attention_heads, base.width)
    return Learnt(front.detach().to("cpu", torch.float32).clone(), "prompt-tuning", geometry)


def _to_prefix(learnt: Learnt, base: Base) -> Prefix:
    about = learnt.geometry
    heads = about.num_attention_heads
    made_for: list[tuple[int, ...]] = [(heads, about.token_dim // heads)] * about.num_layers
    with torch.no_grad():
        here = _shapes(base.prefill(torch.empty(0, base.width, device=base.device)))
    if made_for != here:
        raise ArtifactError(
            f"The prefix is for {_described(made_for)}, but {base.name} has {_described(here)}; "
            "load the base it was learnt on."
        )
    sides = learnt.tensor.view(learnt.positions, len(here), 2, *here[0])  # [P, L, 2, K, D]
    sides = sides.to(base.device, base.dtype).permute(1, 2, 3, 0, 4).contiguous()  # [L, 2, K, P, D]
    return Prefix(tuple(sides[:, 0]), tuple(sides[:, 1]), None, base.fingerprint)


def _from_prefix(prefix: Prefix, base: Base) -> Learnt:
    shapes = _shapes(prefix)
    layers = base.text_config.num_hidden_layers
    if len(set(shapes)) != 1 or len(shapes) != layers:
        raise ArtifactError(
            f"{base.name} has {layers} layers and {_described(shapes)}; a prefix can be saved only where "
            "every layer has keys and values of its own and of one shape, so learn a soft prompt instead."
        )
    sides = torch.stack([t for pair in zip(prefix.keys, prefix.values, strict=True) for t in pair])
    rows = (
        sides.detach().to("cpu", torch.float32).permute(2, 0, 1, 3).flatten(1)
    )  # [2L, K, P, D] -> [P, 2L*K*D]
    heads, width = shapes[0]
    return Learnt(rows.contiguous(), "prefix-tuning", Geometry(layers, heads, heads * width))


def _shapes(prefix: Prefix) -> list[tuple[int, ...]]:
    """(K, D) of each layer; (K, D, K, D) where keys and values differ."""
    pairs = zip(prefix.keys, prefix.values, strict=True)
    both = [((k.shape[0], k.shape[2]), (v.shape[0], v.shape[2])) for k, v in pairs]
    return [k if k == v else (*k, *v) for k, v in both]


def _described(shapes: list[tuple[int, ...]]) -> str:
    kinds = sorted({"x".join(map(str, shape)) for shape in shapes})
    return f"{len(shapes)} layers of key/value heads {' and '.join(kinds)}"
