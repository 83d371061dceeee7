"""A prompt can stay beside an unrelated text while it learns the job, which is the point of the control."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import tiny
from softprompt.data.rows import Encoded, Example
from softprompt.errors import ConfigError
from softprompt.evaluation.score import score
from softprompt.interpretation.vocabulary import Vocabulary
from softprompt.interpretation.wayward import WaywardSettings, text_f1, wayward

LABELS = ((10,), (11,), (12,))
SETTINGS = WaywardSettings(steps=60, learning_rate=0.05, gamma=1.0)


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return Vocabulary.of(tiny.base())


def job(count: int, first: int) -> Encoded:
    rows = [
        Example((20 + i % 7, 30 + i % 11, 40 + i % 3), LABELS[i % 3], i % 3, i)
        for i in range(first, first + count)
    ]
    return Encoded(tuple(rows), 0, LABELS, False, ())


def test_the_loss_falls_and_the_text_stays_nearest(words: Vocabulary) -> None:
    found = wayward(
        "hello", 5, job(48, 0), job(48, 100), words, SETTINGS, reference=words.base.embed([50] * 5)
    )
    assert "".join(word.text for word in found.words) == "hello"
    assert found.nearest == found.words
    assert (found.matches, found.f1) == (1, 1)
    assert found.scores.nll < found.text_scores.nll - 0.5
    assert found.best_step > 0
    assert 0 < found.distance < 1  # two words lie about 1.4 apart
    assert found.scores.nll == pytest.approx(score(words.base, found.prompt, job(48, 100)).nll)
    assert found.reference is not None
    assert found.against is not None
    difference = found.scores.nll - found.reference.nll
    assert found.against.nll.difference == pytest.approx(difference)
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert "prompt" not in read
    assert read["settings"]["gamma"] == 1


def test_gamma_holds_the_prompt_to_its_text(words: Vocabulary) -> None:
    free, held = (
        wayward(
            "hello", 5, job(48, 0), job(24, 100), words, replace(SETTINGS, gamma=gamma, validate_every=60)
        )
        for gamma in (0.0, 3.0)
    )
    assert free.best_step == held.best_step == 60
    assert held.distance < 0.8 * free.distance
    assert held.scores.nll > free.scores.nll


def test_training_that_does_harm_leaves_the_text_itself(words: Vocabulary) -> None:
    wild = replace(SETTINGS, steps=3, learning_rate=100.0)
    found = wayward("hello", 5, job(24, 0), job(24, 100), words, wild)
    assert (found.best_step, found.distance, found.matches) == (0, 0, 1)
    assert not found.rising
    assert torch.equal(found.prompt, words.base.embed(words.base.encode("hello")))
    assert (found.reference, found.against) == (None, None)


def test_a_control_that_was_best_at_its_end_is_still_rising(words: Vocabulary) -> None:
    found = wayward("ab", 3, job(24, 0), job(24, 100), words, replace(SETTINGS, steps=2))
    assert found.best_step == 2
    long = replace(found, settings=replace(SETTINGS, steps=100, validate_every=10))
    rising = [step for step in range(0, 101, 10) if replace(long, best_step=step).rising]
    assert rising == [90, 100]


def test_the_control_is_the_same_every_time(words: Vocabulary) -> None:
    short = replace(SETTINGS, steps=5)
    one, two = (wayward("ab", 3, job(24, 0), job(24, 100), words, short) for _ in range(2))
    assert torch.equal(one.prompt, two.prompt)
    assert "".join(word.text for word in one.words) == "aba"


def test_a_text_of_nothing_is_refused(words: Vocabulary) -> None:
    with pytest.raises(ConfigError):
        wayward("", 3, job(6, 0), job(6, 6), words, SETTINGS)


@pytest.mark.parametrize(
    ("found", "wanted", "f1"),
    [([1, 2, 3], [3, 2, 1], 1), ([1, 1, 2], [1, 2, 2], 2 / 3), ([1], [2], 0), ([1, 2, 3, 4], [1, 2], 2 / 3)],
)
def test_f1_by_hand(found: list[int], wanted: list[int], f1: float) -> None:
    assert text_f1(found, wanted) == pytest.approx(f1)
