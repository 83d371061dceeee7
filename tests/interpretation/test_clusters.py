"""Planted clusters are found and told from chance; random prompts are not taken for clusters."""

from __future__ import annotations

import json

import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import silhouette_score
from torch import Tensor

import tiny
from softprompt.interpretation import clusters as module
from softprompt.interpretation.clusters import clusters
from softprompt.interpretation.vocabulary import Vocabulary


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(squeeze: float = 1.0) -> Vocabulary:
    """A vocabulary that is wide in 4 of 32 directions, none of them a coordinate's, by ``squeeze``."""
    turn = torch.linalg.qr(noise(32, 32, seed=9)).Q
    scales = torch.tensor([squeeze] * 4 + [1.0] * 28)
    return Vocabulary(tiny.base(), (noise(4000, 32, seed=8) * scales) @ turn)


def planted(seed: int) -> Tensor:
    """Positions 0, 3, 6, 9 around one centre, 1, 4, 7 around another, the others anywhere."""
    front, centres = noise(12, 32, seed=seed), noise(2, 32, seed=seed + 100)
    for number, places in enumerate(([0, 3, 6, 9], [1, 4, 7])):
        front[places] = centres[number] + 0.3 * front[places]
    return front


@pytest.mark.parametrize("seed", range(5))
def test_planted_clusters_are_found(seed: int) -> None:
    found = clusters(planted(seed), words(), permutations=99, seed=seed)
    assert [cluster.positions for cluster in found.clusters[:2]] == [(0, 3, 6, 9), (1, 4, 7)]
    assert found.clusters[0].cosine > 0.8
    assert found.p == 0.01  # nothing permuted came near
    assert [cluster.p <= 0.05 for cluster in found.clusters] == [
        True,
        True,
        *[False] * (len(found.clusters) - 2),
    ]
    assert found.chance is not None
    assert found.silhouette is not None
    assert found.silhouette > found.chance.high
    places = sorted([*found.alone, *(place for c in found.clusters for place in c.positions)])
    assert places == list(range(12))


@pytest.mark.parametrize(
    ("squeeze", "lengths"), [(1.0, 0.0), (3.0, 0.0), (3.0, 1.0)], ids=["round", "wide", "wide and uneven"]
)
def test_random_prompts_pass_for_clusters_no_more_often_than_they_may(squeeze: float, lengths: float) -> None:
    """Words drawn at random, some far longer than others: p up to 0.05 in about a twentieth of the draws."""
    vocabulary = words(squeeze)
    whole, single = [], []
    for seed in range(150):
        ids = torch.randperm(4000, generator=torch.Generator().manual_seed(seed))[:12]
        scales = torch.exp(lengths * noise(12, 1, seed=seed + 1000))
        front = vocabulary.centre + scales * vocabulary.centred(vocabulary.vectors(ids))
        found = clusters(front, vocabulary, permutations=99, seed=seed)
        whole.append(found.p or 0)
        single.append(min((cluster.p for cluster in found.clusters), default=1))
    for values in (whole, single):
        assert sum(p <= 0.05 for p in values) <= 15  # a tenth
    assert 0.4 < sum(whole) / 150 < 0.6


@pytest.mark.parametrize("count", [3, 7, 24])
def test_tree_and_silhouette_equal_scipys_and_sklearns(count: int) -> None:
    distances = module._distances(torch.stack([noise(count, 6, seed=s).double() for s in (1, 2)]))
    trees = [module._Tree(*(t.clone() for t in tree)) for tree in module._merges(distances)]
    assert len(trees) == count - 2
    for run in range(2):
        square = distances[run].numpy().copy()
        square[range(count), range(count)] = 0
        tree = linkage(squareform(square, checks=False), "average")
        for cut in trees:
            mine = cut.groups[run]
            number = len(mine.unique())
            theirs = torch.as_tensor(fcluster(tree, number, "maxclust"))
            assert torch.equal(mine[:, None] == mine, theirs[:, None] == theirs)
            worth = float(module._silhouettes(cut)[run].mean())
            assert worth == pytest.approx(silhouette_score(square, mine.numpy(), metric="precomputed"))


def test_parts_of_the_permutations_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clusters(planted(1), words(), permutations=30)
    monkeypatch.setattr(module, "_CELLS", 12 * 32 * 7)
    parts = clusters(planted(1), words(), permutations=30)
    assert (whole.clusters, whole.p, whole.silhouette) == (parts.clusters, parts.p, parts.silhouette)


def test_two_positions_are_no_ground_for_clusters() -> None:
    found = clusters(noise(2, 32), words())
    assert (found.clusters, found.alone, found.p) == ((), (0, 1), None)
    json.dumps(found.to_json(), allow_nan=False)


def test_equal_positions_are_one_cluster() -> None:
    front = noise(6, 32)
    front[:3] = front[0]
    found = clusters(front, words(), permutations=19)
    assert found.clusters[0].positions == (0, 1, 2)
    assert found.clusters[0].cosine == pytest.approx(1)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["permutations"] == 19
