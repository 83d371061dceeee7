"""IA3 vectors in PEFT's format: knows its two files and which layers they are for; adds the words in front.

PEFT keeps them as ``adapter_config.json`` and ``adapter_model.safetensors``, with tensors called
``base_model.model.LAYER.ia3_l`` ``[out, 1]``.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from softprompt.atomic import write_bytes
from softprompt.base.copies import Change
from softprompt.base.model import Base
from softprompt.errors import ArtifactError
from softprompt.library.changed import (
    ChangedModel,
    front_on,
    front_positions,
    hash_of,
    merged_into,
    read_front,
    write_front,
)
from softprompt.library.files import json_object
from softprompt.library.lora_format import shortest_targets, sides_of
from softprompt.library.payload import Met, Ride
from softprompt.library.peft_format import (
    CONFIG_FILE,
    CONFIG_LIMIT,
    WEIGHTS_FILE,
    Off,
    PeftConfig,
    config_bytes,
    parse_config,
    weights_path,
)
from softprompt.library.tensor_file import MOST_BYTES, refuse_changed, shapes_of, stream, write_tensors
from softprompt.methods.ia3 import rescaled, rescaling
from softprompt.packages import Need
from softprompt.prefix import Front

__all__ = ["Ia3ConfigFile", "Rescaling", "check", "read"]

_NAME = re.compile(r"base_model\.model\.([A-Za-z0-9_.]{1,300}\.ia3_l)")
_Name = Annotated[str, Field(min_length=1, max_length=300)]
_EMPTY: list[str] = []


class Ia3ConfigFile(PeftConfig):
    """IA3 (Liu et al. 2022) in PEFT's words, of layers whose outputs are multiplied."""

    exclude_modules: Off = None
    """so some of its layers are left out by a rule"""
    fan_in_fan_out: Any = False
    feedforward_modules: Annotated[list[_Name], Field(max_length=0)] | None = _EMPTY
    """so what some layers take is multiplied, and not what they give"""
    init_ia3_weights: Any = True
    target_modules: Annotated[list[_Name], Field(min_length=1, max_length=2**16)]
    """not a list of names; a stranger's pattern is not run, so write the layers' names there"""


@dataclass(frozen=True, eq=False)
class Rescaling(ChangedModel):
    """Learnt vectors, and the words in front of the model that has them.

    Attributes:
        change: settings targets (ends of the layers' names); the vectors ``[out]`` by their names in PEFT.
        transposed: whether the layers are stored as GPT-2's are; PEFT asks for it.
    """

    transposed: bool = False

    @classmethod
    def of(cls, base: Base, front: Front, change: Change) -> Rescaling:
        """What to keep of vectors that are at work in ``base``."""
        assert isinstance(front, Tensor)
        layers = [_layer(name) for name in change.tensors]
        targets = shortest_targets(base, layers, change.settings["targets"])
        inner = [base.model.get_submodule(name).inner for name in layers]
        transposed = any(not hasattr(layer, "in_features") for layer in inner)
        return cls(Change("ia3", {"targets": targets}, change.tensors), front, transposed)

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    @property
    def kind(self) -> str:
        return "ia3"

    @property
    def opened_by(self) -> str:
        return "peft"

    def write(self, folder: Path, base_name: str, revision: str | None) -> str:
        """Write PEFT's two files and the front's; see ``Payload``."""
        config = Ia3ConfigFile(
            base_model_name_or_path=base_name,
            fan_in_fan_out=self.transposed,
            peft_type="IA3",
            revision=revision,
            target_modules=sorted(self.change.settings["targets"]),
        )
        tensors = {
            f"base_model.model.{name}": vector.to("cpu", torch.float32)[:, None]
            for name, vector in self.change.tensors.items()
        }
        write_tensors(folder / WEIGHTS_FILE, tensors)
        write_front(folder, self.front)
        write_bytes(folder / CONFIG_FILE, config_bytes(config))
        return hash_of(folder, WEIGHTS_FILE)

    def meet(self, base: Base) -> Met:
        """A copy of ``base`` whose layers are rescaled; see ``Payload``."""
        front = self._fitted(base)
        return Met(rescaled(base, self.change), front, self.change)

    def ride(self, base: Base) -> Ride:
        """What every token's outputs are multiplied by in the base's own pass; see ``Payload``."""
        return Ride(self._fitted(base), rescaling(base, self.change))

    def merged(self, base: Base) -> Base:
        """A copy of ``base`` whose weights and biases are rescaled; see ``Payload``."""
        self._fitted(base)
        return merged_into(base, rescaling(base, self.change))

    def adopted(self, base: Base) -> Rescaling:
        """Behind the start token, which PEFT's usual training sets before every text."""
        return self if self.positions else replace(self, front=base.embed(base.start_ids).float())

    def _fitted(self, base: Base) -> Tensor:
        """The words in front, once they and every vector are known to fit the base."""
        modules = dict(base.model.named_modules())
        for name, vector in self.change.tensors.items():
            sides = sides_of(modules.get(_layer(name)))
            if sides is None or sides[1] != len(vector):
                there = f"gives {sides[1]}" if sides else "is no linear layer or not there"
                raise ArtifactError(
                    f"The vectors take {_layer(name)} to give {len(vector)} numbers, which in {base.name} "
                    f"{there}; load the base they were learnt on."
                )
        return front_on(base, self.front)


