"""Scores of one front on encoded rows: label accuracy, or loss per token of free text.

It knows token rows and candidates; it does not know which method made the front.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softprompt.base.model import Base, Batch, ends, scorable
from softprompt.base.packing import TokenRow, batches
from softprompt.data.rows import Encoded, Example, Ids
from softprompt.errors import DataError
from softprompt.evaluation.choices import ChoiceScores, calibrated, padded
from softprompt.evaluation.intervals import Interval, bootstrap_ratio, wilson
from softprompt.evaluation.metrics import macro_f1
from softprompt.evaluation.words import SCORE_HEADS, score_rows
from softprompt.generation.likelihood import likelihoods_from_hidden
from softprompt.prefix import Front
from softprompt.report.notebook import grid_html
from softprompt.team import ALONE, Team

__all__ = [
    "Scores",
    "judge",
    "judge_many",
    "likelihoods",
    "score",
    "score_many",
    "target_rows",
]

BATCH_TOKENS = 2048
"""Text tokens read in one pass; bounds memory, changes no score."""

SHARED_FROM = 256
"""Tokens that must be saved for an input to be read once for all its candidates, which takes two passes."""

Progress = Callable[[int, int], None]
_Told = Callable[[int], None]


@dataclass(frozen=True)
class Scores:
    """How one front did on one set of rows.

    Attributes:
        rows: how many rows were scored.
        nll: mean negative log-likelihood of a target token, in nats; where labels are told apart
            by their first token, of that token. Neither normalised nor calibrated.
        nll_interval: its 95% bootstrap interval over rows.
        accuracy: share of rows whose likeliest label or choice is right; None for free text.
        accuracy_interval: its 95% Wilson interval.
        predictions: the likeliest label's or choice's number for each row; empty for free text.
        confidences: the probability of that label among all of the row.
        macro_f1: F1 averaged over the labels that occur; None for free text and for choices, whose
            numbers mean something else in every row.
        macro_f1_interval: its 95% bootstrap interval.
        losses: each row's negative log-likelihood in nats.
        tokens: how many tokens each of them is over; without a row's first one where nothing in front
            makes the model expect it.
    """

    rows: int
    nll: float
    nll_interval: Interval
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    predictions: tuple[int, ...] = field(default=(), repr=False)
    confidences: tuple[float, ...] = field(default=(), repr=False)
    macro_f1: float | None = None
    macro_f1_interval: Interval | None = None
    losses: tuple[float, ...] = field(default=(), repr=False)
    tokens: tuple[float, ...] = field(default=(), repr=False)

    def summary(self) -> dict[str, object]:
        """The scores without what is told of each row, for a card or a log."""
        return {k: v for k, v in asdict(self).items() if k not in _OF_ROWS and v is not None}

    def _repr_html_(self) -> str:
        rows = score_rows({"rows": self.summary()})
        return grid_html("Scores", SCORE_HEADS[: len(rows[0])], rows, "95% intervals in brackets.")

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Scores:
        """What ``to_json`` gave."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**known)


_OF_ROWS = ("predictions", "confidences", "losses", "tokens")


class _ScoredRows(NamedTuple):
    """What is found of each row; see ``Scores``."""

    losses: list[float]
    tokens: list[float]
    predictions: list[int]
    confidences: list[float]


def score(
    base: Base, front: Front, encoded: Encoded, progress: Progress | None = None, team: Team = ALONE
) -> Scores:
    """Score a front on rows it was not trained on.

    team: the processes that score these rows together; each reads its share, and all get the same scores.
    """
    mine = replace(encoded, examples=encoded.examples[team.rank :: team.count])
    (found,) = _found(base, [front], mine, progress) if mine.examples else [_ScoredRows([], [], [], [])]
    every = [_ScoredRows(*one) for one in team.all_told(found)]
    return _scores(_ScoredRows(*(_dealt_back(sides) for sides in zip(*every, strict=True))), encoded)


def score_many(
    base: Base, fronts: Sequence[Front], encoded: Encoded, progress: Progress | None = None
) -> list[Scores]:
    """Score several fronts on the same rows, read behind all of them in the same passes."""
    return [_scores(found, encoded) for found in _found(base, fronts, encoded, progress)]


@torch.no_grad()
def _found(
    base: Base, fronts: Sequence[Front], encoded: Encoded, progress: Progress | None
) -> list[_ScoredRows]:
    prefixes = [base.prefill(front) for front in fronts]
    if not any(map(encoded.candidates, encoded.examples)):
        return _found_of_text(base, prefixes, encoded.examples, progress)
    return [_found_of_choices(one, encoded) for one in judge_many(base, prefixes, encoded, progress)]


def _dealt_back(parts: Sequence[list[Any]]) -> list[Any]:
    """Rows in their order, of which the first part has the first, the second part the second and so on."""
    rounds = itertools.zip_longest(*parts)
    return [one for each in rounds for one in each if one is not None]


