"""Words planted in a prompt are said, run as a real prompt, and found again by the search."""

from __future__ import annotations

import json

import pytest
import torch

import tiny
from softprompt.base.packing import TokenRow
from softprompt.data.rows import Encoded, Example
from softprompt.evaluation.score import score
from softprompt.interpretation import words as module
from softprompt.interpretation.vocabulary import Vocabulary
from softprompt.interpretation.words import SearchSettings, rendering, search

PLANTED = [40, 50, 60]


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return Vocabulary.of(tiny.base())


def job(count: int, seed: int) -> Encoded:
    """Rows whose answer is what the base itself says behind the planted words."""
    base, generator = tiny.base(), torch.Generator().manual_seed(seed)
    inputs = [tuple(torch.randint(4, 90, (4,), generator=generator).tolist()) for _ in range(count)]
    with torch.no_grad():
        answers = base.next_logits([TokenRow(ids) for ids in inputs], base.embed(PLANTED)).argmax(1).tolist()
    rows = tuple(Example(ids, (a,), None, i) for i, (ids, a) in enumerate(zip(inputs, answers, strict=True)))
    return Encoded(rows, 0, None, False, ())


def labelled(count: int) -> Encoded:
    rows = [Example((5 + i % 7, 6), ((20,), (21,))[i % 2], i % 2, i) for i in range(count)]
    return Encoded(tuple(rows), 0, ((20,), (21,)), False, ())


def noisy(ids: list[int], words: Vocabulary, size: float) -> torch.Tensor:
    noise = torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(0))
    front: torch.Tensor = words.base.embed(ids) + size * words.spread / 32**0.5 * noise
    return front


def test_a_prompt_of_words_loses_nothing_when_said(words: Vocabulary) -> None:
    rows = labelled(12)
    found = rendering(words.base.embed(PLANTED), rows, words)
    assert [word.id for word in found.words] == PLANTED
    assert found.text == words.base.tokenizer.decode(PLANTED)
    assert found.soft == found.scores
    assert (found.lost.nll.difference, found.lost.nll.p) == (0, 1)
    assert found.lost.accuracy is not None
    assert (found.lost.accuracy.difference, found.lost.rows) == (0, 12)


@pytest.mark.parametrize("by", ["distance", "cosine"])
def test_what_is_lost_is_the_difference_of_the_scores(words: Vocabulary, by: str) -> None:
    front = 2 * noisy(PLANTED, words, 1.0)
    rows = labelled(12)
    found = rendering(front, rows, words, by=by)  # type: ignore[arg-type]
    soft = score(words.base, front, rows)
    hard = score(words.base, words.base.embed([word.id for word in found.words]), rows)
    assert found.scores.nll == pytest.approx(hard.nll)
    assert found.soft.nll_interval == soft.nll_interval
    assert found.lost.nll.difference == pytest.approx(hard.nll - soft.nll)
    assert found.lost.nll.low < hard.nll - soft.nll < found.lost.nll.high
    assert found.lost.accuracy is not None
    assert hard.accuracy is not None
    assert soft.accuracy is not None
    assert found.lost.accuracy.difference == pytest.approx(hard.accuracy - soft.accuracy)
    json.dumps(found.to_json(), allow_nan=False)


def test_the_search_finds_the_planted_words_from_wrong_ones(words: Vocabulary) -> None:
    """Two of the prompt's three nearest words are wrong, so they cannot do the job, and other words can."""
    train, validation = job(64, 1), job(64, 2)
    front = noisy([10, 50, 70], words, 0.3)
    settings = SearchSettings(steps=60, swaps=16, seed=1)
    found = search(front, train, validation, words, settings)
    assert found.ids == tuple(PLANTED)
    assert found.text == words.base.tokenizer.decode(PLANTED)
    assert found.found.nll == pytest.approx(score(words.base, words.base.embed(PLANTED), validation).nll)
    assert found.nearest.nll - found.found.nll > 1
    assert found.lost.nll.high < 0  # the noisy prompt does worse
    assert (found.train_rows, found.found.rows) == (64, 64)
    assert 0 < found.best_step <= 60
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["settings"]["seed"] == 1


def test_the_search_without_exchanges_mends_a_word_by_its_gradient(words: Vocabulary) -> None:
    settings = SearchSettings(steps=60, swaps=0)
    found = search(words.base.embed([40, 50, 70]), job(64, 1), job(64, 2), words, settings)
    assert found.ids == tuple(PLANTED)


def test_the_nearest_words_are_those_by_distance(words: Vocabulary) -> None:
    rows, front = labelled(8), 0.2 * noisy([40, 50, 60, 70, 80], words, 1.5)
    by_distance, by_cosine = (rendering(front, rows, words, by=by) for by in ("distance", "cosine"))
    assert by_distance.scores.nll != by_cosine.scores.nll
    found = search(front, rows, rows, words, SearchSettings(steps=1, swaps=0, learning_rate=1e-6))
    assert found.nearest == by_distance.scores


def test_the_search_never_ends_worse_than_the_nearest_words(words: Vocabulary) -> None:
    rows = labelled(8)
    front = noisy(PLANTED, words, 0.2)
    found = search(front, rows, rows, words, SearchSettings(steps=2, learning_rate=50.0, swaps=2))
    assert found.found.accuracy is not None
    assert found.nearest.accuracy is not None
    assert found.found.accuracy >= found.nearest.accuracy


def test_the_search_is_the_same_every_time_and_leaves_the_other_places_alone(words: Vocabulary) -> None:
    train, validation = job(32, 1), job(32, 2)
    settings = SearchSettings(steps=10, swaps=4)
    front = noisy([10, 20, 30], words, 0.1)
    told: list[tuple[int, int]] = []
    one, two = (
        search(front, train, validation, words, settings, places=[1], progress=lambda *t: told.append(t))
        for _ in range(2)
    )
    assert one == two
    assert (one.ids[0], one.ids[2]) == (10, 30)
    assert one.ids[1] != 20
    assert told[:10] == [(step, 10) for step in range(1, 11)]


def test_special_tokens_are_never_searched(words: Vocabulary) -> None:
    """The prompt's own nearest words may be special ones and are looked at; the search leaves them."""
    front = words.base.embed([1, 2, 40])
    hunt = module._Hunt(front, job(16, 1), words, SearchSettings(learning_rate=1.0), None)
    for step in range(4):
        assert not set(hunt.words) & {0, 1, 2, 3}
        hunt.step(step)
    found = search(front, job(16, 1), job(16, 2), words, SearchSettings(steps=1), places=[2])
    assert found.ids[:2] == (1, 2)