# Reading -----------------------------------------------------------------------------------------


def read(folder: Path, sha256: str | None = None) -> tuple[Rescaling, Ia3ConfigFile]:
    """The vectors in a folder, and PEFT's configuration of them.

    Args:
        folder: of IA3 for a causal language model.
        sha256: hash the weights must have, in hex, if it is known.

    Raises:
        ArtifactError: a file is missing, damaged, changed, or asks for what cannot be done exactly.
        ResourceError: a file cannot be read.
    """
    config, path = _checked(folder)
    digest = hashlib.sha256()
    vectors = {_inside(name): tensor[:, 0] for name, tensor in stream(path, digest, torch.float32)}
    front = read_front(folder, digest)
    refuse_changed(path, digest, sha256)
    targets = [t for t in config.target_modules if any(_ends(_layer(name), t) for name in vectors)]
    change = Change("ia3", {"targets": sorted(set(targets))}, vectors)
    return Rescaling(change, front, config.fan_in_fan_out is True), config


def check(folder: Path) -> int:
    """P of vectors whose files were checked but for the weights themselves; errors as in ``read``."""
    _checked(folder)
    return front_positions(folder)


def _checked(folder: Path) -> tuple[Ia3ConfigFile, Path]:
    """The configuration and the file of its weights, found to belong together."""
    about = folder / CONFIG_FILE
    config = parse_config(Ia3ConfigFile, json_object(about, CONFIG_LIMIT), about)
    path = weights_path(folder)
    shapes = shapes_of(path)
    if path.stat().st_size > MOST_BYTES:
        raise ArtifactError(f"{path} is larger than {MOST_BYTES // 2**30} GiB, which no vectors need.")
    if not shapes:
        raise ArtifactError(f"{path} holds no vectors; restore it from a good copy.")
    for name, shape in shapes.items():
        if not _NAME.fullmatch(name) or len(shape) != 2 or shape[1] != 1:
            raise ArtifactError(
                f"{path} has more than vectors for the outputs of linear layers in it, such as the tensor "
                f"{name[:120]!a}; use it with PEFT."
            )
        if not any(_ends(_layer(_inside(name)), target) for target in config.target_modules):
            raise ArtifactError(
                f"{path} rescales {_layer(_inside(name))}, which target_modules does not name; the two files "
                "do not belong together."
            )
    return config, path


def _inside(name: str) -> str:
    found = _NAME.fullmatch(name)
    assert found is not None
    return found[1]


def _layer(name: str) -> str:
    return name.removesuffix(".ia3_l")


def _ends(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")