def target_rows(examples: Sequence[Example], *, whole_text: bool = False) -> list[TokenRow]:
    """Input and target as one row, of which the target, or everything, is scored."""
    return [TokenRow(e.input_ids + e.target_ids, 0 if whole_text else len(e.input_ids)) for e in examples]


def judge(base: Base, front: Front, encoded: Encoded, progress: Progress | None = None) -> ChoiceScores:
    """Compare the candidates of every row as the job asks: by length or not, calibrated or not.

    Calibration takes off each candidate's log-likelihood behind the row's content-free input (Zhao et al.
    2021, "Calibrate Before Use"); length divides what is left by the candidate's tokens.
    """
    (judged,) = judge_many(base, [front], encoded, progress)
    return judged


def judge_many(
    base: Base, fronts: Sequence[Front], encoded: Encoded, progress: Progress | None = None
) -> list[ChoiceScores]:
    """``judge`` for several fronts, each row read behind all of them in the same pass."""
    found = likelihoods(base, fronts, encoded, progress)
    calibrates = any(example.neutral_ids is not None for example in encoded.examples)
    neutral = _neutral(base, fronts, encoded) if calibrates else torch.zeros_like(found)
    return [calibrated(encoded, *pair) for pair in zip(found, neutral, strict=True)]


def likelihoods(
    base: Base, fronts: Sequence[Front], encoded: Encoded, progress: Progress | None = None
) -> Tensor:
    """Log-likelihood ``[S, B, C]`` of every candidate behind every row and front, fp32 on the CPU.

    Where the labels' first tokens tell them apart only those are compared, in one pass over the
    inputs; else whole candidates are. Rows with fewer than C choices have ``-inf`` behind them.
    """
    candidates = [encoded.candidates(example) for example in encoded.examples]
    inputs = [example.input_ids for example in encoded.examples]
    if not encoded.needs_whole_words:
        return _first_tokens(base, fronts, inputs, candidates[0], _counted(progress, len(inputs)))
    told = _counted(progress, sum(map(len, candidates)))
    pairs = list(zip(inputs, candidates, strict=True))
    long = [(len(words) - 1) * len(ids) >= SHARED_FROM for ids, words in pairs]
    short = [pair for pair, many in zip(pairs, long, strict=True) if not many]
    rest = [pair for pair, many in zip(pairs, long, strict=True) if many]
    apart = [iter(found) for found in _each_whole(base, fronts, short, told)]
    once = [iter(_behind_inputs(base, front, rest, told)) for front in fronts]
    rows = [[next(o if many else a) for many in long] for a, o in zip(apart, once, strict=True)]
    return torch.stack([padded(found, -torch.inf) for found in rows])


_Pairs = Sequence[tuple[Ids, tuple[Ids, ...]]]
"""Inputs, each with its candidates."""


def _each_whole(base: Base, fronts: Sequence[Front], pairs: _Pairs, told: _Told) -> list[list[list[float]]]:
    """For every front log-likelihoods of candidates, each read behind its input: best for short inputs."""
    rows = [TokenRow(ids + word, len(ids)) for ids, words in pairs for word in words]
    if not rows:
        return [[] for _ in fronts]
    flat = _targets(base, fronts, rows, told)  # [S, rows]
    sizes = [len(words) for _, words in pairs]
    return [[part.tolist() for part in one.split(sizes)] for one in flat]


def _targets(base: Base, fronts: Sequence[Front], rows: Sequence[TokenRow], told: _Told) -> Tensor:
    """Log-likelihood of the target of every row behind every front, [S, rows]."""

    def read(batch: list[TokenRow]) -> Tensor:
        return _logprobs(base, [Batch(batch, front) for front in fronts])

    return _in_batches(rows, len(fronts), read, told).T


def _logprobs(base: Base, batches: Sequence[Batch]) -> Tensor:
    """Log-likelihood ``[B, S]`` of the scorable targets of B rows in each of S batches, in one pass."""
    scored = [scorable(batch) for batch in batches]
    wanted = [[(n, t - 1) for n, row in enumerate(rows) for t in row.targets] for rows in scored]
    places = itertools.count()
    expected = [[(next(places), row.ids[t]) for t in row.targets] for rows in scored for row in rows]
    found = likelihoods_from_hidden(base.head, base.hidden(batches, wanted), expected)
    return torch.tensor([likelihood.logprob for likelihood in found]).view(len(batches), -1).T


def _behind_inputs(base: Base, front: Front, pairs: _Pairs, told: _Told) -> list[list[float]]:
    """The same, each input read once and its candidates behind it: best for long inputs."""
    prefix = base.prefill(front)
    rows = [TokenRow(ids) for ids, _ in pairs]
    found: list[list[float]] = [[]] * len(pairs)
    for numbers in batches(rows, BATCH_TOKENS):
        for number, whole in zip(numbers, base.read([rows[i] for i in numbers], prefix), strict=True):
            _, words = pairs[number]
            found[number] = _logprobs(base, [Batch([TokenRow(word) for word in words], whole)])[:, 0].tolist()
            told(len(words))
    return found


