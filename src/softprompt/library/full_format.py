"""A fine-tuned model as a transformers folder: knows its files, and reads only the base's own shapes.

``config.json``, the tokenizer's files and ``model.safetensors`` make a folder that transformers and
``load_base`` open like any model. Met with its base, only the weights are read, one tensor after the other.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path

from torch import Tensor

from softprompt.atomic import plain_disk_errors
from softprompt.base.copies import Change
from softprompt.base.model import Base
from softprompt.checkpoints.hub import DESCRIPTION
from softprompt.errors import ArtifactError
from softprompt.library.changed import (
    FRONT_FILE,
    MODEL_FILE,
    ChangedModel,
    front_on,
    front_positions,
    hash_of,
    read_front,
    write_front,
)
from softprompt.library.files import json_object, opened, refuse_links_out
from softprompt.library.payload import Met, Payload
from softprompt.library.tensor_file import (
    check_finite,
    copy_tensors,
    refuse_changed,
    shapes_of,
    stream,
    write_tensors,
)
from softprompt.methods.full import replaced
from softprompt.packages import Need
from softprompt.prefix import Front

__all__ = ["MODEL_CONFIG", "FreshModel", "SavedModel", "check", "merged_model", "read"]

MODEL_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_CONFIG_LIMIT = 2**22
_NOT_THE_MODELS = ("softprompt.json", "adapter_config.json", _INDEX)
_MOST_FILES = 32
_LARGEST_FILE = 2**28


@dataclass(frozen=True, eq=False)
class FreshModel(ChangedModel):
    """A fine-tuned model in memory.

    Attributes:
        base: the copy that has the learnt weights; gives configuration and tokenizer.
        change: every weight by name.
        front: fp32 ``[P, E]``, often of no positions.
    """

    base: Base

    @classmethod
    def of(cls, base: Base, front: Front, change: Change) -> FreshModel:
        """What to keep of a model that ``base`` is."""
        assert isinstance(front, Tensor)
        return cls(change, front, base)

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    @property
    def kind(self) -> str:
        return "full"

    @property
    def opened_by(self) -> str:
        return "transformers"

    def write(self, folder: Path, base_name: str, revision: str | None) -> str:
        """Write the folder of a model, and the front's file; see ``Payload``."""
        write_tensors(folder / MODEL_FILE, dict(self.change.tensors) | _buffers(self.base))
        write_front(folder, self.front)
        with plain_disk_errors(folder):
            _describe(self.base, folder)
        return hash_of(folder, MODEL_FILE)

    def meet(self, base: Base) -> Met:
        """A copy of ``base`` with these weights; see ``Payload``."""
        return Met(replaced(base, self.change), front_on(base, self.front), self.change)

    def ride(self, base: Base) -> None:
        """It needs a model of its own; see ``Payload``."""

    def merged(self, base: Base) -> Base:
        """As in ``meet``: its weights are the whole of it."""
        return self.meet(base).base

    def adopted(self, base: Base) -> FreshModel:
        return self


def merged_model(base: Base, payload: Payload) -> FreshModel:
    """Whatever changes a model as a model of its own, with the change in its weights.

    Raises:
        ArtifactError: it changes no weights, does not fit ``base``, or ``base`` keeps them in few bits.
    """
    model = payload.merged(base)
    change = Change("full", {}, dict(model.model.named_parameters()))
    return FreshModel.of(model, payload.meet(base).front, change)


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A fine-tuned model on disk; its weights are read when it meets its base.

    Attributes:
        folder: of a transformers model.
        sha256: hash the weights must have, in hex, if it is known.
        adopted_front: ``[P, E]`` for a folder that has none; None otherwise.
    """

    folder: Path
    sha256: str | None
    adopted_front: Tensor | None = field(default=None, repr=False)

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    @property
    def kind(self) -> str:
        return "full"

    @property
    def opened_by(self) -> str:
        return "transformers"

    @cached_property
    def positions(self) -> int:
        return front_positions(self.folder) if self.adopted_front is None else len(self.adopted_front)

    @cached_property
    def numbers(self) -> int:
        return sum(prod(shape) for shape in shapes_of(self.folder / MODEL_FILE).values())

    @property
    def front_template(self) -> str:
        return ""

    def write(self, folder: Path, base_name: str, revision: str | None) -> str:
        """Copy the folder of a model, and the front's file; see ``Payload``."""
        descriptions = list(_descriptions(self.folder))
        weights = (self.folder / name for name in (MODEL_FILE, FRONT_FILE))
        refuse_links_out(self.folder, (*weights, *descriptions))
        digest = hashlib.sha256()
        copy_tensors(self.folder / MODEL_FILE, folder / MODEL_FILE, digest)
        front = read_front(self.folder, digest)
        refuse_changed(self.folder / MODEL_FILE, digest, self.sha256)
        write_front(folder, front if self.adopted_front is None else self.adopted_front)
        for file in descriptions:
            with opened(file), plain_disk_errors(folder / file.name):
                shutil.copyfile(file, folder / file.name)
        return hash_of(folder, MODEL_FILE)

    def meet(self, base: Base) -> Met:
        """A copy of ``base`` with these weights, held in memory once; see ``Payload``."""
        path = self.folder / MODEL_FILE
        _check_shapes(path, base)
        digest, tensors = hashlib.sha256(), {}
        wanted = dict(base.model.named_parameters())
        for name, tensor in stream(path, digest):
            if name in wanted:
                tensors[name] = tensor.to(base.device, base.dtype)
                check_finite(tensors[name], f"{path}: in {base.dtype}, {name}", "load the base in float32")
        front = read_front(self.folder, digest)
        refuse_changed(path, digest, self.sha256)
        if self.adopted_front is not None:
            front = self.adopted_front
        change = Change("full", {}, tensors)
        return Met(replaced(base, change), front_on(base, front), change)

    def ride(self, base: Base) -> None:
        """It needs a model of its own; see ``Payload``."""

    def merged(self, base: Base) -> Base:
        """As in ``meet``: its weights are the whole of it."""
        return self.meet(base).base

    def adopted(self, base: Base) -> SavedModel:
        """Behind the start token, which usual training sets before every text."""
        if self.positions:
            return self
        return replace(self, adopted_front=base.embed(base.start_ids).float().cpu())


