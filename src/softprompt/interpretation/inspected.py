"""What is inspected: a saved prompt, where it began, which positions were learnt, and rows to try it on.

It knows artifacts, their cards and how a method is built; it does not know what is asked of a prompt. A card
comes from a stranger: rows it names are taken only if they are the very rows it speaks of.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from softprompt.base.model import Base
from softprompt.config import Config, PrefixTuningConfig, parse
from softprompt.data.chat import in_chat
from softprompt.data.rows import Encoded
from softprompt.data.splits import subset
from softprompt.data.table import Table
from softprompt.data.task import Task, as_meant
from softprompt.errors import ArtifactError, ConfigError, DataError, SoftpromptError
from softprompt.library.card import Card
from softprompt.library.folder import Artifact, Library, check_base
from softprompt.library.payload import Payload
from softprompt.library.prefix_format import PromptPayload
from softprompt.library.prompt import Prompt
from softprompt.methods.build import Material, build_method
from softprompt.methods.front import FrontPart, parse_front, with_demonstrations
from softprompt.methods.text import held
from softprompt.prefix import Front, Prefix
from softprompt.training.job import learnt_front, read_task

__all__ = [
    "PRUNED",
    "InspectedPrompt",
    "Rows",
    "card_of",
    "kept_positions",
    "open_prompt",
    "part_of",
    "rows_of",
    "training_rows",
]

PRUNED = "pruned"
"""What a card's settings say, beside the configuration, of a prompt that was made shorter."""

_ALIKE = 0.02
"""Relative difference of words' embeddings, or of their keys, that another number format explains."""