def _first_tokens(
    base: Base, fronts: Sequence[Front], inputs: list[Ids], candidates: tuple[Ids, ...], told: _Told
) -> Tensor:
    """Log-likelihood ``[S, B, C]`` of every candidate's first token."""

    def compare(batch: list[TokenRow]) -> Tensor:
        read = [Batch(batch, front) for front in fronts]
        hidden = base.hidden(read, [ends(one) for one in read])  # [S * B, E]
        expected = [[(place, word[0])] for place in range(len(hidden)) for word in candidates]
        found = likelihoods_from_hidden(base.head, hidden, expected)
        logprobs = torch.tensor([likelihood.logprob for likelihood in found])
        return logprobs.view(len(fronts), len(batch), -1).transpose(0, 1)

    rows = [TokenRow(ids) for ids in inputs]
    return _in_batches(rows, len(fronts), compare, told).transpose(0, 1)  # [S, B, C]


def _neutral(base: Base, fronts: Sequence[Front], encoded: Encoded) -> Tensor:
    """Log-likelihood ``[S, B, C]`` of every candidate behind the row's content-free input; 0 if it is none.

    Rows that share input and candidates, which with labels are all rows, are read once.
    """
    keys = [(example.neutral_ids or (), example.candidates) for example in encoded.examples]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    examples = tuple(Example(ids, (), None, 0, candidates) for ids, candidates in places)
    found = likelihoods(base, fronts, replace(encoded, examples=examples))
    return found.where(found != -torch.inf, 0.0)[:, [places[key] for key in keys]]


def _in_batches(
    rows: Sequence[TokenRow], fronts: int, read: Callable[[list[TokenRow]], Tensor], told: _Told
) -> Tensor:
    """Results of ``read`` for all rows, in order, a bounded number of tokens behind all fronts at a time."""
    results: list[Tensor] = [torch.empty(0)] * len(rows)
    for numbers in batches(rows, BATCH_TOKENS // fronts):
        values = read([rows[i] for i in numbers]).float().cpu()
        for number, value in zip(numbers, values, strict=True):
            results[number] = value
        told(len(numbers))
    return torch.stack(results)


def _counted(progress: Progress | None, total: int) -> _Told:
    """Adds up how many rows are done, for ``progress`` to be told."""
    done = 0

    def told(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    return told


def _found_of_text(
    base: Base, fronts: Sequence[Front], examples: Sequence[Example], progress: Progress | None
) -> list[_ScoredRows]:
    rows = target_rows(examples)
    every = (-_targets(base, fronts, rows, _counted(progress, len(rows)))).tolist()
    counts = [[float(row.scored) for row in scorable(Batch(rows, front))] for front in fronts]
    return [_ScoredRows(losses, tokens, [], []) for losses, tokens in zip(every, counts, strict=True)]


def _found_of_choices(judged: ChoiceScores, encoded: Encoded) -> _ScoredRows:
    examples = encoded.examples
    labels = [e.label for e in examples if e.label is not None]
    losses = (-judged.likelihoods[torch.arange(len(labels)), labels]).tolist()
    whole = encoded.needs_whole_words
    tokens = [
        float(len(encoded.candidates(e)[n])) if whole else 1.0 for n, e in zip(labels, examples, strict=True)
    ]
    predictions = judged.weights.argmax(1).tolist()
    return _ScoredRows(losses, tokens, predictions, judged.probabilities.max(1).values.tolist())


def _scores(found: _ScoredRows, encoded: Encoded) -> Scores:
    """Over all rows, from what was found of each."""
    losses, tokens, predictions, confidences = found
    if not any(tokens):
        raise DataError(
            "No token of these rows can be scored: each has one, which nothing in front of it makes the "
            "model expect; give data.input some words."
        )
    scores = Scores(
        rows=len(encoded.examples),
        nll=sum(losses) / sum(tokens),
        nll_interval=bootstrap_ratio(losses, tokens),
        losses=tuple(losses),
        tokens=tuple(tokens),
    )
    if not predictions:
        return scores
    examples = encoded.examples
    hits = sum(p in (e.right or (e.label,)) for p, e in zip(predictions, examples, strict=True))
    labels = [e.label for e in examples if e.label is not None]
    f1 = macro_f1(labels, predictions).interval() if encoded.candidate_ids is not None else None
    return replace(
        scores,
        accuracy=hits / len(examples),
        accuracy_interval=wilson(hits, len(examples)),
        predictions=tuple(predictions),
        confidences=tuple(confidences),
        macro_f1=f1.value if f1 else None,
        macro_f1_interval=(f1.low, f1.high) if f1 else None,
    )
