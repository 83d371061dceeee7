"""KV prefixes that PEFT's format has no place for: knows two files, one tensor for each side of each layer.

PEFT keeps keys and values as one table of equal layers. Layers that differ in width, whose keys and values
do, that share those of others, or that keep a state, need a name each: ``keys.LAYER`` and ``values.LAYER``
``[K, P, D]``, ``conv.LAYER.N`` and ``recurrent.LAYER.N``. They lie in PEFT's two files, under a type that
PEFT does not know and so refuses by name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from softprompt.atomic import write_bytes
from softprompt.base.model import Base
from softprompt.errors import ArtifactError
from softprompt.library.changed import hash_of
from softprompt.library.files import json_object
from softprompt.library.payload import Met, Ride
from softprompt.library.peft_format import (
    CONFIG_FILE,
    CONFIG_LIMIT,
    MOST_POSITIONS,
    WEIGHTS_FILE,
    Learnt,
    PeftConfig,
    config_bytes,
    parse_config,
    weights_path,
)
from softprompt.library.tensor_file import MOST_BYTES, refuse_changed, shapes_of, stream, write_tensors
from softprompt.packages import Need
from softprompt.prefix import Prefix, StateKey

__all__ = ["TYPE", "LayeredPrefix", "PromptPayload", "check", "read", "tensors_of"]

TYPE = "LAYERED_PREFIX"
_NAME = re.compile(r"(keys|values)\.\d{1,6}|(conv|recurrent)\.\d{1,6}\.\d{1,3}")


class _Config(PeftConfig):
    num_virtual_tokens: Annotated[int, Field(ge=1, le=MOST_POSITIONS)]
    """not a whole number from 1 to 65,536"""


@dataclass(frozen=True, eq=False)
class LayeredPrefix:
    """What each layer remembers of P positions, by the names of the file.

    Attributes:
        tensors: fp32, as the module says.
        positions: P.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    positions: int

    @classmethod
    def of(cls, prefix: Prefix, base: Base) -> LayeredPrefix:
        """What to keep of a prefix of ``base``; not what it alone makes the model expect next.

        Raises:
            WrongBaseError: it is of another base.
        """
        kept = {
            name: t.detach().to("cpu", torch.float32) for name, t in tensors_of(base.accept(prefix)).items()
        }
        return cls(kept, prefix.length)

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    @property
    def kind(self) -> str:
        return "prefix-tuning"

    @property
    def opened_by(self) -> str:
        return "softprompt"

    @property
    def numbers(self) -> int:
        """Those that are learnt: keys and values."""
        return sum(t.numel() for name, t in self.tensors.items() if name.startswith(("keys.", "values.")))

    @property
    def front_template(self) -> str:
        return ""

    def write(self, folder: Path, base_name: str, revision: str | None) -> str:
        """Write both files into ``folder``; see ``Payload``."""
        config = _Config(
            base_model_name_or_path=base_name,
            num_virtual_tokens=self.positions,
            peft_type=TYPE,
            revision=revision,
        )
        write_tensors(folder / WEIGHTS_FILE, self.tensors)
        write_bytes(folder / CONFIG_FILE, config_bytes(config))
        return hash_of(folder, WEIGHTS_FILE)

    def meet(self, base: Base) -> Met:
        """The base itself, behind it; see ``Payload``."""
        return Met(base, self._on(base), None)

    def ride(self, base: Base) -> Ride:
        """Nothing but what stands in front; see ``Payload``."""
        return Ride(self._on(base), None)

    def merged(self, base: Base) -> Base:
        """Refused, as of every prompt; see ``Payload``."""
        return Learnt.merged(self, base)  # type: ignore[arg-type]

    def adopted(self, base: Base) -> LayeredPrefix:
        return self

    def _on(self, base: Base) -> Prefix:
        with torch.no_grad():
            like = base.prefill(torch.empty(0, base.width, device=base.device))
        here = {name: _shape(name, t) for name, t in tensors_of(like).items()}
        made_for = {name: _shape(name, t) for name, t in self.tensors.items()}
        odd = sorted({*here.items()} ^ {*made_for.items()})
        if odd:
            raise ArtifactError(
                f"The prefix and {base.name} differ in {odd[0][0]} ({made_for.get(odd[0][0], 'none')} and "
                f"{here.get(odd[0][0], 'none')}); load the base it was learnt on."
            )
        keys, values = (
            tuple(self.tensors[f"{side}.{layer}"].to(base.device, base.dtype) for layer in like.places)
            for side in ("keys", "values")
        )
        states = {key: self.tensors[_name(key)].to(like.states[key]) for key in like.states}
        return Prefix(keys, values, None, base.fingerprint, like.layers, states)


PromptPayload = Learnt | LayeredPrefix
"""What stands in front of a text and changes no model."""


def tensors_of(prefix: Prefix) -> dict[str, Tensor]:
    """Everything a prefix holds, by the names of the file."""
    sides = {"keys": prefix.keys, "values": prefix.values}
    named = {f"{side}.{layer}": ts[at] for layer, at in prefix.places.items() for side, ts in sides.items()}
    return named | {_name(key): state for key, state in prefix.states.items()}


def _name(key: StateKey) -> str:
    kind, layer, number = key
    return f"{kind}.{layer}.{number}"


def _shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """What must be the base's: heads and widths, not how many positions."""
    shape = tuple(tensor.shape)
    return (shape[0], shape[2]) if name.startswith(("keys.", "values.")) else shape


# Reading -----------------------------------------------------------------------------------------


def read(folder: Path, sha256: str | None = None) -> tuple[LayeredPrefix, PeftConfig]:
    """The prefix in a folder, and its configuration.

    Args:
        folder: with both files.
        sha256: hash the weights must have, in hex, if it is known.

    Raises:
        ArtifactError: a file is missing, damaged or changed.
        ResourceError: a file cannot be read.
    """
    config, path = _checked(folder)
    digest = hashlib.sha256()
    tensors = dict(stream(path, digest, torch.float32))
    refuse_changed(path, digest, sha256)
    return LayeredPrefix(tensors, config.num_virtual_tokens), config


def check(folder: Path) -> int:
    """P of a prefix whose files were checked but for the weights themselves; errors as in ``read``."""
    return _checked(folder)[0].num_virtual_tokens


def _checked(folder: Path) -> tuple[_Config, Path]:
    """The configuration and the file of its tensors, found to belong together."""
    about = folder / CONFIG_FILE
    config = parse_config(_Config, json_object(about, CONFIG_LIMIT), about)
    path = weights_path(folder)
    shapes = shapes_of(path)
    if path.stat().st_size > MOST_BYTES:
        raise ArtifactError(f"{path} is larger than {MOST_BYTES // 2**30} GiB, which no prefix needs.")
    sides = {name: shape for name, shape in shapes.items() if name.startswith(("keys.", "values."))}
    fits = all(len(shape) == 3 and shape[1] == config.num_virtual_tokens for shape in sides.values())
    layers = [
        {name.partition(".")[2] for name in sides if name.startswith(side)} for side in ("keys", "values")
    ]
    if not sides or not fits or layers[0] != layers[1] or not all(map(_NAME.fullmatch, shapes)):
        raise ArtifactError(
            f"{path} does not hold keys and values of {config.num_virtual_tokens} positions, as its "
            "configuration says; the two files do not belong together."
        )
    return config, path
