"""Which virtual tokens lie together, and whether they do so more than chance would have them.

It knows vectors and, for their axes, a vocabulary; it does not know words, rows or scores. Notation: P
positions, E embedding width, R arrangements.

Positions are joined by average linkage of cosine distances (Sokal and Michener 1958); of the ways to cut the
tree the one of greatest mean silhouette is kept (Rousseeuw 1987), and that silhouette is what is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.interpretation.finding import Finding
from softprompt.interpretation.neighbours import Chance
from softprompt.interpretation.vocabulary import Vocabulary

__all__ = ["Cluster", "Clusters", "clusters"]

_CELLS = 4_000_000  # the most distances held at once
_ROUNDING = 1e-12  # a silhouette less apart than this from another is equal to it


@dataclass(frozen=True)
class Cluster:
    """Positions that lie together.

    Attributes:
        positions: two or more.
        cosine: mean among them.
        p: how often the best cut of a permuted prompt holds a cluster of as much mass or more; corrected for
            there being several clusters.
    """

    positions: tuple[int, ...]
    cosine: float
    p: float


@dataclass(frozen=True)
class Clusters(Finding):
    """The best cut, and how it stands against chance.

    Attributes:
        clusters: groups of two or more, the largest first.
        alone: positions that lie with no other.
        silhouette: mean over positions; 1 for tight groups far apart, 0 for none. None below 3 positions.
        chance: the silhouette of the best cut of permuted prompts.
        p: how often a permuted prompt clusters at least as well, it and this one counted:
            ``(1 + as good) / (1 + permutations)``.
        permutations: how many there were.
        seed: of them.
    """

    clusters: tuple[Cluster, ...]
    alone: tuple[int, ...]
    silhouette: float | None
    chance: Chance | None
    p: float | None
    permutations: int
    seed: int


class _Cut(NamedTuple):
    """The best cuts of R prompts: numbers of clusters [R, P], mean silhouette [R], masses of clusters [R, P].

    A cluster's number is that of its first position.
    """

    groups: Tensor
    silhouette: Tensor
    masses: Tensor


class _Tree(NamedTuple):
    """A tree cut at some height: numbers [R, P], sizes [R, P] and distances of each position to each cluster.

    These are sums over the cluster's positions, [R, P, P], and mean something where its size is not 0.
    """

    groups: Tensor
    sizes: Tensor
    sums: Tensor


def clusters(front: Tensor, vocabulary: Vocabulary, *, permutations: int = 199, seed: int = 0) -> Clusters:
    """Cluster the virtual tokens ``[P, E]`` and test the result by permutation.

    The null hypothesis: what a position is along one axis says nothing of what it is along another. So every
    coordinate is permuted over the positions, each in its own way, which keeps how much positions vary along
    each axis and undoes their falling into groups. The axes are the principal ones of the vocabulary: along
    them words are uncorrelated, so words drawn at random do not pass for clusters merely because embeddings
    are wide in some directions. First all vectors are brought to one length, in units of the words' spread
    along each axis, for else the long ones alone would make every permuted prompt; cosines stay as they are.

    Even a random prompt has a best cut, so each cluster is tested too: by its mass, the sum of its positions'
    silhouettes, against the greatest mass in each permuted prompt (Maris and Oostenveld 2007).
    """
    if len(front) < 3:
        return Clusters((), tuple(range(len(front))), None, None, None, 0, seed)
    directions, variances = vocabulary.axes
    points: Tensor = vocabulary.centred(front) @ directions.T  # [P, E] along the axes
    units = variances.float().clamp(min=1e-3 * float(variances.mean())).sqrt()
    lengths = (points / units).norm(dim=1, keepdim=True).clamp(min=1e-12)
    points = (points / lengths).double().cpu()
    distances = _distances(points[None])
    cut = _best_cut(distances)
    generator = torch.Generator().manual_seed(seed)
    size = max(1, _CELLS // max(len(points) ** 2, points.numel()))
    cuts = []
    for done in range(0, permutations, size):
        count = min(size, permutations - done)
        order = torch.rand(count, *points.shape, generator=generator).argsort(dim=1)  # of each coordinate
        cuts.append(_best_cut(_distances(points.expand(count, -1, -1).gather(1, order))))
    null = _Cut(*(torch.cat(parts) for parts in zip(*cuts, strict=True)))
    silhouette = float(cut.silhouette)
    groups, alone = _named(cut, 1 - distances[0], null.masses.max(1).values)
    chance = Chance.of(null.silhouette)
    return Clusters(groups, alone, silhouette, chance, _p(silhouette, null.silhouette), permutations, seed)


def _p(value: float, null: Tensor) -> float:
    return (1 + int((null >= value - _ROUNDING).sum())) / (1 + len(null))


def _named(cut: _Cut, cosines: Tensor, null: Tensor) -> tuple[tuple[Cluster, ...], tuple[int, ...]]:
    """The clusters of one cut, and the positions that are alone; cosines [P, P], null masses [R]."""
    found, alone = [], []
    for number in cut.groups[0].unique().tolist():
        places = (cut.groups[0] == number).nonzero()[:, 0]
        if len(places) == 1:
            alone.append(int(places))
            continue
        pairs = float(cosines[places][:, places].sum()) - len(places)
        mean = pairs / (len(places) * (len(places) - 1))
        found.append(Cluster(tuple(places.tolist()), mean, _p(float(cut.masses[0, number]), null)))
    found.sort(key=lambda cluster: (-len(cluster.positions), cluster.positions))
    return tuple(found), tuple(sorted(alone))


def _distances(points: Tensor) -> Tensor:
    """Cosine distances [R, P, P] of points [R, P, E]."""
    unit = functional.normalize(points, dim=2)
    return 1 - unit @ unit.transpose(1, 2)


def _best_cut(distances: Tensor) -> _Cut:
    """The cut of greatest mean silhouette into 2 to P - 1 clusters, for each of [R, P, P]."""
    runs, count, _ = distances.shape
    best = _Cut(
        torch.zeros(runs, count, dtype=torch.long), distances.new_full((runs,), -torch.inf), distances[:, 0]
    )
    for tree in _merges(distances):
        worth = _silhouettes(tree)
        mean = worth.mean(1)
        masses = torch.zeros_like(worth).scatter_add(1, tree.groups, worth)
        better = mean > best.silhouette
        best = _Cut(
            tree.groups.where(better[:, None], best.groups),
            mean.where(better, best.silhouette),
            masses.where(better[:, None], best.masses),
        )
    return best


def _merges(distances: Tensor) -> Iterator[_Tree]:
    """The tree after each merge of the two clusters of least mean distance, down to two clusters."""
    runs, count, _ = distances.shape
    every = torch.arange(runs)
    between = distances.clone()  # [R, P, P] mean distances of clusters
    between.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    sums, sizes = distances.clone(), torch.ones(runs, count, dtype=distances.dtype)
    groups = torch.arange(count).repeat(runs, 1)
    for _ in range(count - 2):
        place = between.flatten(1).argmin(1)
        first, second = (f(place // count, place % count) for f in (torch.minimum, torch.maximum))
        a, b = sizes[every, first, None], sizes[every, second, None]
        mean = (a * between[every, first] + b * between[every, second]) / (a + b)
        mean[every, first] = mean[every, second] = torch.inf
        between[every, first], between[every, :, first] = mean, mean
        between[every, second] = between[every, :, second] = torch.inf
        sums[every, :, first] += sums[every, :, second]
        sizes[every, first] += sizes[every, second]
        sizes[every, second] = 0
        groups = groups.where(groups != second[:, None], first[:, None])
        yield _Tree(groups, sizes, sums)


def _silhouettes(tree: _Tree) -> Tensor:
    """The silhouette of every position, [R, P]; 0 for one that is alone."""
    groups, sizes, sums = tree
    own = sizes.gather(1, groups)  # [R, P]
    inside = sums.gather(2, groups[..., None])[..., 0] / (own - 1).clamp(min=1)
    means = (sums / sizes.clamp(min=1)[:, None]).where(sizes[:, None] > 0, torch.inf)
    outside = means.scatter(2, groups[..., None], torch.inf).min(2).values
    worth = (outside - inside) / torch.maximum(outside, inside).clamp(min=_ROUNDING)
    return worth.where(own > 1, 0.0)
