"""What a short prompt keeps of its teacher, in numbers: on held-out questions, beside the cheap alternatives.

It knows fronts, lessons and encoded questions; it does not know how a front was learnt, nor pages.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.data.rows import Encoded
from softprompt.distillation.lessons import Lessons, Progress
from softprompt.evaluation.divergence import Divergence, divergence, kept_share
from softprompt.evaluation.intervals import Value, average, sampled_ratio
from softprompt.evaluation.score import judge
from softprompt.evaluation.text_metrics import rouge
from softprompt.evaluation.writing import write_texts
from softprompt.packages import require
from softprompt.prefix import Front, Prefix

__all__ = ["Contestant", "Figures", "Kept", "Lost", "TimeCosts", "measure"]

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")

SHOWN = 5
"""So many questions on which most was lost are shown of each prompt."""

TIMED = 7
"""So many questions are read to time the first token; their median counts."""


@dataclass(frozen=True, eq=False)
class Contestant:
    """Something that may stand in front of a question instead of the text.

    Attributes:
        name: what the tables call it.
        role: ``"learnt"``, ``"start"`` (the same before training), ``"cut"`` (the text cut to that length),
            ``"bare"`` (nothing) or ``"text"`` (the teacher itself).
        front: embeddings or a prefix.
        base: the model it is read with.
    """

    name: str
    role: str
    front: Front
    base: Base


@dataclass(frozen=True)
class Kept:
    """What one of them keeps; every value with its 95% interval over questions.

    Attributes:
        name, role: as in ``Contestant``.
        positions: P.
        kilobytes: of its keys and values, as they are kept in memory.
        nats: divergence from the teacher, a token of its answers.
        kept: the share of the bare base's divergence that is gone.
        likeliest: the share of answer tokens at which both find the same token likeliest.
        same: the share of questions with the teacher's very answer.
        rouge: ROUGE-L of the answers against the teacher's; None where answers are among candidates.
        numbers: the share of the teacher's answers with numbers whose numbers all stand in this one's, too;
            None where there are none.
        accuracy: share of right answers; None where they are not known.
    """

    name: str
    role: str
    positions: int
    kilobytes: float
    nats: Value
    kept: Value
    likeliest: Value
    same: Value
    rouge: Value | None = None
    accuracy: Value | None = None
    numbers: Value | None = None


@dataclass(frozen=True)
class Lost:
    """A question on which much was lost."""

    prompt: str
    question: str
    teacher: str
    said: str
    nats: float


@dataclass(frozen=True)
class TimeCosts:
    """Seconds, measured here and one at a time.

    Attributes:
        read: to the first token where text and question are read.
        stored: where the text's keys and values are kept and only the question is read.
        prompts: the same behind each prompt, by name.
        spent: to draw the answers and to train.
    """

    read: float
    stored: float
    prompts: dict[str, float]
    spent: float

    def break_even(self, name: str) -> int | None:
        """After so many requests the time spent is won back, against reading the text each time."""
        saved = self.read - self.prompts[name]
        return None if saved <= 0 else int(self.spent / saved) + 1


@dataclass(frozen=True)
class Figures:
    """All that is known of what was kept and lost.

    Attributes:
        name: of what was learnt.
        teacher: what the teacher is.
        questions: how many held-out questions the figures are over.
        rows: the contestants, the learnt ones first.
        lost: the questions with the largest divergence.
        costs: in seconds.
    """

    name: str
    teacher: str
    questions: int
    rows: tuple[Kept, ...]
    lost: tuple[Lost, ...]
    costs: TimeCosts

    def of(self, role: str) -> list[Kept]:
        """The rows of one role, shortest first."""
        return sorted((row for row in self.rows if row.role == role), key=lambda row: row.positions)

    def row(self, name: str) -> Kept:
        """The row of a contestant."""
        return next(row for row in self.rows if row.name == name)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values; None for a break-even that never comes."""
        even = {name: self.costs.break_even(name) for name in self.costs.prompts}
        return asdict(self) | {"break_even": even}


