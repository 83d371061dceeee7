"""Words planted in a prompt are found next to it, and chance says what nearness is worth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

import tiny
from softprompt.interpretation import vocabulary as module
from softprompt.interpretation.neighbours import Chance, nearest_words, neighbours
from softprompt.interpretation.vocabulary import Vocabulary


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def words(request: pytest.FixtureRequest) -> Vocabulary:
    """Gemma scales its embeddings, so its table alone is not what the first layer receives."""
    return Vocabulary.of(tiny.base(request.param))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_planted_words_are_found_at_distance_0(words: Vocabulary) -> None:
    ids = [40, 7, 96, 41]
    found = neighbours(words.base.embed(ids), words, k=3)
    for place, position in enumerate(found.positions):
        for nearest in (position.prompt.by_cosine[0], position.prompt.by_distance[0]):
            assert nearest.word.id == ids[place]
            assert nearest.word.text == words.base.tokenizer.decode([ids[place]])
            assert nearest.distance == 0
            assert nearest.cosine == pytest.approx(1)
        assert position.random.distance.low > 0
        assert position.random.cosine.high < 1
    assert nearest_words(words.base.embed(ids), words) == ids


@pytest.mark.parametrize("cells", [8_000_000, 64])
def test_neighbours_equal_those_of_sklearn(
    words: Vocabulary, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CELLS", cells)  # the words in two parts, or in one
    vectors = noise(6, 32) * words.spread / 32**0.5
    table = words.table.float().numpy()
    centred, points = table - table.mean(0), vectors.numpy() - table.mean(0)
    found = neighbours(vectors, words, k=70)
    for metric in ("cosine", "euclidean"):
        distances, ids = NearestNeighbors(n_neighbors=70, metric=metric).fit(centred).kneighbors(points)
        for place, position in enumerate(found.positions):
            nearest = position.prompt.by_cosine if metric == "cosine" else position.prompt.by_distance
            seen = [1 - near.cosine if metric == "cosine" else near.distance for near in nearest]
            assert [near.word.id for near in nearest] == ids[place].tolist()
            assert seen == pytest.approx(distances[place].tolist(), rel=1e-4, abs=1e-5)


def test_a_prompt_that_only_wandered_is_no_nearer_than_its_start_moved_at_random(
    words: Vocabulary,
) -> None:
    start = words.base.embed([10, 11, 12, 13, 14, 15, 16, 17])
    step = noise(8, 32, seed=3)
    front = start + 0.5 * words.spread * step / step.norm(dim=1, keepdim=True)
    towards = start + 0.85 * (words.base.embed([50] * 8) - start)
    for vectors, typical in ((front, True), (towards, False)):
        found = neighbours(vectors, words, start, draws=100)
        inside = []
        for position in found.positions:
            assert position.start is not None
            assert position.start.by_distance[0].distance == 0
            assert position.stepped is not None
            chance = position.stepped.cosine
            inside.append(chance.low <= position.prompt.by_cosine[0].cosine <= chance.high)
        assert sum(inside) >= 6 if typical else sum(inside) <= 2


def test_random_vectors_have_the_norm_of_their_token(words: Vocabulary) -> None:
    """For vectors of a norm far beyond every word's, the nearest word is about that norm away."""
    vectors = noise(3, 32) * torch.tensor([[10.0], [100.0], [1000.0]]) * words.spread
    for position in neighbours(vectors, words, draws=20).positions:
        assert position.random.distance.mean == pytest.approx(position.prompt.norm, rel=0.1)


def test_only_allowed_words_are_chosen(words: Vocabulary) -> None:
    assert nearest_words(words.base.embed([2]), words) == [2]
    assert nearest_words(words.base.embed([2]), words, allowed=words.ordinary) != [2]
    assert not words.ordinary[[0, 1, 2, 3]].any()
    assert words.ordinary[4:].all()


def test_results_are_json_and_depend_on_the_seed_alone(words: Vocabulary) -> None:
    vectors = noise(2, 32)
    first, again, other = (neighbours(vectors, words, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.positions[0].random != other.positions[0].random
    assert first.positions[0].prompt == other.positions[0].prompt
    read = json.loads(json.dumps(first.to_json(), allow_nan=False))
    assert read["words"] == len(words)
    assert read["positions"][0]["prompt"]["by_cosine"][0]["word"]["text"]


def test_the_range_of_chance_is_numpys() -> None:
    draws = noise(41).double()
    found = Chance.of(draws)
    expected = np.quantile(draws.numpy(), [0.025, 0.975])
    assert [found.mean, found.low, found.high] == pytest.approx([float(draws.mean()), *expected])


def test_words_are_printable() -> None:
    words = Vocabulary.of(tiny.base())
    assert words.word(2).text == "</s>"
    assert words.word(4).text == " "
    assert words.word(92).text.isprintable()
    assert len(words) == len(tiny.tokenizer())
