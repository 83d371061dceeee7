"""Which words each virtual token lies next to, and whether that is nearer than chance.

It knows vectors and a vocabulary; it does not know rows, scores or how a prompt was learnt. Notation: P
positions, E embedding width, V words. Everything is measured after the mean word is taken off.

Nearness alone proves nothing: some word is always nearest, and a prompt can be made to lie next to any text
(Khashabi et al. 2022, "Prompt Waywardness"). So the same statistics stand beside it for where the token
began, for random vectors of its norm, and for its start moved as far in random directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.interpretation.finding import Finding
from softprompt.interpretation.vocabulary import Vocabulary, Word

__all__ = ["By", "Chance", "Near", "Nearness", "Neighbours", "Position", "nearest_words", "neighbours"]

By = Literal["cosine", "distance"]


@dataclass(frozen=True)
class Near:
    """A word, and how near it is: cosine and Euclidean distance, both centred."""

    word: Word
    cosine: float
    distance: float


@dataclass(frozen=True)
class Nearness:
    """The nearest words of one vector.

    Attributes:
        norm: of the centred vector.
        by_cosine: the k words of greatest cosine, nearest first.
        by_distance: the k words of least distance, nearest first.
    """

    norm: float
    by_cosine: tuple[Near, ...]
    by_distance: tuple[Near, ...]


@dataclass(frozen=True)
class Chance:
    """What random draws give: their mean, and the range of the middle 95%."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: Tensor) -> Chance:
        """Of draws ``[R]``."""
        low, high = torch.quantile(draws.double().cpu(), torch.tensor([0.025, 0.975]).double()).tolist()
        return cls(float(draws.double().mean()), low, high)


@dataclass(frozen=True)
class Nearest:
    """What chance gives for the one nearest word: its cosine, and the distance of the one nearest by that."""

    cosine: Chance
    distance: Chance


@dataclass(frozen=True)
class Position:
    """One virtual token.

    Attributes:
        position: its place in the front, counted from 0.
        prompt: as it was learnt.
        start: as it began; None where that is not known.
        random: random vectors of the learnt one's norm.
        stepped: the start, moved as far as it was in random directions: a nearest word that is no nearer
            than here is what is left of the start, not what was learnt.
    """

    position: int
    prompt: Nearness
    start: Nearness | None
    random: Nearest
    stepped: Nearest | None


@dataclass(frozen=True)
class Neighbours(Finding):
    """The nearest words of every virtual token.

    Attributes:
        positions: one for each virtual token, in order.
        words: V, how many words were searched.
        draws: random vectors for each token.
        seed: of the draws.
    """

    positions: tuple[Position, ...]
    words: int
    draws: int
    seed: int


class _Found(NamedTuple):
    """Ids, cosines and distances [N, k] of the nearest words, nearest first."""

    ids: Tensor
    cosines: Tensor
    distances: Tensor


