"""How far a prompt travelled from where it began, how large it grew, and where that is among the words.

It knows vectors, prefixes and a vocabulary; it does not know rows, scores or how a prompt was learnt.
Notation: P positions, E embedding width, V words, L layers, K key/value heads, D head width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.interpretation.finding import Finding
from softprompt.interpretation.vocabulary import Vocabulary, Word
from softprompt.packages import require
from softprompt.prefix import Prefix

__all__ = [
    "Chart",
    "Drift",
    "LayerDrift",
    "PrefixDrift",
    "Travel",
    "chart",
    "drift",
    "prefix_drift",
    "umap_chart",
]

_MARKS = (5, 25, 50, 75, 95)
Point = tuple[float, float]


@dataclass(frozen=True)
class Travel:
    """How far one virtual token went.

    Attributes:
        position: its place in the front, counted from 0.
        distance: Euclidean, from its start; None where that is not known, as for all that follows from it.
        relative: the distance over the start's own distance from the mean word.
        cosine: between the token and its start, both centred.
        norm: as the model receives the vector, not centred.
        start_norm: the same of its start.
        percentile: share of words, in percent, whose norm is at most this one's.
        start_percentile: the same of its start.
    """

    position: int
    distance: float | None
    relative: float | None
    cosine: float | None
    norm: float
    start_norm: float | None
    percentile: float
    start_percentile: float | None


@dataclass(frozen=True)
class Drift(Finding):
    """How far every virtual token went.

    Attributes:
        positions: one for each virtual token, in order.
        vocabulary_norms: norms of the words at the 5th, 25th, 50th, 75th and 95th percentile.
        words: V, how many words there are.
    """

    positions: tuple[Travel, ...]
    vocabulary_norms: dict[int, float]
    words: int


@dataclass(frozen=True)
class LayerDrift:
    """How far the keys or values of one layer went, all positions together.

    Attributes:
        relative: norm of the change over the start's norm.
        cosine: mean over positions between what they are and were, ``[K * D]`` each.
        norm_ratio: norm over the start's norm; 1 where it kept its size.
    """

    layer: int
    side: Literal["keys", "values"]
    relative: float
    cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class PrefixDrift(Finding):
    """How far a KV prefix went.

    Attributes:
        layers: keys and values of each layer, in order.
        positions: for each position the norm of its change over all layers, over its start's norm.
    """

    layers: tuple[LayerDrift, ...]
    positions: tuple[float, ...]


@dataclass(frozen=True)
class Chart(Finding):
    """A two-dimensional map of words, start and prompt.

    Attributes:
        method: ``"pca"`` or ``"umap"``.
        prompt: a point for each virtual token.
        start: a point for each as it began; nothing where that is not known.
        words: words shown behind, a sample.
        word_points: their points.
        explained: share of the words' variance along each axis; None for UMAP, which has no such thing.
        kept: mean share of a virtual token's squared distance from the mean word that the map shows; a low
            one says that most of what it is lies outside this plane. None for UMAP.
        vocabulary: V, how many words the axes come from, or that were drawn for UMAP.
        seed: of the sample.
    """

    method: Literal["pca", "umap"]
    prompt: tuple[Point, ...]
    start: tuple[Point, ...]
    words: tuple[Word, ...]
    word_points: tuple[Point, ...]
    explained: Point | None
    kept: float | None
    vocabulary: int
    seed: int


def drift(front: Tensor, vocabulary: Vocabulary, start: Tensor | None = None) -> Drift:
    """How far each virtual token ``[P, E]`` went from ``start`` ``[P, E]``, and its norm among the words'."""
    ordered = vocabulary.norms.sort().values
    norms, shares = _norms(front, ordered)
    nothing: Sequence[None] = [None] * len(front)
    columns: list[Sequence[Any]] = [nothing] * 5
    if start is not None:
        now, then = vocabulary.centred(front), vocabulary.centred(start)
        gaps = (now - then).norm(dim=1)
        relative = gaps / then.norm(dim=1).clamp(min=1e-12)
        cosine = functional.cosine_similarity(now, then, dim=1)
        columns = [gaps.tolist(), relative.tolist(), cosine.tolist(), *_norms(start, ordered)]
    distances, relatives, cosines, begun, begun_shares = columns
    rows = zip(distances, relatives, cosines, norms, begun, shares, begun_shares, strict=True)
    marks = torch.quantile(ordered.double().cpu(), torch.tensor(_MARKS).double() / 100).tolist()
    travels = tuple(Travel(number, *row) for number, row in enumerate(rows))
    return Drift(travels, dict(zip(_MARKS, marks, strict=True)), len(vocabulary))


