"""Everything that can be seen inside saved prompts, put together: which analyses apply, on which rows.

It knows the analyses and what each needs; it does not know how any is computed, nor screens or pages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from softprompt.base.model import Base
from softprompt.data.rows import Encoded
from softprompt.errors import BaseModelError, ConfigError, DataError
from softprompt.interpretation.ablation import Ablation, ablate
from softprompt.interpretation.arithmetic import Mixture, averages, scaling
from softprompt.interpretation.attention import Attention, attention
from softprompt.interpretation.clusters import Clusters, clusters
from softprompt.interpretation.drift import Chart, Drift, PrefixDrift, chart, drift, prefix_drift, umap_chart
from softprompt.interpretation.finding import Finding
from softprompt.interpretation.inspected import InspectedPrompt, Rows, open_prompt, rows_of, training_rows
from softprompt.interpretation.neighbours import Neighbours, neighbours
from softprompt.interpretation.relations import Matrix, effects, likeness
from softprompt.interpretation.says import Shift, Speech, shift, speak
from softprompt.interpretation.vocabulary import Vocabulary
from softprompt.interpretation.wayward import Wayward, wayward
from softprompt.interpretation.words import InWords, WordSearch, rendering, search
from softprompt.listener import SILENT, Listener
from softprompt.packages import Need, require
from softprompt.prefix import Prefix

__all__ = [
    "SECTIONS",
    "Carry",
    "InspectOptions",
    "Inspection",
    "LookOrder",
    "PromptInspection",
    "Spread",
    "carried",
    "inspect",
]

SECTIONS = ("near", "drift", "ablation", "attention", "words", "says", "mixing", "relations")
"""What can be asked for, in the order it is told."""

_WITHOUT_ROWS = ("near", "drift")
_TRAINED_ON = 500
"""Training rows that a search for words or the wayward control learns from, at most."""

_NO_WORDS = (
    "A KV prefix lies in no space of words, so it has no nearest words; see how far it travelled instead."
)
_NO_TEXT = "A KV prefix lies in no space of words, so no words can stand for its positions."


@dataclass(frozen=True)
class InspectOptions:
    """What is asked for.

    Attributes:
        only: the sections, by name; all by default.
        data: rows to try prompts on; None means those each was validated on.
        rows: how many of them at most.
        seed: of every draw.
        search: whether to search for words that do what the prompt does, which trains for a while.
        wayward: a text to train a control beside; None for none.
        umap: whether the map is UMAP's instead of the two widest axes.
    """

    only: Collection[str] = SECTIONS
    data: str | None = None
    rows: int = 100
    seed: int = 0
    search: bool = False
    wayward: str | None = None
    umap: bool = False

    def needs(self, prompts: int) -> tuple[Need, ...]:
        """What must be installed to look into so many prompts."""
        map_of_words: tuple[Need, ...] = ("a UMAP map",) if self.umap else ()
        compared: tuple[Need, ...] = ("relating prompts",) if prompts > 1 and "relations" in self.only else ()
        return (*map_of_words, *compared)

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in SECTIONS:
                raise ConfigError(f"There is no section {name!r}; choose among {', '.join(SECTIONS)}.")


@dataclass(eq=False)
class PromptInspection:
    """What was found in one prompt; None where it was not asked for or does not apply.

    Attributes:
        inspected: the prompt.
        rows: what it was tried on; None where no section needed any.
        start_clusters: the same of where it began: what is grouped there already was not learnt.
        left_out: by section that was asked for, why there is nothing.
    """

    inspected: InspectedPrompt
    rows: Rows | None = None
    near: Neighbours | None = None
    clusters: Clusters | None = None
    start_clusters: Clusters | None = None
    drift: Drift | None = None
    prefix_drift: PrefixDrift | None = None
    map: Chart | None = None
    ablation: Ablation | None = None
    attention: Attention | None = None
    words: InWords | None = None
    search: WordSearch | None = None
    wayward: Wayward | None = None
    speech: Speech | None = None
    shift: Shift | None = None
    mixing: Mixture | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        prompt, rows = self.inspected, self.rows
        return {
            "name": prompt.name,
            "kind": prompt.kind,
            "positions": prompt.positions,
            "learnt": list(prompt.learnt),
            "words_in_front": dict(prompt.words),
            "start": prompt.start_note or "known",
            "rows": rows and {"told": rows.told, "count": len(rows), "split": rows.split},
            **{name: part.to_json() for name, part in vars(self).items() if isinstance(part, Finding)},
            "left_out": self.left_out,
        }


@dataclass(frozen=True, eq=False)
class Inspection:
    """What was found in prompts of one base.

    Attributes:
        base: its name.
        prompts: each by itself.
        options: what was asked for.
        likeness: how alike they are as vectors.
        effects: how alike in what they do, on the rows of the first and as it reads them.
        average: scores of each and of their average on those rows.
        notes: plain sentences about the comparison.
    """

    base: str
    prompts: tuple[PromptInspection, ...]
    options: InspectOptions
    likeness: tuple[Matrix, ...] = ()
    effects: tuple[Matrix, ...] = ()
    average: Mixture | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "base": self.base,
            "prompts": [one.to_json() for one in self.prompts],
            "relations": [matrix.to_json() for matrix in (*self.likeness, *self.effects)],
            "average": self.average and self.average.to_json(),
            "notes": list(self.notes),
            "wishes": asdict(self.options) | {"only": list(self.options.only)},
        }


class LookOrder(NamedTuple):
    """One prompt that is to be looked into by itself: plain values, which may travel."""

    name: str | Path
    library: str | Path
    options: InspectOptions


Carry = Callable[[list[LookOrder]], Sequence[Mapping[str, Any]]]
"""Looks into prompts elsewhere, and gives what ``carried`` gives for each, in their order."""

Spread = Callable[[Base, Listener], AbstractContextManager[Carry]]
"""Begins to look into prompts elsewhere; what it began ends with the block."""


def inspect(
    names: Sequence[str | Path],
    base: Base,
    library: str | Path = "prompts",
    options: InspectOptions | None = None,
    *,
    listener: Listener = SILENT,
    spread: Spread | None = None,
) -> Inspection:
    """Look inside saved prompts of one base.

    Args:
        names: of prompts in the library, or folders.
        base: the model they were learnt on; it is not changed.
        library: where they lie.
        options: what to look at.
        listener: told now and then how far each analysis is.
        spread: looks into prompts elsewhere, into each by itself; how they relate is found out here.

    Raises:
        ArtifactError: there is no such prompt, or none that can be inspected.
        WrongBaseError: one was learnt on another base.
        DataError: sections were asked for that need rows, and there are none.
    """
    options = options or InspectOptions()
    require(*options.needs(len(names)))
    found = [_opened(base, LookOrder(name, library, options)) for name in names]
    vocabulary = Vocabulary.of(base)
    if spread is None:
        for one in found:
            _look(one, vocabulary, options, listener)
    else:
        with spread(base, listener) as carry:
            seen = carry([LookOrder(name, library, options) for name in names])
        for one, fields in zip(found, seen, strict=True):
            vars(one).update(fields)
    related: dict[str, Any] = {}
    if "relations" in options.only and len(found) > 1 and (rows := found[0].rows) is not None:
        listener.progress("Comparing the prompts", 0, 1)
        related = _relations([one.inspected for one in found], rows, vocabulary, options.seed)
    return Inspection(base.name, tuple(found), options, **related)


def carried(order: LookOrder, vocabulary: Vocabulary, listener: Listener) -> dict[str, Any]:
    """What is found in one prompt, by the fields of ``PromptInspection``, without the prompt and its rows."""
    found = _opened(vocabulary.base, order)
    _look(found, vocabulary, order.options, listener)
    return {name: value for name, value in vars(found).items() if name not in ("inspected", "rows")}


def _opened(base: Base, order: LookOrder) -> PromptInspection:
    """The prompt and the rows to try it on, nothing yet found."""
    prompt, options = open_prompt(order.name, base, order.library), order.options
    needs_rows = any(name not in _WITHOUT_ROWS for name in options.only)
    return PromptInspection(prompt, _rows(prompt, options) if needs_rows else None)


def _look(
    found: PromptInspection, vocabulary: Vocabulary, options: InspectOptions, listener: Listener
) -> None:
    """Enter what every section that was asked for finds."""
    inspector = _Inspector(found, vocabulary, options, listener)
    for section in SECTIONS[:-1]:
        if section in options.only:
            try:
                getattr(inspector, section)()
            except (BaseModelError, DataError) as error:  # what cannot be is told, not fatal
                found.left_out[section] = str(error)


def _rows(prompt: InspectedPrompt, options: InspectOptions) -> Rows:
    try:
        return rows_of(prompt, options.data, most=options.rows, seed=options.seed)
    except DataError as error:
        if options.data is not None:
            raise
        only = ",".join(_WITHOUT_ROWS)
        raise DataError(f"{str(error).rstrip('.')}, or ask for --only {only}.") from None


class _Inspector:
    """Looks at one prompt: a method for each section, which enters what it finds."""

    def __init__(
        self, found: PromptInspection, vocabulary: Vocabulary, options: InspectOptions, listener: Listener
    ) -> None:
        self.found, self.prompt = found, found.inspected
        self._vocabulary, self._options, self._listener = vocabulary, options, listener
        start = self.prompt.start
        self._begun = start if isinstance(start, torch.Tensor) else None  # [P, E]

    @property
    def rows(self) -> Encoded:
        """What the prompt is tried on."""
        assert self.found.rows is not None
        return self.found.rows.encoded

    def tell(self, what: str) -> Callable[[int, int], None]:
        """Say what begins, and pass on how far it is."""
        told = self._listener.counting(f"{self.prompt.name}: {what}")
        told(0, 1)
        return told

    def near(self) -> None:
        front, seed, vocabulary = self.prompt.front, self._options.seed, self._vocabulary
        if isinstance(front, Prefix):
            self.found.left_out["near"] = _NO_WORDS
            return
        self.tell("nearest words")
        self.found.near = neighbours(front, vocabulary, self._begun, seed=seed)
        learnt = list(self.prompt.learnt)
        self.found.clusters = clusters(front[learnt], vocabulary, seed=seed)
        if self._begun is not None:
            self.found.start_clusters = clusters(self._begun[learnt], vocabulary, seed=seed)

    def drift(self) -> None:
        front, start, vocabulary = self.prompt.front, self.prompt.start, self._vocabulary
        self.tell("drift")
        if not isinstance(front, Prefix):
            self.found.drift = drift(front, vocabulary, self._begun)
            draw = umap_chart if self._options.umap else chart
            self.found.map = draw(front, vocabulary, self._begun, shown=1500, seed=self._options.seed)
        elif isinstance(start, Prefix):
            self.found.prefix_drift = prefix_drift(front, start)
        else:
            self.found.left_out["drift"] = self.prompt.start_note

    def ablation(self) -> None:
        prompt, found = self.prompt, self.found.clusters
        # Clusters count learnt positions; ablation counts all.
        groups = [[prompt.learnt[p] for p in one.positions] for one in (found.clusters if found else ())]
        told = self.tell("ablation")
        self.found.ablation = ablate(prompt.base, prompt.front, self.rows, clusters=groups, progress=told)

    def attention(self) -> None:
        told = self.tell("attention")
        self.found.attention = attention(self.prompt.base, self.prompt.front, self.rows, progress=told)

    def words(self) -> None:
        front, options, vocabulary = self.prompt.front, self._options, self._vocabulary
        if isinstance(front, Prefix):
            self.found.left_out["words"] = _NO_TEXT
            return
        self.tell("its nearest words as a prompt")
        self.found.words = rendering(front, self.rows, vocabulary)
        if not (options.search or options.wayward):
            return
        train = training_rows(self.prompt, _TRAINED_ON, options.seed)
        if options.search:
            told, places = self.tell("search for words"), self.prompt.learnt
            self.found.search = search(front, train, self.rows, vocabulary, places=places, progress=told)
        if options.wayward:
            told, length = self.tell("wayward control"), len(front)
            self.found.wayward = wayward(
                options.wayward, length, train, self.rows, vocabulary, reference=front, progress=told
            )

    def says(self) -> None:
        self.tell("what it says")
        seed = self._options.seed
        self.found.speech = speak(self.prompt.base, self.prompt.front, seed=seed)
        bare = self.prompt.prompt.bare().front
        self.found.shift = shift(self.prompt.front, self.rows, self._vocabulary, bare=bare, seed=seed)

    def mixing(self) -> None:
        prompt = self.prompt
        if prompt.start is None:
            self.found.left_out["mixing"] = prompt.start_note
            return
        self.tell("on the way from its start")
        with torch.no_grad():
            mixture = scaling(prompt.base, prompt.front, prompt.start, self.rows, seed=self._options.seed)
        self.found.mixing = mixture


def _relations(
    prompts: Sequence[InspectedPrompt], rows: Rows, vocabulary: Vocabulary, seed: int
) -> dict[str, Any]:
    """How prompts are alike: soft prompts as vectors, all by what they do to the rows of the first."""
    fronts = {prompt.name: prompt.front for prompt in prompts}
    if len(fronts) < len(prompts):
        raise ConfigError("A prompt is named twice; name each once.")
    soft = {name: front for name, front in fronts.items() if isinstance(front, torch.Tensor)}
    starts = {p.name: p.start for p in prompts if p.name in soft and isinstance(p.start, torch.Tensor)}
    notes = []
    first, *others = prompts
    differing = [p.name for p in others if p.prompt.template != first.prompt.template]
    if differing:
        notes.append(
            f"{', '.join(differing)} read rows by other templates; here all read them as {first.name} does."
        )
    average = None
    try:
        average = averages(first.base, fronts, rows.encoded, seed=seed)
    except ConfigError:
        notes.append("These prompts differ in kind or length, so they have no average.")
    return {
        "likeness": tuple(likeness(soft, vocabulary, starts)) if len(soft) > 1 else (),
        "effects": tuple(effects(first.base, fronts, rows.encoded, seed=seed)),
        "average": average,
        "notes": tuple(notes),
    }