def measure(
    name: str,
    lessons: Lessons,
    encoded: Encoded,
    split: str,
    contestants: Sequence[Contestant],
    *,
    spent: float,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    progress: Progress = lambda what, done, total: None,
) -> Figures:
    """Hold every contestant against the teacher on the questions of a split.

    Args:
        name: of what was learnt.
        lessons: the teacher's answers.
        encoded: the questions of the split.
        split: which.
        contestants: the bare one among them.
        spent: seconds it took to draw the answers and to train.
        max_new_tokens: the longest answer.
        stop: strings before which an answer ends.
        progress: told (what, done, total).

    Raises:
        ResourceError: free answers, and rouge-score is not installed.
    """
    rows = lessons.rows[split]
    compares = any(map(encoded.candidates, encoded.examples))
    if not compares:
        require("scoring written texts")
    seen: dict[str, Divergence] = {}
    for number, one in enumerate(contestants):
        (seen[one.name],) = divergence(one.base, [one.front], rows)
        progress("divergences", number + 1, len(contestants))
    (bare,) = (seen[one.name] for one in contestants if one.role == "bare")
    said: dict[str, list[str]] = {}
    kept = []
    for number, one in enumerate(contestants):
        with torch.no_grad():
            prefix = one.base.prefill(one.front)
        if compares:
            answers, right = _chosen(one.base, prefix, encoded)
        else:
            answers = write_texts(one.base, prefix, encoded, max_new_tokens=max_new_tokens, stop=stop)
            right = None
        said[one.name] = answers
        kept.append(_row(one, prefix, seen[one.name], bare, answers, right, lessons, split, compares))
        progress("answers", number + 1, len(contestants))
    learnt = [one for one in contestants if one.role == "learnt"]
    lost = [
        found
        for one in learnt
        for found in _lost(one, seen[one.name], said[one.name], lessons, encoded, split)
    ]
    costs = _costs(lessons, encoded, learnt, spent)
    return Figures(name, lessons.teacher.about, len(rows), tuple(kept), tuple(lost), costs)


def _chosen(base: Base, prefix: Prefix, encoded: Encoded) -> tuple[list[str], list[float] | None]:
    """Each row's likeliest candidate and, where answers are known, whether it is right."""
    examples = encoded.examples
    best = judge(base, prefix, encoded).weights.argmax(1).tolist()
    answers = [base.decode(encoded.candidates(e)[place]) for e, place in zip(examples, best, strict=True)]
    if any(e.label is None for e in examples):
        return answers, None
    return answers, [float(p in (e.right or (e.label,))) for e, p in zip(examples, best, strict=True)]


def _row(
    one: Contestant,
    prefix: Prefix,
    found: Divergence,
    bare: Divergence,
    answers: Sequence[str],
    right: Sequence[float] | None,
    lessons: Lessons,
    split: str,
    compares: bool,
) -> Kept:
    wanted = [answer.text.strip() for answer in lessons.answers[split]]
    same = [float(a.strip() == b) for a, b in zip(answers, wanted, strict=True)]
    return Kept(
        one.name,
        one.role,
        prefix.length,
        prefix.nbytes / 1024,
        sampled_ratio(found.nats, found.tokens).interval(),
        kept_share(found, bare).interval(),
        sampled_ratio(found.agreed, found.tokens).interval(),
        average(same),
        None if compares else average(rouge([a.strip() for a in answers], [[w] for w in wanted])["rougeL"]),
        None if right is None else average(list(right)),
        None if compares else _numbers_kept(answers, wanted),
    )


def _numbers_kept(answers: Sequence[str], wanted: Sequence[str]) -> Value | None:
    pairs = [(set(_NUMBER.findall(w)), set(_NUMBER.findall(a))) for w, a in zip(wanted, answers, strict=True)]
    kept = [float(numbers <= said) for numbers, said in pairs if numbers]
    return average(kept) if kept else None


def _lost(
    one: Contestant,
    found: Divergence,
    answers: Sequence[str],
    lessons: Lessons,
    encoded: Encoded,
    split: str,
) -> list[Lost]:
    worst = sorted(range(len(answers)), key=lambda number: -found.nats[number])[:SHOWN]
    return [
        Lost(
            one.name,
            one.base.decode(encoded.examples[number].input_ids),
            lessons.answers[split][number].text,
            answers[number],
            found.nats[number],
        )
        for number in worst
    ]


# Time to the first token --------------------------------------------------------------------------


def _costs(lessons: Lessons, encoded: Encoded, learnt: Sequence[Contestant], spent: float) -> TimeCosts:
    """Seconds to what the model expects next, behind each, one question at a time."""
    teacher = lessons.teacher
    questions = [TokenRow(example.input_ids) for example in encoded.examples[:TIMED]]
    words = teacher.ids

    def read(row: TokenRow) -> object:
        return teacher.base.next_logits([TokenRow((*words, *row.ids))], teacher.base.embed([]))

    def behind(base: Base, prefix: Prefix) -> Callable[[TokenRow], object]:
        return lambda row: base.next_logits([row], prefix)

    with torch.no_grad():
        stored = _median(behind(teacher.base, teacher.prefix), questions)
        whole = _median(read, questions) if words else stored
        prompts = {
            one.name: _median(behind(one.base, one.base.prefill(one.front)), questions) for one in learnt
        }
    return TimeCosts(whole, stored, prompts, spent)


def _median(read: Callable[[TokenRow], object], rows: Sequence[TokenRow]) -> float:
    """The first is read once more, not to be timed cold."""
    taken = []
    for row in (rows[0], *rows):
        began = time.perf_counter()
        read(row)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])
