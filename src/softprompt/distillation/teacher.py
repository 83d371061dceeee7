"""Whom a short prompt is to answer like: a model and a long prefix, from a text or from a saved prompt.

It knows fronts, prompts and a base; it does not know questions, nor who learns.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from softprompt.base.model import Base
from softprompt.config import TeacherConfig
from softprompt.errors import ConfigError, DataError, ResourceError
from softprompt.library.prompt import load_prompt
from softprompt.methods.front import FrontPart, Words
from softprompt.methods.text import word_ids
from softprompt.prefix import Prefix

__all__ = ["Teacher", "teacher_of", "text_of"]


@dataclass(frozen=True, eq=False)
class Teacher:
    """A reader of questions.

    Attributes:
        base: the model it reads with: the frozen base, or a changed copy of it.
        prefix: what it has in mind.
        ids: the tokens of its text; none where it is a saved prompt.
        identity: names model and prefix, for what it answered to be known again.
        about: what it is, in a few words.
    """

    base: Base
    prefix: Prefix
    ids: tuple[int, ...]
    identity: str
    about: str


def text_of(config: TeacherConfig) -> str | None:
    """The text to be learnt, as a front template; None where it is a saved prompt.

    Raises:
        ResourceError: the file cannot be read.
        DataError: it is empty or no UTF-8 text.
    """
    if config.file is None:
        return config.text
    try:
        text = Path(config.file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{config.file} is not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise ResourceError(f"The file {config.file!r} cannot be read: {error.strerror}.") from error
    if not text.strip():
        raise DataError(f"{config.file} has no text to learn.")
    return text.replace("{", "{{").replace("}", "}}")


def teacher_of(
    config: TeacherConfig, base: Base, parts: tuple[FrontPart, ...], library: str | Path
) -> Teacher:
    """The teacher a configuration names.

    Args:
        config: names it.
        base: the frozen model.
        parts: the words of its text, where it is one, demonstrations filled in.
        library: of saved prompts.

    Raises:
        DataError: the text is longer than the base's context.
        ArtifactError, WrongBaseError: there is no such prompt, or it belongs to another base.
    """
    if config.prompt is not None:
        prompt = load_prompt(config.prompt, base, library)
        named = hashlib.sha256(f"{prompt.card.weights_sha256}{base.fingerprint}{base.dtype}".encode())
        return Teacher(prompt.base, prompt.prefix, (), named.hexdigest(), f"the saved prompt {prompt.name}")
    if not all(isinstance(part, Words) for part in parts):
        raise ConfigError('teacher.text has "{soft:N}"; a text that is to be learnt has words only.')
    ids = word_ids(base, [part for part in parts if isinstance(part, Words)])
    room = base.max_positions
    if room is not None and len(ids) >= room:
        raise DataError(
            f"The text has {len(ids):,} tokens, but {base.name} holds {room:,}; shorten it, or take a base "
            "with a longer context."
        )
    with torch.no_grad():
        prefix = base.prefill(base.embed(ids)).detached()
    named = hashlib.sha256(f"{ids}{base.fingerprint}{base.dtype}".encode())
    return Teacher(base, prefix, tuple(ids), named.hexdigest(), f"a text of {len(ids):,} tokens")
