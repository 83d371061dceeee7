"""The control against reading prompts by their nearest words: one that does the job beside an unrelated text.

It knows vectors, a text, and rows to train and score on; it does not know methods or files. Notation: P
positions, E embedding width.

Khashabi et al. 2022, "Prompt Waywardness", found that next to any text there are prompts that do the job.
Where this control succeeds, what words a prompt lies next to says little of what it does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompt.data.rows import Encoded
from softprompt.evaluation.score import Scores, score, target_rows
from softprompt.interpretation.finding import Finding
from softprompt.interpretation.neighbours import By, nearest_words
from softprompt.interpretation.scored import Scored, ScoreDifference
from softprompt.interpretation.vocabulary import Vocabulary, Word
from softprompt.methods.init import from_text
from softprompt.prefix import Front
from softprompt.training.schedule import Steps

__all__ = ["Wayward", "WaywardSettings", "text_f1", "wayward"]


@dataclass(frozen=True)
class WaywardSettings:
    """How the control is trained.

    Attributes:
        steps: how many.
        batch_size: rows a step.
        learning_rate: of AdamW, as a share of how far a word's coordinates typically lie from the mean.
        gamma: weight of the mean squared distance to the text, in units of the words' own spread.
        validate_every: steps between looks at the validation rows.
        seed: of the order of the rows.
    """

    steps: int = 100
    batch_size: int = 16
    learning_rate: float = 0.05
    gamma: float = 1.0
    validate_every: int = 10
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Wayward(Finding):
    """A prompt beside a text.

    Attributes:
        prompt: ``[P, E]``, fp32 on the CPU; not in ``to_json``.
        text: what it had to stay beside.
        words: the token of the text at each position.
        nearest: the word each position lies next to.
        matches: share of positions whose nearest word is the text's.
        f1: token F1 of the nearest words with the text, whatever their order.
        distance: root mean squared distance to the text, in units of the words' spread.
        text_scores: the text itself as a prompt, where training began.
        scores: the prompt.
        reference: the prompt it is held against; None where none was given.
        against: this prompt less that, on the same rows.
        best_step: the step it was taken at, by validation loss plus the weighted distance.
        train_rows: rows it was trained on.
        settings: how, seed included.
    """

    prompt: Tensor
    text: str
    words: tuple[Word, ...]
    nearest: tuple[Word, ...]
    matches: float
    f1: float
    distance: float
    text_scores: Scored
    scores: Scored
    reference: Scored | None
    against: ScoreDifference | None
    best_step: int
    train_rows: int
    settings: WaywardSettings

    @property
    def rising(self) -> bool:
        """Whether it was best at one of its last two looks, so that more steps may bring more."""
        last = self.settings.steps - 2 * self.settings.validate_every
        return self.best_step > max(0, last)

    def to_json(self) -> dict[str, Any]:
        """Everything but the vectors, as JSON values."""
        return {name: value for name, value in super().to_json().items() if name != "prompt"}


def wayward(
    text: str,
    length: int,
    train: Encoded,
    validation: Encoded,
    vocabulary: Vocabulary,
    settings: WaywardSettings | None = None,
    *,
    reference: Front | None = None,
    by: By = "distance",
    progress: Callable[[int, int], None] = lambda step, total: None,
) -> Wayward:
    """Train a prompt of ``length`` vectors that does the job while it stays beside ``text``.

    Args:
        text: repeated or cut to ``length`` tokens, special tokens left out.
        length: P.
        train: rows to learn from.
        validation: rows to choose and score by.
        vocabulary: the words of the base.
        settings: how long, how far, how near.
        reference: the prompt to hold it against.
        by: which nearness tells the word of a position.
        progress: told (step, steps) after each.

    Raises:
        ConfigError: the text has no tokens.
    """
    settings = settings or WaywardSettings()
    base = vocabulary.base
    anchor = from_text(base, text, length)  # [P, E]
    ids = nearest_words(anchor, vocabulary, by="distance")
    begun = score(base, anchor, validation)
    step, prompt = _train(anchor, begun, train, validation, vocabulary, settings, progress)
    found = score(base, prompt, validation)
    other = None if reference is None else score(base, reference, validation)
    near = nearest_words(prompt, vocabulary, by=by)
    return Wayward(
        prompt=prompt.cpu(),
        text=text,
        words=tuple(vocabulary.word(i) for i in ids),
        nearest=tuple(vocabulary.word(i) for i in near),
        matches=sum(a == b for a, b in zip(ids, near, strict=True)) / length,
        f1=text_f1(near, ids),
        distance=math.sqrt(_distance(prompt, anchor, vocabulary)),
        text_scores=Scored.of(begun),
        scores=Scored.of(found),
        reference=None if other is None else Scored.of(other),
        against=None if other is None else ScoreDifference.of(found, other, validation),
        best_step=step,
        train_rows=len(train.examples),
        settings=settings,
    )


def text_f1(found: Sequence[int], wanted: Sequence[int]) -> float:
    """Token F1 of two lists of ids, each id as often as it occurs, whatever the order."""
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def _distance(prompt: Tensor, anchor: Tensor, vocabulary: Vocabulary) -> float:
    """Mean squared distance of positions to their text, in units of the words' spread."""
    return float((prompt - anchor).square().sum(1).mean()) / vocabulary.spread**2


def _train(
    anchor: Tensor,
    begun: Scores,
    train: Encoded,
    validation: Encoded,
    vocabulary: Vocabulary,
    settings: WaywardSettings,
    progress: Callable[[int, int], None],
) -> tuple[int, Tensor]:
    """The step and the vectors of least validation loss plus weighted distance."""
    base, rows = vocabulary.base, target_rows(train.examples)
    epochs = math.ceil(settings.steps * settings.batch_size / len(rows)) + 1
    order = Steps(len(rows), settings.batch_size, epochs, settings.seed)
    soft = anchor.clone().requires_grad_()
    unit = vocabulary.spread / math.sqrt(anchor.shape[1])
    optimizer = torch.optim.AdamW([soft], lr=settings.learning_rate * unit, weight_decay=0.0)
    best = (begun.nll, 0, anchor.clone())
    for step in range(1, settings.steps + 1):
        optimizer.zero_grad()
        away = (soft - anchor).square().sum(1).mean() / vocabulary.spread**2
        loss = base.nll([rows[i] for i in order.batch(step - 1)], soft).nll.mean() + settings.gamma * away
        loss.backward()
        torch.nn.utils.clip_grad_norm_([soft], 1.0)
        optimizer.step()
        if step % settings.validate_every == 0 or step == settings.steps:
            now = soft.detach().clone()
            worth = score(base, now, validation).nll
            worth += settings.gamma * _distance(now, anchor, vocabulary)
            if worth < best[0]:
                best = (worth, step, now)
        progress(step, settings.steps)
    return best[1:]
