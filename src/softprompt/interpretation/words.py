"""Whether a prompt can be said in words: its nearest words run as a real prompt, and a search for better.

It knows a front, a vocabulary and rows to train and score on; it does not know methods or files. Notation: P
positions, E embedding width, V words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.base.model import Base, Batch
from softprompt.base.packing import TokenRow, split
from softprompt.data.rows import Encoded
from softprompt.evaluation.score import Scores, score, score_many, target_rows
from softprompt.interpretation.finding import Finding
from softprompt.interpretation.neighbours import By, nearest_words
from softprompt.interpretation.scored import Scored, ScoreDifference
from softprompt.interpretation.vocabulary import Vocabulary, Word
from softprompt.training.loop import selection_score
from softprompt.training.schedule import Steps

__all__ = ["InWords", "SearchSettings", "WordSearch", "rendering", "search"]

PASS_POSITIONS = 2048
"""Positions read in one pass over exchanged words; bounds memory, changes no result."""


@dataclass(frozen=True)
class InWords(Finding):
    """A prompt as words, and what it loses by that.

    Attributes:
        words: one for each position.
        text: them together, as the tokenizer writes them.
        by: which nearness chose them.
        soft: scores of the prompt itself.
        scores: scores of its words.
        lost: the words less the prompt, on the same rows.
    """

    words: tuple[Word, ...]
    text: str
    by: By
    soft: Scored
    scores: Scored
    lost: ScoreDifference


@dataclass(frozen=True)
class SearchSettings:
    """How words are searched for.

    Attributes:
        steps: how many steps; each reads a batch behind the present words, and then behind ``swaps`` others.
        batch_size: rows a step.
        learning_rate: step of AdamW, as a share of how far a word's coordinates typically lie from the mean.
        closeness: weight of the mean squared distance to the words, in units of the words' own spread.
        swaps: how many exchanges of one word are tried each step; 0 for none.
        validate_every: steps between looks at the validation rows.
        seed: of the batches' order and the exchanges tried.
    """

    steps: int = 40
    batch_size: int = 16
    learning_rate: float = 0.1
    closeness: float = 0.1
    swaps: int = 4
    validate_every: int = 5
    seed: int = 0


@dataclass(frozen=True)
class WordSearch(Finding):
    """What a search for words found: of all words looked at those that validate best.

    Attributes:
        ids: token ids, one for each position.
        words, text: the same to read.
        soft, nearest, found: scores on the validation rows of the prompt, of its nearest words and of these.
        lost: these words less the prompt, on the same rows. The words were chosen on these rows, so they
            flatter the words a little; score them on rows of their own for a number to quote.
        looked: how many different texts were validated.
        best_step: the step that found these; 0 where nothing beat the nearest words.
        train_rows: rows the search learnt from.
        settings: how it went, seed included.
    """

    ids: tuple[int, ...]
    words: tuple[Word, ...]
    text: str
    soft: Scored
    nearest: Scored
    found: Scored
    lost: ScoreDifference
    looked: int
    best_step: int
    train_rows: int
    settings: SearchSettings


def rendering(front: Tensor, encoded: Encoded, vocabulary: Vocabulary, *, by: By = "distance") -> InWords:
    """The nearest word at each position of ``[P, E]``, run as a real prompt on ``encoded``."""
    base = vocabulary.base
    ids = nearest_words(front, vocabulary, by=by)
    soft, hard = score_many(base, [front, vocabulary.vectors(_ids(ids, base))], encoded)
    words, text = _said(ids, vocabulary)
    return InWords(words, text, by, Scored.of(soft), Scored.of(hard), ScoreDifference.of(hard, soft, encoded))


def search(
    front: Tensor,
    train: Encoded,
    validation: Encoded,
    vocabulary: Vocabulary,
    settings: SearchSettings | None = None,
    *,
    places: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda step, total: None,
) -> WordSearch:
    """Look for words that do what the prompt does.

    Vectors are learnt from the prompt on, but the loss is taken at the words nearest to them (Wen et al.
    2023, "Hard Prompts Made Easy"), with a pull towards these words. Where the gradient expects a gain,
    single words are exchanged, and the exchange is kept if the batch's loss falls (Shin et al. 2020,
    "AutoPrompt").

    Args:
        front: ``[P, E]`` the prompt.
        train: rows to learn from.
        validation: rows to choose by.
        vocabulary: the words of its base; special tokens are left out.
        settings: how long and how far; by default 40 steps, each a pass forward and back and four forward.
        places: the positions to search; the others keep their nearest word. All by default.
        progress: told (step, steps) after each.
    """
    settings = settings or SearchSettings()
    hunt = _Hunt(front, train, vocabulary, settings, places)
    choice = _Choice(vocabulary, validation)
    measures: tuple[By, ...] = ("distance", "cosine")
    for by in measures:  # the nearest words themselves are candidates
        choice.look(nearest_words(front, vocabulary, by=by), 0)
    nearest = choice.scores[0]
    for step in range(1, settings.steps + 1):
        hunt.step(step - 1)
        if step % settings.validate_every == 0 or step == settings.steps:
            choice.look(hunt.words, step)
        progress(step, settings.steps)
    soft = score(vocabulary.base, front, validation)
    words, text = _said(choice.ids, vocabulary)
    return WordSearch(
        ids=tuple(choice.ids),
        words=words,
        text=text,
        soft=Scored.of(soft),
        nearest=Scored.of(nearest),
        found=Scored.of(choice.best),
        lost=ScoreDifference.of(choice.best, soft, validation),
        looked=len(choice.scores),
        best_step=choice.step,
        train_rows=len(train.examples),
        settings=settings,
    )


class _Choice:
    """Validates texts, each once, and keeps the best."""

    def __init__(self, vocabulary: Vocabulary, validation: Encoded) -> None:
        self._vocabulary = vocabulary
        self._validation = validation
        self._seen: set[tuple[int, ...]] = set()
        self.scores: list[Scores] = []
        self.ids: list[int] = []
        self.step = 0

    @property
    def best(self) -> Scores:
        return max(self.scores, key=lambda scores: selection_score(scores, "accuracy"))

    def look(self, ids: Sequence[int], step: int) -> None:
        """Validate a text."""
        if tuple(ids) in self._seen:
            return
        self._seen.add(tuple(ids))
        base = self._vocabulary.base
        found = score(base, self._vocabulary.vectors(_ids(ids, base)), self._validation)
        self.scores.append(found)
        if self.best is found:
            self.ids, self.step = list(ids), step


class _Hunt:
    """The vectors that are learnt, and the words they stand for."""

    def __init__(
        self,
        front: Tensor,
        train: Encoded,
        vocabulary: Vocabulary,
        settings: SearchSettings,
        places: Sequence[int] | None,
    ) -> None:
        base = vocabulary.base
        self._vocabulary, self._settings = vocabulary, settings
        self._rows = target_rows(train.examples)
        epochs = math.ceil(settings.steps * settings.batch_size / len(self._rows)) + 1
        self._steps = Steps(len(self._rows), settings.batch_size, epochs, settings.seed)
        self._generator = torch.Generator().manual_seed(settings.seed)
        searched = list(range(len(front)) if places is None else places)
        self._places = torch.tensor(searched, device=base.device, dtype=torch.long)
        self._words = _ids(nearest_words(front, vocabulary), base)  # [P]
        self._vectors = front.detach().to(base.device, torch.float32)[self._places].clone()  # [n, E]
        unit = vocabulary.spread / math.sqrt(vocabulary.table.shape[1])
        self._optimizer = torch.optim.AdamW(
            [self._vectors.requires_grad_()], lr=settings.learning_rate * unit, weight_decay=0.0
        )
        self._project()

    @property
    def words(self) -> list[int]:
        return [int(i) for i in self._words]

    def step(self, number: int) -> None:
        """Learn from one batch."""
        rows = [self._rows[i] for i in self._steps.batch(number)]
        hard = self._vocabulary.vectors(self._words).requires_grad_()  # [P, E]
        loss = self._vocabulary.base.nll(rows, hard).nll.mean()
        (gradient,) = torch.autograd.grad(loss, hard)
        self._exchange(rows, float(loss.detach()), gradient[self._places])
        aim = self._vocabulary.vectors(self._words[self._places])
        unit = self._vocabulary.spread**2 * len(aim)
        pull = 2 * self._settings.closeness * (self._vectors.detach() - aim) / unit
        self._vectors.grad = gradient[self._places] + pull
        self._optimizer.step()
        self._project()

    def _project(self) -> None:
        """Take the nearest word at each place searched."""
        found = nearest_words(self._vectors.detach(), self._vocabulary, allowed=self._vocabulary.ordinary)
        self._words = self._words.index_copy(0, self._places, _ids(found, self._vocabulary.base))

    def _exchange(self, rows: list[TokenRow], loss: float, gradient: Tensor) -> None:
        """Try single words in place of others, where the gradient [n, E] expects the batch's loss to fall."""
        swaps = self._settings.swaps
        if not swaps:
            return
        trials = self._trials(gradient, swaps)
        fronts = [self._vocabulary.vectors(words) for words in trials]
        batches = [Batch(rows, front) for front in fronts]
        means: list[float] = []
        with torch.no_grad():
            for numbers in split([batch.positions for batch in batches], PASS_POSITIONS):
                losses = self._vocabulary.base.nll_many([batches[number] for number in numbers])
                means += [float(found.nll.mean()) for found in losses]
        best = min(range(len(means)), key=means.__getitem__)
        if means[best] < loss:
            place = int((trials[best] != self._words).nonzero()[0])
            self._words = trials[best]
            at = int((self._places == place).nonzero()[0])
            with torch.no_grad():
                self._vectors[at] = self._vocabulary.vectors(self._words[place])

    def _trials(self, gradient: Tensor, count: int) -> list[Tensor]:
        """Texts with one word exchanged, drawn among the four times as many of greatest expected gain."""
        table = self._vocabulary.table
        allowed = self._vocabulary.ordinary
        gains = torch.stack([-(table @ g.to(table.dtype)).float() for g in gradient])  # [n, V]
        gains = gains.where(allowed, -torch.inf)
        gains = gains - gains.gather(1, self._words[self._places][:, None])
        best = gains.flatten().topk(min(4 * count, gains.numel())).indices.cpu()
        drawn = best[torch.randperm(len(best), generator=self._generator)[:count]].tolist()
        trials = []
        for place, word in (divmod(number, len(allowed)) for number in drawn):
            trial = self._words.clone()
            trial[self._places[place]] = word
            trials.append(trial)
        return trials


def _ids(ids: Sequence[int], base: Base) -> Tensor:
    return torch.tensor(list(ids), dtype=torch.long, device=base.device)


def _said(ids: Sequence[int], vocabulary: Vocabulary) -> tuple[tuple[Word, ...], str]:
    words = tuple(vocabulary.word(int(i)) for i in ids)
    return words, str(vocabulary.base.tokenizer.decode(list(ids), skip_special_tokens=False))
