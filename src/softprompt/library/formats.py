"""Every form an artifact is kept in: which reader a folder needs, which writer the result of a method.

The only place in the library that knows them all by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from softprompt.base.copies import Change
from softprompt.base.model import Base
from softprompt.library import full_format, ia3_format, lora_format, peft_format, prefix_format
from softprompt.library.files import json_object
from softprompt.library.payload import Payload
from softprompt.library.peft_format import CONFIG_FILE, CONFIG_LIMIT
from softprompt.prefix import Front, Prefix

__all__ = ["Contents", "check", "kept_as", "opened_by", "payload", "read"]


class Contents(NamedTuple):
    """What a folder holds, and the base it names itself: ``base_name`` is empty where it names none."""

    payload: Payload
    base_name: str
    revision: str | None


class _Format(NamedTuple):
    read: Callable[[Path, str | None], Contents]
    check: Callable[[Path], int]
    opened_by: str = "peft"


def read(folder: Path, sha256: str | None = None) -> Contents:
    """What a folder holds, whatever its kind.

    Args:
        folder: with PEFT's two files, or of a transformers model.
        sha256: hash the weights must have, in hex, if it is known.

    Raises:
        ArtifactError: a file is missing, damaged, changed, or of no kind that is known here.
        ResourceError: a file cannot be read.
    """
    return _format(folder).read(folder, sha256)


def check(folder: Path) -> int:
    """P of what a folder holds, checked but for the weights themselves; errors as in ``read``."""
    return _format(folder).check(folder)


def payload(base: Base, front: Front, change: Change | None) -> Payload:
    """What to keep of a front, and of the change that makes ``base`` the model it is read with."""
    if change is None and isinstance(front, Prefix) and not peft_format.has_place_for(front, base):
        return prefix_format.LayeredPrefix.of(front, base)
    if change is None:
        return peft_format.from_front(front, base)
    return _WRITERS[change.kind](base, front, change)


def opened_by(folder: Path) -> str:
    """Which library reads a folder's files beside softprompt; see ``Payload``."""
    return _format(folder).opened_by


def kept_as(method: str) -> str:
    """The kind of payload that the result of a method is kept as."""
    return _KEPT_AS.get(method, method)


def _read_prompt(folder: Path, sha256: str | None) -> Contents:
    prompt, config = peft_format.read(folder, sha256)
    return Contents(prompt, config.base_model_name_or_path or "", config.revision)


def _read_layers(folder: Path, sha256: str | None) -> Contents:
    prefix, config = prefix_format.read(folder, sha256)
    return Contents(prefix, config.base_model_name_or_path or "", config.revision)


def _read_lora(folder: Path, sha256: str | None) -> Contents:
    adapter, config = lora_format.read(folder, sha256)
    return Contents(adapter, config.base_model_name_or_path or "", config.revision)


def _read_ia3(folder: Path, sha256: str | None) -> Contents:
    vectors, config = ia3_format.read(folder, sha256)
    return Contents(vectors, config.base_model_name_or_path or "", config.revision)


def _read_model(folder: Path, sha256: str | None) -> Contents:
    return Contents(full_format.read(folder, sha256), "", None)


_PROMPT = _Format(_read_prompt, peft_format.check)
_MODEL = _Format(_read_model, full_format.check, "transformers")
_BY_TYPE = {
    "LORA": _Format(_read_lora, lora_format.check),
    "IA3": _Format(_read_ia3, ia3_format.check),
    prefix_format.TYPE: _Format(_read_layers, prefix_format.check, "softprompt"),
}
"""Readers by ``peft_type``; every other one is a prompt's, which refuses by name what it cannot read."""

_WRITERS: dict[str, Callable[[Base, Front, Change], Payload]] = {
    "lora": lora_format.Adapter.of,
    "ia3": ia3_format.Rescaling.of,
    "full": full_format.FreshModel.of,
}
_KEPT_AS = {"text": "prompt-tuning"}


def _format(folder: Path) -> _Format:
    """The format of a folder, by what its files say."""
    has_adapter = os.path.lexists(folder / CONFIG_FILE)
    if not has_adapter and os.path.lexists(folder / full_format.MODEL_CONFIG):
        return _MODEL
    kind = json_object(folder / CONFIG_FILE, CONFIG_LIMIT).get("peft_type")
    return _BY_TYPE.get(kind, _PROMPT) if isinstance(kind, str) else _PROMPT
