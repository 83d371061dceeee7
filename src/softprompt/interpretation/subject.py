"""What is inspected: a saved prompt, where it began, which positions were learnt, and rows to try it on.

It knows artifacts, their cards and how a method is built; it does not know what is asked of a prompt. A card
comes from a stranger: rows it names are taken only if they are the very rows it speaks of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import torch
from torch import Tensor

from softprompt.base.model import Base
from softprompt.config import Config, PrefixTuningConfig, parse
from softprompt.data.chat import in_chat
from softprompt.data.rows import Encoded
from softprompt.data.sources import read
from softprompt.data.splits import subset
from softprompt.data.table import Table
from softprompt.data.task import Task
from softprompt.errors import ArtifactError, ConfigError, DataError, SoftpromptError
from softprompt.library.card import Card
from softprompt.library.folder import Artifact, Library, check_base
from softprompt.library.payload import Payload
from softprompt.library.peft_format import Learnt, to_front
from softprompt.library.prompt import Prompt
from softprompt.methods.build import Material, build_method
from softprompt.methods.front import FrontPart, Words, parse_front, with_demonstrations
from softprompt.prefix import Front, Prefix
from softprompt.training.job import read_task

__all__ = [
    "PRUNED",
    "Rows",
    "Subject",
    "card_of",
    "kept_positions",
    "open_subject",
    "part_of",
    "rows_of",
    "training_rows",
]

PRUNED = "pruned"
"""What a card's settings say, beside the configuration, of a prompt that was made shorter."""

_ALIKE = 0.02
"""Relative difference of words' embeddings, or of their keys, that another number format explains."""


@dataclass(frozen=True, eq=False)
class Subject:
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
    return Prefix(keys, values, None, front.base)


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
    if not isinstance(payload, Learnt):
        raise ArtifactError(f"{card.name} changes the model; {shows}; try softprompt eval.")
    if card.kind == "text" or not card.positions:
        raise ArtifactError(f"{card.name} holds no learnt vectors; {shows}; try softprompt eval.")
    return card


def open_subject(name: str | Path, base: Base, library: str | Path = "prompts") -> Subject:
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
    start, note, words = _beginning(prompt, Path(library))
    return Subject(prompt, start, note, words)


# Rows --------------------------------------------------------------------------------------------


def rows_of(subject: Subject, data: str | None = None, *, most: int | None = None, seed: int = 0) -> Rows:
    """Rows to try a prompt on: those of ``data``, or else those it was validated on.

    Args:
        subject: whose templates read them.
        data: a source of rows, as ``data.sources.read`` takes it.
        most: how many to draw at most, labels in their shares; None means all.
        seed: of the draw.

    Raises:
        DataError: no rows are named and its own are not at hand any more; or they do not fit its templates.
    """
    table = _validation(subject.prompt) if data is None else read(data)
    split = "validation" if data is None else table.origin
    template = subject.prompt.template
    table.require_columns(template.columns)
    by = template.label_column if template.labels is not None else None
    drawn = table if most is None or most >= len(table) else subset(table, most, seed, by)
    encoded = subject.prompt.encode(drawn)
    return Rows(drawn, encoded, split, len(table), encoded.notes)


def training_rows(subject: Subject, most: int, seed: int = 0) -> Encoded:
    """At most so many of the rows a prompt was trained on, in tokens.

    Raises:
        DataError: they are not at hand any more, or have changed.
    """
    card = subject.prompt.card
    config = _config(card)
    if config is None:
        raise DataError(f"The card of {card.name} does not name its training rows; leave out what trains.")
    table = _training(subject.prompt, config).tables["train"]
    by = subject.prompt.template.label_column if subject.prompt.template.labels is not None else None
    return subject.prompt.encode(table if most >= len(table) else subset(table, most, seed, by))


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
    about = card.data.get("validation")
    if about is None:
        _no_rows(f"The card of {card.name} names no validation rows")
    config = _config(card)
    if config is None:
        _no_rows(f"The card of {card.name} does not say how its validation rows were drawn")
    try:
        table = _read_validation(prompt, config)
    except SoftpromptError as error:
        _no_rows(f"The validation rows of {card.name} are not at hand ({str(error).rstrip('.')})")
    if table.digest != about.digest:
        _no_rows(f"The rows {card.name} was validated on have changed since ({about.origin})")
    return table


def _no_rows(why: str) -> NoReturn:
    raise DataError(f"{why}; give rows to try it on with --data.")


