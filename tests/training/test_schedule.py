"""Which rows make which step, and how fast each step learns."""

from __future__ import annotations

import pytest

from softprompt.training.schedule import Steps, rate


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own() -> None:
    steps = Steps(rows=23, batch_size=5, epochs=2, seed=0)
    epochs = [[i for s in range(e * 5, e * 5 + 5) for i in steps.batch(s)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(23))
    assert epochs[0] != epochs[1] != list(range(23))
    assert [len(steps.batch(s)) for s in range(5)] == [5, 5, 5, 5, 3]


def test_the_order_depends_on_the_seed_alone() -> None:
    assert Steps(9, 4, 1, seed=1).batch(1) == Steps(9, 4, 7, seed=1).batch(1)
    assert Steps(9, 4, 1, seed=1).batch(0) != Steps(9, 4, 1, seed=2).batch(0)


def test_max_steps_bounds_the_epochs() -> None:
    assert Steps(10, 5, 3, 0).total == 6
    assert Steps(10, 5, 3, 0, max_steps=4).total == 4
    assert Steps(10, 5, 3, 0, max_steps=40).total == 6


def test_min_steps_gives_few_rows_more_epochs_but_not_too_many() -> None:
    assert Steps(100, 10, 3, 0, min_steps=100).total == 100
    assert Steps(100, 10, 3, 0, min_steps=20).total == 30
    assert Steps(20, 10, 3, 0, min_steps=100).total == 2 * 16
    assert Steps(20, 10, 0, 0, min_steps=100).total == 0  # nothing trains
    assert Steps(20, 10, 3, 0, max_steps=7, min_steps=100).total == 7
    assert Steps(20, 10, 20, 0, min_steps=10).total == 40


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_rate_rises_then_falls_towards_zero(kind: str) -> None:
    rates = [rate(kind, step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.02
    assert rate(kind, 55, 100, 0.1) == pytest.approx(0.5)


def test_a_constant_rate_stays_up() -> None:
    assert [rate("constant", s, 10, 0.0) for s in (0, 9)] == [1.0, 1.0]
