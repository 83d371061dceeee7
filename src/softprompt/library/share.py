"""Prompts on the model hub: brought by ``hub:OWNER/NAME``, pushed without a word of their machine.

It knows artifacts and cards; how the hub is asked is ``checkpoints/hub.py``'s.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from softprompt.atomic import write_bytes
from softprompt.checkpoints import hub
from softprompt.errors import ArtifactError, BaseModelError
from softprompt.library.card import CARD_FILE, Card, card_json
from softprompt.library.formats import opened_by
from softprompt.library.full_format import MODEL_CONFIG
from softprompt.library.model_card import model_card
from softprompt.library.peft_format import CONFIG_FILE

__all__ = ["HUB", "brought", "of_the_hub", "public", "push"]

HUB = "hub:"
_SPEC = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
_PATTERNS = (*hub.DESCRIPTION, "*.safetensors")
_ABSOLUTE = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[/\\](?:[^/\\\"']+[/\\])*(?=[^/\\\s\"'])")
"""The folders of an absolute path, in whatever text it stands."""


def of_the_hub(spec: str) -> bool:
    """Whether it is spelt like ``OWNER/NAME[@REVISION]``, with or without ``hub:`` before it."""
    return _SPEC.fullmatch(spec.removeprefix(HUB)) is not None


def brought(spec: str, *, bare: bool = False) -> Path:
    """The local folder of ``hub:OWNER/NAME[@REVISION]``.

    Args:
        spec: the name.
        bare: whether it may lack a card, as what PEFT and transformers write.

    Raises:
        ArtifactError: there is no such prompt, or this is no name of one.
        ResourceError: the network or the disk failed on the way.
    """
    parts = _SPEC.fullmatch(spec.removeprefix(HUB))
    if parts is None:
        raise ArtifactError(
            f"{spec!r} is no prompt of the hub; write hub:OWNER/NAME or hub:OWNER/NAME@REVISION."
        )
    repo, revision = parts["repo"], parts["revision"]
    try:
        files = (CARD_FILE, CONFIG_FILE, MODEL_CONFIG) if bare else (CARD_FILE,)
        offline = hub.must_stay_local(repo, revision, files=files)
    except BaseModelError as error:
        raise ArtifactError(str(error)) from error
    folder = hub.bring(repo, revision, _PATTERNS, offline=offline)
    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(
            f"The hub repository {repo} has no safetensors weights, and pickled ones, which can run code "
            "when opened, are never read; load it in PEFT where you trust it and write it anew with "
            "save_pretrained(folder)."
        )
    return folder


def push(folder: Path, card: Card, repo: str, *, private: bool = False) -> str:
    """Put an artifact on the hub as ``repo`` and return its address.

    Card and README go without the folders of this machine: of paths the last part is left.

    Raises:
        ArtifactError: ``repo`` is no OWNER/NAME.
        ResourceError: the hub refuses, or cannot be reached.
    """
    if _SPEC.fullmatch(repo) is None or "@" in repo:
        raise ArtifactError(f"{repo!r} is no place on the hub; write OWNER/NAME.")
    shown = public(card)
    with tempfile.TemporaryDirectory() as made:
        staging = Path(made) / "artifact"
        shutil.copytree(folder, staging)
        write_bytes(staging / CARD_FILE, card_json(shown).encode())
        write_bytes(staging / "README.md", model_card(shown, opened_by(folder)).encode())
        described = staging / CONFIG_FILE
        if described.exists() and card.base.name != shown.base.name:
            text = described.read_text(encoding="utf-8")
            write_bytes(described, text.replace(card.base.name, shown.base.name).encode())
        return hub.push(staging, repo, private=private)


def public(card: Card) -> Card:
    """A card that names no folder of the machine it was made on."""
    return Card.model_validate(
        _without_folders(card.model_dump(exclude={"template"})) | {"template": card.template}
    )


def _without_folders(value: Any) -> Any:
    if isinstance(value, str):
        return _ABSOLUTE.sub("", value)
    if isinstance(value, dict):
        return {key: inner if key in _SAID else _without_folders(inner) for key, inner in value.items()}
    return [_without_folders(inner) for inner in value] if isinstance(value, list | tuple) else value


_SAID = ("input", "target", "front", "init_text", "labels", "label_aliases", "choices")
"""Settings that are texts of a job; a slash in one is no path."""