def _read_validation(prompt: Prompt, config: Config) -> Table:
    data = config.data
    if data.validation is None:
        task, _ = read_task(prompt.base, config)
        return task.tables["validation"]
    table = read(data.validation)
    if data.validation_rows is None:
        return table
    by = prompt.template.label_column if prompt.template.labels is not None else None
    draw = config.seed if data.draw is None else data.draw
    return subset(table, data.validation_rows, draw, by, group=data.group)


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


def _beginning(prompt: Prompt, library: Path) -> tuple[Front | None, str, dict[int, str]]:
    """The start of a prompt or why there is none, and the words among its positions."""
    card, base = prompt.card, prompt.base
    config = _config(card)
    if config is None or config.method.kind != card.kind:
        note = f"The card of {card.name} does not say what it was trained from, so its start is not known."
        return None, note, _words(base, parse_front(card.template.front), card.positions)
    try:
        front, demonstrations = _front_of(prompt, config)
        parts = with_demonstrations(parse_front(front), demonstrations)
        start = _built(prompt, config, front, demonstrations, library)
    except SoftpromptError as error:
        said = str(error).rstrip(".")
        return None, f"The start of {card.name} cannot be made again ({said}).", {}
    kept = kept_positions(card) or tuple(range(_length(start)))
    words = _fixed(config, base, parts, _length(start))
    words = {new: words[old] for new, old in enumerate(kept) if old in words}
    start = part_of(start, kept) if kept[-1] < _length(start) else start
    if not _fits(prompt.front, start, words):
        note = f"What {card.name} would start from today is not what it was trained from."
        return None, note, words if _length(start) == card.positions else {}
    return start, "", words


def _front_of(prompt: Prompt, config: Config) -> tuple[str, Callable[[int], str]]:
    """The front's template with the marks of a chat, and where its demonstrations come from."""
    front = config.method.front
    if config.data.chat:
        front, _ = in_chat(front, config.data.input, prompt.base.render_chat)

    task = functools.cache(lambda: _training(prompt, config))
    return front, lambda count: task().demonstrations(count, config.seed)


def _built(
    prompt: Prompt, config: Config, front: str, demonstrations: Callable[[int], str], library: Path
) -> Front:
    """What the method it was trained with begins from."""
    template = prompt.template
    material = Material(
        demonstrations=demonstrations,
        artifact=lambda name: _vectors(name, prompt.base, library),
        label_words=template.candidates() if template.labels else (),
        seed=config.seed,
    )
    with torch.no_grad():
        method = build_method(config.method.model_copy(update={"front": front}), prompt.base, material)
        start = method.front()
    return start.detached() if isinstance(start, Prefix) else start.detach()


def _vectors(name: str, base: Base, library: Path) -> Tensor:
    """The vectors of the prompt it was started from."""
    artifact = Library(library).load(name)
    check_base(artifact, base)
    front = to_front(artifact.learnt, base)
    if isinstance(front, Prefix):
        raise ArtifactError(f"{name} is a KV prefix.")
    return front


def _fixed(config: Config, base: Base, parts: Sequence[FrontPart], length: int) -> dict[int, str]:
    """The positions that training left as they were, and their words."""
    about = config.method
    if not isinstance(about, PrefixTuningConfig):
        return _words(base, parts, length)
    return {0: "the first position"} if about.init == "text" and about.freeze_first else {}


def _words(base: Base, parts: Sequence[FrontPart], length: int) -> dict[int, str]:
    """The words among the positions of a soft prompt; none where the parts do not make up its length."""
    found = {place: _text(base, i) for place, i in enumerate(base.start_ids)}
    place = len(found)
    for part in parts:
        ids = base.encode(part.text) if isinstance(part, Words) else []
        found |= {place + number: _text(base, i) for number, i in enumerate(ids)}
        place += len(ids) if isinstance(part, Words) else part.count
    return found if place == length and len(found) < length else {}


def _text(base: Base, token: int) -> str:
    return str(base.tokenizer.decode([token], skip_special_tokens=False))


def _length(front: Front) -> int:
    return front.length if isinstance(front, Prefix) else len(front)


def _fits(front: Front, start: Front, words: Mapping[int, str]) -> bool:
    """Whether a start has the shape of a front, and the same where training left it alone."""
    if isinstance(front, Prefix) != isinstance(start, Prefix) or _length(front) != _length(start):
        return False
    fixed = sorted(words)
    pairs = zip(_sides(part_of(front, fixed)), _sides(part_of(start, fixed)), strict=True)
    return all(a.shape == b.shape and float((a - b).norm()) <= _ALIKE * float(b.norm()) for a, b in pairs)


def _sides(front: Front) -> list[Tensor]:
    """The tensors of a front, fp32."""
    tensors = (*front.keys, *front.values) if isinstance(front, Prefix) else (front,)
    return [t.float() for t in tensors]
