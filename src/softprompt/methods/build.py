"""From a configuration to the method it describes: one builder a kind, in a table.

The only place that knows every method by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from softprompt.base.model import Base
from softprompt.config import PromptTuningConfig, TextConfig
from softprompt.errors import ConfigError
from softprompt.methods.front import Soft, Words, parse_front, with_demonstrations
from softprompt.methods.init import from_labels, from_random, from_text, from_vocabulary
from softprompt.methods.method import Method
from softprompt.methods.prompt_tuning import PromptTuning, Residual
from softprompt.methods.text import TextFront

__all__ = ["Material", "build_method"]


@dataclass(frozen=True)
class Material:
    """What a method may ask of the job it is built for.

    Attributes:
        demonstrations: ``k`` -> the text of k solved training rows.
        label_words: the words of the labels, empty for free text.
        artifact: a saved prompt's name or folder -> its front ``[P, E]``.
        seed: fixes every draw.
    """

    demonstrations: Callable[[int], str]
    artifact: Callable[[str], Tensor]
    label_words: Sequence[str] = ()
    seed: int = 0


def build_method(config: Any, base: Base, material: Material) -> Method:
    """The method ``config`` describes, on ``base``."""
    parts = with_demonstrations(parse_front(config.front), material.demonstrations)
    builder: Callable[..., Method] = _BUILDERS[type(config)]
    return builder(config, base, parts, material)


def _prompt_tuning(
    config: PromptTuningConfig, base: Base, parts: tuple[Words | Soft, ...], material: Material
) -> Method:
    count = sum(part.count for part in parts if isinstance(part, Soft))
    start = _STARTS[config.init](config, base, count, material)
    residual = None
    if config.reparametrisation == "residual":
        residual = Residual(base.width, config.reparametrisation_width, material.seed).to(base.device)
    return PromptTuning(base, parts, start, residual)


def _text(config: TextConfig, base: Base, parts: tuple[Words | Soft, ...], material: Material) -> Method:
    return TextFront(base, parts)


def _from_artifact(config: PromptTuningConfig, base: Base, count: int, material: Material) -> Tensor:
    front = material.artifact(str(config.init_artifact))
    if len(front) != count:
        raise ConfigError(
            f"method.init_artifact {config.init_artifact!r} has {len(front)} vectors, but method.front "
            f"asks for {count}; write {{soft:{len(front)}}}."
        )
    return front


_STARTS: dict[str, Callable[[PromptTuningConfig, Base, int, Material], Tensor]] = {
    "text": lambda c, base, count, m: from_text(base, str(c.init_text), count),
    "labels": lambda c, base, count, m: from_labels(base, m.label_words, count, m.seed),
    "vocabulary": lambda c, base, count, m: from_vocabulary(base, count, m.seed),
    "random": lambda c, base, count, m: from_random(base, count, m.seed),
    "artifact": _from_artifact,
}

_BUILDERS: dict[type, Callable[..., Method]] = {PromptTuningConfig: _prompt_tuning, TextConfig: _text}