# Reading -----------------------------------------------------------------------------------------


def read(folder: Path, sha256: str | None = None) -> SavedModel:
    """A fine-tuned model's folder, its files checked but for the weights themselves.

    Args:
        folder: of a transformers model in one safetensors file.
        sha256: hash the weights must have, in hex, if it is known; held against them when they are read.

    Raises:
        ArtifactError: a file is missing or damaged.
        ResourceError: a file cannot be read.
    """
    check(folder)
    return SavedModel(folder, sha256)


def check(folder: Path) -> int:
    """P of a fine-tuned model; errors as in ``read``."""
    json_object(folder / MODEL_CONFIG, _CONFIG_LIMIT)
    if not (folder / MODEL_FILE).is_file() and (folder / _INDEX).is_file():
        raise ArtifactError(
            f"{folder} holds a model in several files; save it in one, with save_pretrained(folder, "
            'max_shard_size="1TB").'
        )
    shapes_of(folder / MODEL_FILE)
    return front_positions(folder)


def _check_shapes(path: Path, base: Base) -> None:
    """Hold the file's header against the base before any weight is read."""
    found = shapes_of(path)
    wanted = {name: tuple(p.shape) for name, p in base.model.named_parameters()}
    kept = {name: tuple(b.shape) for name, b in _buffers(base).items()}
    strange = {name for name, shape in found.items() if (wanted | kept).get(name) != shape}
    odd = sorted(strange | (wanted.keys() - found.keys()))
    if odd:
        raise ArtifactError(
            f"{path} does not hold the weights of {base.name}: they differ in {odd[0][:120]!a}; load the "
            "base it was learnt on."
        )


# The model's own files ---------------------------------------------------------------------------


def _buffers(base: Base) -> dict[str, Tensor]:
    """What a model keeps beside its weights and does not learn."""
    saved = base.model.state_dict().keys()
    return {name: buffer for name, buffer in base.model.named_buffers() if name in saved}


def _describe(base: Base, folder: Path) -> None:
    """Write configuration and tokenizer, as transformers does beside the weights."""
    config = copy.deepcopy(base.config)
    config.architectures = [type(base.model).__name__]
    config.dtype = base.dtype
    if base.model.get_output_embeddings().weight is not base.embedding.weight:
        config.get_text_config().tie_word_embeddings = False  # one of two that were tied was changed
    config.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    if getattr(base.model, "generation_config", None) is not None:
        with contextlib.suppress(ValueError):  # some hold settings that transformers will not write
            base.model.generation_config.save_pretrained(folder)
    for file in folder.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())


def _descriptions(folder: Path) -> Iterator[Path]:
    """Configuration and tokenizer files of a model's folder, no code among them."""
    names = sorted({file.name for pattern in DESCRIPTION for file in folder.glob(pattern)})
    for name in [name for name in names if name not in _NOT_THE_MODELS][:_MOST_FILES]:
        if (folder / name).is_file():
            if (folder / name).stat().st_size > _LARGEST_FILE:
                raise ArtifactError(
                    f"{folder / name} is larger than {_LARGEST_FILE // 2**20} MiB, which no tokenizer needs; "
                    "restore it from a good copy."
                )
            yield folder / name
