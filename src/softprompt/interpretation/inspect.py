"""Everything that can be seen inside saved prompts, put together: which analyses apply, on which rows.

It knows the analyses and what each needs; it does not know how any is computed, nor screens or pages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from softprompt.base.model import Base
from softprompt.errors import BaseModelError, ConfigError, DataError
from softprompt.interpretation.ablation import Ablation, ablate
from softprompt.interpretation.arithmetic import Mixture, averages, scaling
from softprompt.interpretation.attention import Attention, attention
from softprompt.interpretation.clusters import Clusters, clusters
from softprompt.interpretation.drift import (
    Chart,
    Drift,
    PrefixDrift,
    chart,
    drift,
    prefix_drift,
    umap_chart,
)
from softprompt.interpretation.neighbours import Neighbours, neighbours
from softprompt.interpretation.relations import Matrix, effects, likeness
from softprompt.interpretation.says import Shift, Speech, shift, speak
from softprompt.interpretation.subject import Rows, Subject, open_subject, rows_of, training_rows
from softprompt.interpretation.vocabulary import Vocabulary
from softprompt.interpretation.wayward import Wayward, wayward
from softprompt.interpretation.words import InWords, Search, rendering, search
from softprompt.packages import Need, require
from softprompt.prefix import Prefix

__all__ = ["SECTIONS", "Findings", "Inspection", "Wishes", "inspect"]

SECTIONS = ("near", "drift", "ablation", "attention", "words", "says", "mixing", "relations")
"""What can be asked for, in the order it is told."""

_WITHOUT_ROWS = ("near", "drift")
_TRAINED_ON = 500
"""Training rows that a search for words or the wayward control learns from, at most."""

_NO_WORDS = (
    "A KV prefix lies in no space of words, so it has no nearest words; see how far it travelled instead."
)
_NO_TEXT = "A KV prefix lies in no space of words, so no words can stand for its positions."

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wishes:
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

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("a UMAP map",) if self.umap else ()

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in SECTIONS:
                raise ConfigError(f"There is no section {name!r}; choose among {', '.join(SECTIONS)}.")


@dataclass(eq=False)
class Findings:
    """What was found in one prompt; None where it was not asked for or does not apply.

    Attributes:
        subject: the prompt.
        rows: what it was tried on; None where no section needed any.
        start_clusters: the same of where it began: what is grouped there already was not learnt.
        left_out: by section that was asked for, why there is nothing.
    """

    subject: Subject
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
    search: Search | None = None
    wayward: Wayward | None = None
    speech: Speech | None = None
    shift: Shift | None = None
    mixing: Mixture | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        subject, rows = self.subject, self.rows
        parts = {name: getattr(self, name) for name in _PARTS}
        return {
            "name": subject.name,
            "kind": subject.kind,
            "positions": subject.positions,
            "learnt": list(subject.learnt),
            "words_in_front": dict(subject.words),
            "start": subject.start_note or "known",
            "rows": rows and {"told": rows.told, "count": len(rows), "split": rows.split},
            **{name: part.to_json() for name, part in parts.items() if part is not None},
            "left_out": self.left_out,
        }


_PARTS = tuple(name for name in Findings.__dataclass_fields__ if name not in ("subject", "rows", "left_out"))


@dataclass(frozen=True, eq=False)
class Inspection:
    """What was found in prompts of one base.

    Attributes:
        base: its name.
        prompts: each by itself.
        likeness: how alike they are as vectors.
        effects: how alike in what they do, on the rows of the first and as it reads them.
        average: scores of each and of their average on those rows.
        notes: plain sentences about the comparison.
        wishes: what was asked for.
    """

    base: str
    prompts: tuple[Findings, ...]
    wishes: Wishes
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
            "wishes": asdict(self.wishes) | {"only": list(self.wishes.only)},
        }


def inspect(
    names: Sequence[str | Path],
    base: Base,
    library: str | Path = "prompts",
    wishes: Wishes | None = None,
    *,
    watch: Watch = lambda what, done, total: None,
) -> Inspection:
    """Look inside saved prompts of one base.

    Args:
        names: of prompts in the library, or folders.
        base: the model they were learnt on; it is not changed.
        library: where they lie.
        wishes: what to look at.
        watch: told (what, steps done, all) now and then.

    Raises:
        ArtifactError: there is no such prompt, or none that can be inspected.
        WrongBaseError: one was learnt on another base.
        DataError: sections were asked for that need rows, and there are none.
    """
    wishes = wishes or Wishes()
    require(*wishes.needs)
    subjects = [open_subject(name, base, library) for name in names]
    needs_rows = any(name not in _WITHOUT_ROWS for name in wishes.only)
    rows = [_rows(subject, wishes) if needs_rows else None for subject in subjects]
    vocabulary = Vocabulary.of(base)
    found = []
    for subject, own in zip(subjects, rows, strict=True):
        look = _Look(Findings(subject, own), vocabulary, wishes, watch)
        for section in SECTIONS:
            if section in wishes.only and section in _LOOKS:
                with _left_out(look.findings, section):
                    _LOOKS[section](look)
        found.append(look.findings)
    together: dict[str, Any] = {}
    if "relations" in wishes.only and len(subjects) > 1 and rows[0] is not None:
        watch("Comparing the prompts", 0, 1)
        together = _relations(subjects, rows[0], vocabulary, wishes.seed)
    return Inspection(base.name, tuple(found), wishes, **together)


def _rows(subject: Subject, wishes: Wishes) -> Rows:
    try:
        return rows_of(subject, wishes.data, most=wishes.rows, seed=wishes.seed)
    except DataError as error:
        if wishes.data is not None:
            raise
        only = ",".join(_WITHOUT_ROWS)
        raise DataError(f"{str(error).rstrip('.')}, or ask for --only {only}.") from None


@contextmanager
def _left_out(findings: Findings, section: str) -> Iterator[None]:
    """What a model or the rows do not allow is told, not fatal."""
    try:
        yield
    except (BaseModelError, DataError) as error:
        findings.left_out[section] = str(error)


# One prompt --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Look:
    """One prompt being looked at."""

    findings: Findings
    vocabulary: Vocabulary
    wishes: Wishes
    watch: Watch

    @property
    def subject(self) -> Subject:
        return self.findings.subject

    @property
    def rows(self) -> Rows:
        assert self.findings.rows is not None
        return self.findings.rows

    def say(self, what: str) -> Callable[[int, int], None]:
        """Passes on how far something is."""
        told = f"{self.subject.name}: {what}"
        self.watch(told, 0, 1)
        return lambda done, total: self.watch(told, done, total)


def _near(look: _Look) -> None:
    front, start, findings = look.subject.front, look.subject.start, look.findings
    if isinstance(front, Prefix):
        findings.left_out["near"] = _NO_WORDS
        return
    look.say("nearest words")
    begun = start if isinstance(start, torch.Tensor) else None
    findings.near = neighbours(front, look.vocabulary, begun, seed=look.wishes.seed)
    learnt = list(look.subject.learnt)
    findings.clusters = clusters(front[learnt], look.vocabulary, seed=look.wishes.seed)
    if begun is not None:
        findings.start_clusters = clusters(begun[learnt], look.vocabulary, seed=look.wishes.seed)


def _drift(look: _Look) -> None:
    front, start, findings = look.subject.front, look.subject.start, look.findings
    look.say("drift")
    if isinstance(front, Prefix):
        if isinstance(start, Prefix):
            findings.prefix_drift = prefix_drift(front, start)
        else:
            findings.left_out["drift"] = look.subject.start_note
        return
    begun = start if isinstance(start, torch.Tensor) else None
    findings.drift = drift(front, look.vocabulary, begun)
    draw = umap_chart if look.wishes.umap else chart
    findings.map = draw(front, look.vocabulary, begun, shown=1500, seed=look.wishes.seed)


def _ablation(look: _Look) -> None:
    subject, findings = look.subject, look.findings
    # Clusters count learnt positions; ablation counts all.
    groups = [
        [subject.learnt[p] for p in one.positions]
        for one in (findings.clusters.clusters if findings.clusters else ())
    ]
    findings.ablation = ablate(
        subject.base, subject.front, look.rows.encoded, clusters=groups, progress=look.say("ablation")
    )


def _attention(look: _Look) -> None:
    subject = look.subject
    told = look.say("attention")
    look.findings.attention = attention(subject.base, subject.front, look.rows.encoded, progress=told)


def _words(look: _Look) -> None:
    front, findings, wishes = look.subject.front, look.findings, look.wishes
    if isinstance(front, Prefix):
        findings.left_out["words"] = _NO_TEXT
        return
    look.say("its nearest words as a prompt")
    findings.words = rendering(front, look.rows.encoded, look.vocabulary)
    if not (wishes.search or wishes.wayward):
        return
    train, rows = training_rows(look.subject, _TRAINED_ON, wishes.seed), look.rows.encoded
    if wishes.search:
        told = look.say("search for words")
        findings.search = search(front, train, rows, look.vocabulary, places=look.subject.learnt, watch=told)
    if wishes.wayward:
        told = look.say("wayward control")
        findings.wayward = wayward(
            wishes.wayward, len(front), train, rows, look.vocabulary, reference=front, watch=told
        )


def _says(look: _Look) -> None:
    subject, seed = look.subject, look.wishes.seed
    look.say("what it says")
    look.findings.speech = speak(subject.base, subject.front, seed=seed)
    look.findings.shift = shift(subject.front, look.rows.encoded, look.vocabulary, seed=seed)


def _mixing(look: _Look) -> None:
    subject = look.subject
    if subject.start is None:
        look.findings.left_out["mixing"] = subject.start_note
        return
    look.say("on the way from its start")
    with torch.no_grad():
        look.findings.mixing = scaling(
            subject.base, subject.front, subject.start, look.rows.encoded, seed=look.wishes.seed
        )


_LOOKS: dict[str, Callable[[_Look], None]] = {
    "near": _near,
    "drift": _drift,
    "ablation": _ablation,
    "attention": _attention,
    "words": _words,
    "says": _says,
    "mixing": _mixing,
}


# Several -----------------------------------------------------------------------------------------


def _relations(subjects: Sequence[Subject], rows: Rows, vocabulary: Vocabulary, seed: int) -> dict[str, Any]:
    """How prompts are alike: soft prompts as vectors, all by what they do to the rows of the first."""
    fronts = {subject.name: subject.front for subject in subjects}
    if len(fronts) < len(subjects):
        raise ConfigError("A prompt is named twice; name each once.")
    soft = {name: front for name, front in fronts.items() if isinstance(front, torch.Tensor)}
    starts = {s.name: s.start for s in subjects if s.name in soft and isinstance(s.start, torch.Tensor)}
    notes = []
    first = subjects[0]
    others = [s.name for s in subjects[1:] if s.prompt.template != first.prompt.template]
    if others:
        notes.append(
            f"{', '.join(others)} read rows by other templates; here all read them as {first.name} does."
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