def _norms(vectors: Tensor, ordered: Tensor) -> tuple[list[float], list[float]]:
    """Norms of vectors [P, E], and the percentage of ordered norms [V] at or below each."""
    norms = vectors.to(ordered.device, torch.float32).norm(dim=1)
    return norms.tolist(), (torch.searchsorted(ordered, norms, right=True) * 100 / len(ordered)).tolist()


def prefix_drift(front: Prefix, start: Prefix) -> PrefixDrift:
    """How far the keys and values of a prefix went from those of ``start``, of the same shape.

    Keys are compared as they stand in the cache: both are rotated alike, so rotation does not tell.
    """
    layers, changed, begun = [], [], []
    for layer in range(len(front.keys)):
        for side in ("keys", "values"):
            sides = (getattr(prefix, side)[layer].detach().double().cpu() for prefix in (front, start))
            now, then = (each.transpose(0, 1).flatten(1) for each in sides)  # [K, P, D] -> [P, K * D]
            size = then.norm().clamp(min=1e-12)
            cosine = functional.cosine_similarity(now, then, dim=1).mean()
            numbers = ((now - then).norm() / size, cosine, now.norm() / size)
            layers.append(LayerDrift(layer, side, *map(float, numbers)))
            changed.append((now - then).square().sum(1))
            begun.append(then.square().sum(1))
    ratios = (torch.stack(changed).sum(0) / torch.stack(begun).sum(0).clamp(min=1e-24)).sqrt()
    return PrefixDrift(tuple(layers), tuple(ratios.tolist()))


def chart(
    front: Tensor, vocabulary: Vocabulary, start: Tensor | None = None, *, shown: int = 2000, seed: int = 0
) -> Chart:
    """A map along the two widest axes of the vocabulary, with ``shown`` of its words behind the prompt.

    The axes come from all words and from nothing else, so prompts of one base share one map.
    """
    directions, variances = vocabulary.axes
    plane = directions[:2].T  # [E, 2]
    words = _sample(vocabulary, shown, seed)
    centred = vocabulary.centred(front)
    points = centred @ plane
    kept = points.square().sum(1) / centred.square().sum(1).clamp(min=1e-24)
    explained = (variances[:2] / variances.sum().clamp(min=1e-24)).tolist()
    return Chart(
        method="pca",
        prompt=_points(points),
        start=() if start is None else _points(vocabulary.centred(start) @ plane),
        words=tuple(vocabulary.word(int(i)) for i in words),
        word_points=_points(vocabulary.centred(vocabulary.vectors(words)) @ plane),
        explained=(explained[0], explained[1]),
        kept=float(kept.mean()),
        vocabulary=len(vocabulary),
        seed=seed,
    )


def umap_chart(
    front: Tensor, vocabulary: Vocabulary, start: Tensor | None = None, *, shown: int = 2000, seed: int = 0
) -> Chart:
    """A map by UMAP (McInnes et al. 2018) of cosines among prompt, start and ``shown`` of the words.

    It keeps who is near whom and bends everything else: distances across it mean nothing.

    Raises:
        ResourceError: umap-learn is not installed.
    """
    require("a UMAP map")
    with warnings.catch_warnings():  # umap says on import that it lacks TensorFlow, which nothing here needs
        warnings.simplefilter("ignore", ImportWarning)
        import umap
    words = _sample(vocabulary, shown, seed)
    groups = [vocabulary.centred(t) for t in (front, *([] if start is None else [start]))]
    groups.append(vocabulary.centred(vocabulary.vectors(words)))
    every = torch.cat(groups).cpu().numpy()
    # One job: otherwise UMAP warns that a seed rules out several.
    reducer = umap.UMAP(metric="cosine", n_neighbors=min(15, len(every) - 1), random_state=seed, n_jobs=1)
    points = torch.as_tensor(reducer.fit_transform(every)).split([len(group) for group in groups])
    return Chart(
        method="umap",
        prompt=_points(points[0]),
        start=() if start is None else _points(points[1]),
        words=tuple(vocabulary.word(int(i)) for i in words),
        word_points=_points(points[-1]),
        explained=None,
        kept=None,
        vocabulary=len(words),
        seed=seed,
    )


def _sample(vocabulary: Vocabulary, shown: int, seed: int) -> Tensor:
    """Ids of words drawn evenly from those that are not special, in order."""
    ids = vocabulary.ordinary.nonzero()[:, 0]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[:shown]
    return ids[order.sort().values.to(ids.device)]


def _points(points: Tensor) -> tuple[Point, ...]:
    return tuple((float(x), float(y)) for x, y in points.tolist())