def neighbours(
    front: Tensor,
    vocabulary: Vocabulary,
    start: Tensor | None = None,
    *,
    k: int = 5,
    draws: int = 50,
    seed: int = 0,
) -> Neighbours:
    """The nearest words of every virtual token, beside its start's and chance's.

    Args:
        front: ``[P, E]`` what was learnt.
        vocabulary: the words of its base.
        start: ``[P, E]`` what it began from.
        k: how many words for each.
        draws: random vectors for each token.
        seed: of these.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = vocabulary.centred(front)
    random = _chance(vectors.new_zeros(1), vectors.norm(dim=1), vocabulary, draws, generator)
    begun: list[Nearness | None] = [None] * len(front)
    stepped: list[Nearest | None] = [None] * len(front)
    if start is not None:
        began = vocabulary.centred(start)
        begun = [*_nearness(began, vocabulary, k)]
        stepped = [*_chance(began, (vectors - began).norm(dim=1), vocabulary, draws, generator)]
    rows = zip(_nearness(vectors, vocabulary, k), begun, random, stepped, strict=True)
    positions = tuple(Position(number, *row) for number, row in enumerate(rows))
    return Neighbours(positions, len(vocabulary), draws, seed)


def nearest_words(
    vectors: Tensor, vocabulary: Vocabulary, *, by: By = "distance", allowed: Tensor | None = None
) -> list[int]:
    """The id of the nearest word of each vector ``[P, E]``.

    Args:
        vectors: embeddings, not centred.
        vocabulary: the words.
        by: what nearest means, after centring.
        allowed: ``[V]`` true for the words to choose from; all by default.
    """
    return [int(i) for i in _search(vocabulary.centred(vectors), vocabulary, 1, allowed)[by].ids[:, 0]]


def _nearness(vectors: Tensor, vocabulary: Vocabulary, k: int) -> list[Nearness]:
    """Of centred vectors [N, E]."""
    found = _search(vectors, vocabulary, min(k, len(vocabulary)))

    def named(by: By) -> list[tuple[Near, ...]]:
        rows: Sequence[Any] = list(zip(*(part.tolist() for part in found[by]), strict=True))
        return [tuple(Near(vocabulary.word(i), c, d) for i, c, d in zip(*row, strict=True)) for row in rows]

    rows = zip(vectors.norm(dim=1).tolist(), named("cosine"), named("distance"), strict=True)
    return [Nearness(*row) for row in rows]


def _chance(
    centres: Tensor, lengths: Tensor, vocabulary: Vocabulary, draws: int, generator: torch.Generator
) -> list[Nearest]:
    """Nearest words of random vectors of these lengths [N] around centres [N, E] or one for all."""
    directions = torch.randn(len(lengths), draws, vocabulary.table.shape[1], generator=generator)
    steps = functional.normalize(directions, dim=2).to(lengths.device) * lengths[:, None, None]
    vectors = (centres[:, None] + steps if centres.dim() > 1 else steps).flatten(0, 1)  # [N * draws, E]
    found = _search(vectors, vocabulary, 1)
    cosines = found["cosine"].cosines.view(-1, draws)
    distances = found["distance"].distances.view(-1, draws)
    return [Nearest(Chance.of(c), Chance.of(d)) for c, d in zip(cosines, distances, strict=True)]


def _search(
    vectors: Tensor, vocabulary: Vocabulary, k: int, allowed: Tensor | None = None
) -> dict[By, _Found]:
    """The k words nearest to centred vectors [N, E], by cosine and by distance."""
    lengths = vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    best: dict[By, tuple[Tensor, Tensor]] = {}
    for first, words in vocabulary.parts(len(vectors)):
        products = vectors @ words.T  # [N, c]
        norms = words.norm(dim=1).clamp(min=1e-12)
        # Half the squared distance, less the vector's own part, orders words as the distance does.
        worth: dict[By, Tensor] = {"cosine": products / norms, "distance": products - norms**2 / 2}
        for by, values in worth.items():
            if allowed is not None:
                values = values.where(allowed[first : first + len(words)], -torch.inf)
            top, places = values.topk(min(k, len(words)), dim=1)
            if by in best:
                top, places = torch.cat([best[by][0], top], 1), torch.cat([best[by][1], places + first], 1)
                top, kept = top.topk(min(k, top.shape[1]), dim=1)
                best[by] = top, places.gather(1, kept)
            else:
                best[by] = top, places + first
    return {by: _measure(vectors, lengths, ids, vocabulary) for by, (_, ids) in best.items()}


def _measure(vectors: Tensor, lengths: Tensor, ids: Tensor, vocabulary: Vocabulary) -> _Found:
    """Cosines and distances to the words found, without the cancellation that the search allows itself."""
    cosines, distances = torch.empty(ids.shape), torch.empty(ids.shape)
    for place in range(ids.shape[1]):
        words = vocabulary.centred(vocabulary.vectors(ids[:, place]))  # [N, E]
        norms = words.norm(dim=1).clamp(min=1e-12)
        cosines[:, place] = ((vectors * words).sum(1) / (lengths[:, 0] * norms)).cpu()
        distances[:, place] = (vectors - words).norm(dim=1).cpu()
    return _Found(ids.cpu(), cosines, distances)