@dataclass(frozen=True, eq=False)
class InspectedPrompt:
    """One saved prompt and what is known of its beginning.

    Attributes:
        prompt: base, front and card.
        start: what training began from, of the shape of the front; None where that cannot be made again.
        start_note: why not, in a sentence; empty where there is a start.
        words: of each position that was not learnt, what stands there.
    """

    prompt: Prompt
    start: Front | None = None
    start_note: str = ""
    words: Mapping[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.prompt.name

    @property
    def kind(self) -> Literal["soft prompt", "KV prefix"]:
        """What it is."""
        return "KV prefix" if isinstance(self.front, Prefix) else "soft prompt"

    @property
    def base(self) -> Base:
        return self.prompt.base

    @property
    def front(self) -> Front:
        return self.prompt.front

    @property
    def positions(self) -> int:
        """P."""
        return self.front.length if isinstance(self.front, Prefix) else len(self.front)

    @property
    def learnt(self) -> tuple[int, ...]:
        """The positions that were learnt, in order."""
        return tuple(p for p in range(self.positions) if p not in self.words)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows a prompt is tried on.

    Attributes:
        table: the rows.
        encoded: the same in tokens, as the prompt reads them.
        split: ``"validation"``, or where they came from.
        total: how many there were before some were drawn.
        notes: plain sentences about them.
    """

    table: Table
    encoded: Encoded
    split: str
    total: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def told(self) -> str:
        """Such as "100 of 872 validation rows"."""
        some = f"{len(self):,}" if len(self) == self.total else f"{len(self):,} of {self.total:,}"
        name = "validation rows" if self.split == "validation" else f"rows of {self.split}"
        return f"{some} {name}"


def part_of(front: Front, positions: Sequence[int]) -> Front:
    """Some positions of a front, in order: vectors ``[n, E]``, or keys and values as they stand in the cache.

    The keys of a prefix stay rotated for the places they had; what it alone expected next is not kept.
    """
    if not isinstance(front, Prefix):
        return front[list(positions)]
    keys, values = (tuple(t[:, list(positions)] for t in side) for side in (front.keys, front.values))
    return front.over(keys, values)


def card_of(artifact: Artifact) -> Card:
    """The card of an artifact that can be inspected.

    Raises:
        ArtifactError: it has no card, changes the model, or holds nothing that was learnt.
    """
    card, name = artifact.card, artifact.path.name
    shows = "inspect shows what soft prompts and KV prefixes hold"
    if card is None:
        raise ArtifactError(f"{name} has no card; bring it in with `softprompt import {name} --name NAME`.")
    payload: Payload = artifact.payload
    if not isinstance(payload, PromptPayload):
        raise ArtifactError(f"{card.name} changes the model; {shows}; try softprompt eval.")
    if card.kind == "text" or not card.positions:
        raise ArtifactError(f"{card.name} holds no learnt vectors; {shows}; try softprompt eval.")
    return card


def open_prompt(name: str | Path, base: Base, library: str | Path = "prompts") -> InspectedPrompt:
    """A saved prompt with its beginning.

    Raises:
        ArtifactError: there is no such prompt, or none that can be inspected.
        WrongBaseError: it was learnt on another base.
    """
    artifact = Library(library).load(name)
    card = card_of(artifact)
    check_base(artifact, base)
    met = artifact.payload.meet(base)
    prompt = Prompt(met.base, met.front, card, met.change, base)
    start, note, words = _beginning(prompt, library)
    return InspectedPrompt(prompt, start, note, words)


# Rows --------------------------------------------------------------------------------------------


def rows_of(
    inspected: InspectedPrompt, data: str | None = None, *, most: int | None = None, seed: int = 0
) -> Rows:
    """Rows to try a prompt on: those of ``data``, or else those it was validated on.

    Args:
        inspected: whose templates read them.
        data: a source of rows, as ``data.sources.read`` takes it.
        most: how many to draw at most, labels in their shares; None means all.
        seed: of the draw.

    Raises:
        DataError: no rows are named and its own are not at hand any more; or they do not fit its templates.
    """
    table = _validation(inspected.prompt) if data is None else inspected.prompt.rows(data)
    split = "validation" if data is None else table.origin
    prompt = inspected.prompt
    table.require_columns(prompt.template.columns)
    drawn = table if most is None or most >= len(table) else subset(table, most, seed, _label_column(prompt))
    encoded = prompt.encode(drawn)
    return Rows(drawn, encoded, split, len(table), encoded.notes)


def training_rows(inspected: InspectedPrompt, most: int, seed: int = 0) -> Encoded:
    """At most so many of the rows a prompt was trained on, in tokens.

    Raises:
        DataError: they are not at hand any more, or have changed.
    """
    prompt = inspected.prompt
    config = _config(prompt.card)
    if config is None:
        raise DataError(
            f"The card of {prompt.card.name} does not name its training rows; leave out what trains."
        )
    table = _training(prompt, config).tables["train"]
    drawn = table if most >= len(table) else subset(table, most, seed, _label_column(prompt))
    return prompt.encode(drawn)


def _training(prompt: Prompt, config: Config) -> Task:
    """The job a prompt was trained for, with the very rows of then."""
    found, _ = read_task(prompt.base, config)
    about = prompt.card.data.get("train")
    if about is None or found.tables["train"].digest != about.digest:
        raise DataError(f"The training rows of {prompt.card.name} have changed since.")
    return found


def _validation(prompt: Prompt) -> Table:
    """The rows a prompt was validated on, those very ones."""
    card = prompt.card
    about, config, why = card.data.get("validation"), _config(card), ""
    if about is None:
        why = f"The card of {card.name} names no validation rows"
    elif config is None:
        why = f"The card of {card.name} does not say how its validation rows were drawn"
    else:
        try:
            table = _held_out(prompt, config)
        except SoftpromptError as error:
            why = f"The validation rows of {card.name} are not at hand ({str(error).rstrip('.')})"
        else:
            if table.digest == about.digest:
                return table
            why = f"The rows {card.name} was validated on have changed since ({about.origin})"
    raise DataError(f"{why}; give rows to try it on with --data.")


def _held_out(prompt: Prompt, config: Config) -> Table:
    """The validation rows a configuration names."""
    data = config.data
    if data.validation is None:
        task, _ = read_task(prompt.base, config)
        return task.tables["validation"]
    table, _ = as_meant(prompt.rows(data.validation), data, prompt.template)
    if data.validation_rows is None:
        return table
    draw = config.seed if data.draw is None else data.draw
    return subset(table, data.validation_rows, draw, _label_column(prompt), group=data.group)


def _label_column(prompt: Prompt) -> str | None:
    """The column whose values are drawn in their shares."""
    return prompt.template.label_column if prompt.template.labels is not None else None


# The beginning -----------------------------------------------------------------------------------


def kept_positions(card: Card) -> tuple[int, ...] | None:
    """Which positions a shortened prompt kept of what it was made from; None of a prompt as it was learnt."""
    about = card.settings.get(PRUNED)
    kept = about.get("kept") if isinstance(about, Mapping) else None
    if not isinstance(kept, list) or len(kept) != card.positions:
        return None
    if not all(type(p) is int and p >= 0 for p in kept) or sorted(set(kept)) != kept:
        return None
    return tuple(kept)


def _config(card: Card) -> Config | None:
    """What it was trained with; None where the card does not tell."""
    settings = {key: value for key, value in card.settings.items() if key != PRUNED}
    try:
        return parse(settings) if settings else None
    except ConfigError:
        return None


def _beginning(prompt: Prompt, library: str | Path) -> tuple[Front | None, str, dict[int, str]]:
    """The start of a prompt or why there is none, and the words among its positions."""
    card, base = prompt.card, prompt.base
    config = _config(card)
    if config is None or config.method.kind != card.kind:
        note = f"The card of {card.name} does not say what it was trained from, so its start is not known."
        return None, note, _words(base, parse_front(card.template.front), card.positions)
    try:
        start, words = _start(prompt, config, library)
    except SoftpromptError as error:
        said = str(error).rstrip(".")
        return None, f"The start of {card.name} cannot be made again ({said}).", {}
    kept = kept_positions(card) or tuple(range(_length(start)))
    words = {new: words[old] for new, old in enumerate(kept) if old in words}
    start = part_of(start, kept) if kept[-1] < _length(start) else start
    fits = isinstance(prompt.front, Prefix) == isinstance(start, Prefix) and card.positions == _length(start)
    if fits:  # the same where training left it alone
        sides = (_sides(part_of(front, sorted(words))) for front in (prompt.front, start))
        fits = all(
            a.shape == b.shape and float((a - b).norm()) <= _ALIKE * float(b.norm())
            for a, b in zip(*sides, strict=True)
        )
    if not fits:
        note = f"What {card.name} would start from today is not what it was trained from."
        return None, note, words if _length(start) == card.positions else {}
    return start, "", words


def _start(prompt: Prompt, config: Config, library: str | Path) -> tuple[Front, dict[int, str]]:
    """What the method a prompt was trained with begins from, and the positions that stay as they are."""
    base, template, about, front = prompt.base, prompt.template, config.method, config.method.front
    if config.data.chat:
        front, _ = in_chat(front, config.data.input, base.render_chat)
    task = functools.cache(lambda: _training(prompt, config))
    material = Material(
        demonstrations=lambda count: task().demonstrations(count, config.seed),
        artifact=lambda name: learnt_front(name, base, library),
        label_words=template.candidates() if template.labels else (),
        seed=config.seed,
    )
    parts = with_demonstrations(parse_front(front), material.demonstrations)
    with torch.no_grad():
        start = build_method(about.model_copy(update={"front": front}), base, material).front()
    start = start.detached() if isinstance(start, Prefix) else start.detach()
    if not isinstance(about, PrefixTuningConfig):
        return start, _words(base, parts, _length(start))
    return start, {0: "the first position"} if about.init == "text" and about.freeze_first else {}


def _words(base: Base, parts: Sequence[FrontPart], length: int) -> dict[int, str]:
    """The words among the positions of a soft prompt; none where the parts do not make up its length."""
    ids, decode = held(base, parts), base.tokenizer.decode
    found = {
        where: str(decode([token], skip_special_tokens=False))
        for where, token in enumerate(ids)
        if token is not None
    }
    return found if len(ids) == length and len(found) < length else {}


def _length(front: Front) -> int:
    return front.length if isinstance(front, Prefix) else len(front)


def _sides(front: Front) -> list[Tensor]:
    """The tensors of a front, fp32."""
    tensors = (*front.keys, *front.values) if isinstance(front, Prefix) else (front,)
    return [t.float() for t in tensors]
