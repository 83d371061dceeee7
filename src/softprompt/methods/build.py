"""From a configuration to the method it describes: one builder a kind, in a table.

The only place that knows every method by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompt.base.looking import most_attended
from softprompt.base.model import Base
from softprompt.base.turning import picked
from softprompt.config import (
    ClassifierConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TextConfig,
)
from softprompt.errors import BaseModelError, ConfigError, SoftpromptError
from softprompt.methods.front import Soft, Words, parse_front, with_demonstrations
from softprompt.methods.full import Full
from softprompt.methods.ia3 import Ia3
from softprompt.methods.init import from_labels, from_random, from_text, from_vocabulary
from softprompt.methods.lora import Lora
from softprompt.methods.method import Method
from softprompt.methods.prefix_tuning import PrefixTuning, Projection, Ways
from softprompt.methods.prompt_tuning import PromptTuning
from softprompt.methods.reparametrisation import PromptEncoder, Residual
from softprompt.methods.text import TextFront, word_ids
from softprompt.prefix import Front, Prefix

__all__ = ["Material", "build_method"]


def _nobody_looks(prefix: Prefix, count: int = 0) -> Any:
    raise ConfigError("method.keep needs rows to see where they look, and there are none here.")


@dataclass(frozen=True)
class Material:
    """What a method may ask of the job it is built for.

    Attributes:
        demonstrations: ``k`` -> the text of k solved training rows.
        label_words: the words of the labels, empty for free text.
        artifact: a saved prompt's name or folder -> its front, embeddings ``[P, E]`` or a prefix.
        seed: fixes every draw.
        looks: a prefix -> how much training rows look at its positions, ``[L, P]``.
        matched: a prefix, ``count`` -> so many positions behind which training rows attend as behind it.
        note: told plain sentences about what was asked for and is not done as it was.
    """

    demonstrations: Callable[[int], str]
    artifact: Callable[[str], Front]
    label_words: Sequence[str] = ()
    seed: int = 0
    looks: Callable[[Prefix], Tensor] = _nobody_looks
    matched: Callable[[Prefix, int], Prefix] = _nobody_looks
    note: Callable[[str], None] = lambda sentence: None


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
    network = _NETWORKS[config.reparametrisation](start, config.reparametrisation_width, material.seed)
    return PromptTuning(base, parts, start, network and network.to(base.device))


def _prefix_tuning(
    config: PrefixTuningConfig, base: Base, parts: tuple[Words | Soft, ...], material: Material
) -> Method:
    if config.init == "random":
        assert config.positions is not None
        words = base.prefill(from_vocabulary(base, config.positions, material.seed))
        network = Projection(words, config.positions, config.projection_width, material.seed)
        return PrefixTuning(base, network)
    with torch.no_grad():
        start = _PREFIX_STARTS[config.init](config, base, parts, material)
    return PrefixTuning(base, Ways(start, int(config.freeze_first)))


def _from_words(
    config: PrefixTuningConfig, base: Base, parts: tuple[Words | Soft, ...], material: Material
) -> Prefix:
    ids = word_ids(base, parts)
    if config.positions is None and config.most is not None:
        return _bounded(base, ids, config.most, material)
    if config.keep == "last" or config.positions is None or config.positions >= len(ids):
        return base.prefill(base.embed(_fitted(base, ids, config.positions)))
    return _kept(config, base, base.prefill(base.embed(ids)), material)


def _bounded(base: Base, ids: list[int], most: int, material: Material) -> Prefix:
    """The prefix of a text that nobody gave a length, no longer than ``most``; how long it is, is told."""
    length = min(most, len(ids))
    if len(ids) <= most:
        found, which = base.prefill(base.embed(_fitted(base, ids, None))), "all"
    else:
        try:
            whole = base.prefill(base.embed(ids))
            found = picked(base, whole, most_attended(material.looks(whole), most))
            which = "those that rows look at most"
        except SoftpromptError:  # not every model shows where it looks, or lets keys be moved
            found, which = base.prefill(base.embed(_fitted(base, ids, most))), "the last ones"
    material.note(f"The prefix takes {length} of the {len(ids)} positions of its text, {which}.")
    return found


def _from_saved(
    config: PrefixTuningConfig, base: Base, parts: tuple[Words | Soft, ...], material: Material
) -> Prefix:
    whole = base.prefill(material.artifact(str(config.init_artifact)))
    if config.positions is None or config.positions == whole.length:
        return whole
    if config.positions > whole.length:
        raise ConfigError(
            f"method.init_artifact {config.init_artifact!r} has {whole.length} positions, but "
            f"method.positions asks for {config.positions}; ask for {whole.length} or fewer."
        )
    return _kept(config, base, whole, material)


def _kept(config: PrefixTuningConfig, base: Base, whole: Prefix, material: Material) -> Prefix:
    """So many positions of a longer prefix, the first one always among them."""
    assert config.positions is not None
    rest, layers = config.positions - 1, len(whole.keys)
    if config.keep == "matched":
        try:
            return material.matched(whole, config.positions)
        except BaseModelError as error:
            material.note(f"{error} So the positions that rows look at most start as they are.")
    if config.keep in ("attended", "matched"):
        return picked(base, whole, most_attended(material.looks(whole), config.positions))
    last = range(whole.length - rest, whole.length)
    return picked(base, whole, [[0, *(range(1, 1 + rest) if config.keep == "first" else last)]] * layers)


def _fitted(base: Base, ids: list[int], positions: int | None) -> list[int]:
    """Ids brought to a number of positions: the start token, then the end of the text, repeated if short."""
    start = list(base.start_ids)
    text = ids[len(start) :]
    if not text:
        raise ConfigError("method.front has no words whose keys and values could be the start; give it some.")
    if positions is None or len(ids) == positions:
        return ids
    wanted = max(1, positions - len(start))
    return start + (text * (wanted // len(text) + 1))[-wanted:]


def _text(config: TextConfig, base: Base, parts: tuple[Words | Soft, ...], material: Material) -> Method:
    return TextFront(base, parts)


def _lora(config: LoraConfig, base: Base, parts: tuple[Words | Soft, ...], material: Material) -> Method:
    front = base.embed(word_ids(base, parts)).float()
    lora = Lora(base, front, config.model_dump(exclude={"kind", "front"}), material.seed)
    if left := lora.left_out:
        material.note(
            f"{len(left)} linear layers of {base.name}, such as {left[0]}, take no adapter in PEFT and "
            "stay as they are."
        )
    return lora


def _ia3(config: Ia3Config, base: Base, parts: tuple[Words | Soft, ...], material: Material) -> Method:
    return Ia3(base, base.embed(word_ids(base, parts)).float(), config.targets)


def _full(config: FullConfig, base: Base, parts: tuple[Words | Soft, ...], material: Material) -> Method:
    return Full(base, base.embed(word_ids(base, parts)).float())


def _classifier(
    config: ClassifierConfig, base: Base, parts: tuple[Words | Soft, ...], material: Material
) -> Method:
    raise ConfigError(
        'method.kind = "classifier" is for softprompt compare only, because nothing of it stands in front of '
        "a text or changes the model; choose another method.kind."
    )


def _from_artifact(config: PromptTuningConfig, base: Base, count: int, material: Material) -> Tensor:
    front = material.artifact(str(config.init_artifact))
    if isinstance(front, Prefix):
        raise ConfigError(
            f"{config.init_artifact} is a KV prefix; a soft prompt can only start from another soft prompt."
        )
    if len(front) != count:
        raise ConfigError(
            f"method.init_artifact {config.init_artifact!r} has {len(front)} vectors, but method.front "
            f"asks for {count}; write {{soft:{len(front)}}}."
        )
    return front


_PREFIX_STARTS: dict[str, Callable[..., Prefix]] = {"text": _from_words, "artifact": _from_saved}

_STARTS: dict[str, Callable[[PromptTuningConfig, Base, int, Material], Tensor]] = {
    "text": lambda c, base, count, m: from_text(base, str(c.init_text), count),
    "labels": lambda c, base, count, m: from_labels(base, m.label_words, count, m.seed),
    "vocabulary": lambda c, base, count, m: from_vocabulary(base, count, m.seed),
    "random": lambda c, base, count, m: from_random(base, count, m.seed),
    "artifact": _from_artifact,
}

_NETWORKS: dict[str, Callable[[Tensor, int, int], Residual | PromptEncoder | None]] = {
    "none": lambda start, width, seed: None,
    "residual": lambda start, width, seed: Residual(start.shape[1], width, seed),
    "mlp": lambda start, width, seed: PromptEncoder(start.cpu(), width, seed),
}

_BUILDERS: dict[type, Callable[..., Method]] = {
    PromptTuningConfig: _prompt_tuning,
    PrefixTuningConfig: _prefix_tuning,
    TextConfig: _text,
    LoraConfig: _lora,
    Ia3Config: _ia3,
    FullConfig: _full,
    ClassifierConfig: _classifier,
}
