"""Differences of scores worked by hand, signs included."""

from __future__ import annotations

import pytest

from softprompt.data.rows import Encoded, Example
from softprompt.evaluation.score import Scores
from softprompt.interpretation.scored import Scored, ScoreDifference, hits

WORDS = ((20,), (21,))
ROWS = Encoded(
    (
        *(Example((5,), WORDS[i % 2], i % 2, i) for i in range(19)),
        Example((5,), (20,), 0, 19, WORDS, (0, 1)),  # either answer is right
    ),
    0,
    WORDS,
    False,
    (),
)


def scores(losses: list[float], predictions: list[int], tokens: float = 2.0) -> Scores:
    right = sum(hits(Scores(20, 0, (0, 0), predictions=tuple(predictions)), ROWS)) / 20
    nll = sum(losses) / (tokens * 20)
    found = Scores(20, nll, (0, 9), right, (0, 1), tuple(predictions))
    return Scores(**{**vars(found), "losses": tuple(losses), "tokens": (tokens,) * 20})


def test_the_first_less_the_second() -> None:
    good = scores([0.5 + 0.01 * i for i in range(20)], [i % 2 for i in range(20)])
    bad = scores([2.5 + 0.02 * i for i in range(20)], [0] * 20)
    assert (good.accuracy, bad.accuracy) == (1, 11 / 20)  # the last row is right either way
    found = ScoreDifference.of(bad, good, ROWS)
    assert found.nll.difference == pytest.approx(1.0475)  # 2 + 0.01 * 9.5, over two tokens
    assert 1.03 < found.nll.low < found.nll.difference < found.nll.high < 1.07
    assert found.accuracy is not None
    assert found.accuracy.difference == pytest.approx(-9 / 20)
    assert found.accuracy.high < 0
    assert found.accuracy.p < 0.01
    assert (found.rows, found.seed) == (20, 0)
    back = ScoreDifference.of(good, bad, ROWS)
    assert back.nll.difference == pytest.approx(-found.nll.difference)
    assert Scored.of(good) == Scored(20, good.nll, (0, 9), 1.0, (0, 1))


def test_free_text_has_no_accuracy() -> None:
    one = Scores(2, 1.0, (0, 2), losses=(1.0, 3.0), tokens=(1.0, 3.0))
    two = Scores(2, 2.0, (0, 2), losses=(4.0, 4.0), tokens=(1.0, 3.0))
    found = ScoreDifference.of(one, two, Encoded(ROWS.examples[:2], 0, None, False, ()))
    assert found.accuracy is None
    assert found.nll.difference == pytest.approx(-1)  # per token: 4/4 less 8/4, not the mean of the rows
