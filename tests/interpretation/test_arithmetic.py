"""Sums worked by hand, and scores that are those of the prompts they equal."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import tiny
from softprompt.data.rows import Encoded, Example
from softprompt.errors import ConfigError
from softprompt.evaluation.score import score
from softprompt.interpretation.arithmetic import averages, blend, mix, scale, scaling, weigh
from softprompt.interpretation.scored import Scored
from softprompt.prefix import Prefix

WORDS = ((20,), (21,))


@pytest.fixture(scope="module")
def rows() -> Encoded:
    made = tuple(Example((5 + i % 7, 6 + i % 4), WORDS[i % 2], i % 2, i) for i in range(12))
    return Encoded(made, 0, WORDS, False, ())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(ids: list[int]) -> Prefix:
    base = tiny.base()
    start = base.prefill(base.embed(ids)).detached()
    return Prefix(start.keys, start.values, None, start.base)


def test_sums_by_hand() -> None:
    a, b = noise(3, 32), noise(3, 32, seed=1)
    found = mix([a, b], [2.0, -0.5])
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, 2 * a - b / 2)
    one, two = trained([40, 41]), trained([50, 51])
    mixed = mix([one, two], [0.25, 0.75])
    assert isinstance(mixed, Prefix)
    assert mixed.base == one.base
    for layer in range(3):
        torch.testing.assert_close(mixed.keys[layer], 0.25 * one.keys[layer] + 0.75 * two.keys[layer])
        torch.testing.assert_close(mixed.values[layer], 0.25 * one.values[layer] + 0.75 * two.values[layer])


def test_scaling_starts_at_the_start_and_ends_at_the_prompt(rows: Encoded) -> None:
    base = tiny.base()
    front, start = base.embed([40, 41, 42]), base.embed([50, 51, 52])
    found = scaling(base, front, start, rows, factors=(1, 0, 0.5, 2))
    one, nothing, half, double = found.sums
    assert one.scores == Scored.of(score(base, front, rows))
    assert nothing.scores.nll == pytest.approx(score(base, start, rows).nll, rel=1e-5)
    assert half.scores.nll == pytest.approx(score(base, (front + start) / 2, rows).nll, rel=1e-5)
    assert double.scores.nll == pytest.approx(score(base, 2 * front - start, rows).nll, rel=1e-5)
    assert double.weights == {"start": -1, "prompt": 2}
    assert one.against is None
    assert nothing.against is not None
    assert nothing.against.nll.difference == pytest.approx(nothing.scores.nll - one.scores.nll)
    assert nothing.against.accuracy is not None
    assert found.rows == 12
    json.dumps(found.to_json(), allow_nan=False)


def test_scale_of_a_prefix(rows: Encoded) -> None:
    base = tiny.base()
    front, start = trained([40, 41]), trained([50, 51])
    assert scale(front, start, 1) is front
    back = scale(front, start, 0)
    assert score(base, back, rows).nll == pytest.approx(score(base, start, rows).nll, rel=1e-5)
    assert len(scaling(base, front, start, rows, factors=(1, 0)).sums) == 2


def test_averages_and_blends_are_the_sums_they_say(rows: Encoded) -> None:
    base = tiny.base()
    a, b = base.embed([40, 41]), base.embed([50, 51])
    middle = score(base, (a + b) / 2, rows).nll
    found = averages(base, {"a": a, "b": b}, rows)
    assert [s.name for s in found.sums] == ["a", "b", "average"]
    assert found.sums[1].scores.nll == pytest.approx(score(base, b, rows).nll, rel=1e-5)
    assert found.sums[2].scores.nll == pytest.approx(middle, rel=1e-5)
    way = blend(base, a, b, rows, parts=2).sums
    assert [s.name for s in way] == ["0", "0.5", "1"]
    assert way[1].scores.nll == pytest.approx(middle, rel=1e-5)
    added = weigh(base, {"a": a, "b": b}, {"a + b": {"a": 1, "b": 1}}, rows)
    assert added.sums[0].scores.nll == pytest.approx(score(base, a + b, rows).nll, rel=1e-5)


def test_what_cannot_be_added_is_refused() -> None:
    with pytest.raises(ConfigError, match="differ in length"):
        mix([noise(3, 32), noise(4, 32)], [1, 1])
    with pytest.raises(ConfigError, match="differ in length"):
        mix([trained([40]), trained([40, 41])], [1, 1])
    with pytest.raises(ConfigError, match="one kind"):
        mix([noise(1, 32), trained([40])], [1, 1])
