"""Copies are alike, strangers are not, and pairings and divergences equal scipy's and hand-worked ones."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import jensenshannon
from torch import Tensor

import tiny
from softprompt.data.rows import Encoded, Example
from softprompt.errors import ConfigError
from softprompt.evaluation.score import judge
from softprompt.interpretation.relations import Matrix, cka, effects, likeness, match
from softprompt.interpretation.vocabulary import Vocabulary
from softprompt.prefix import Front, Prefix

INPUTS = [(5, 6, 7), (8,), (9, 10, 11, 12), (13, 14)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def named(matrices: list[Matrix]) -> dict[str, Matrix]:
    return {matrix.kind: matrix for matrix in matrices}


def rows(labels: bool) -> Encoded:
    words = ((20,), (21,))
    made = tuple(Example(ids, words[i % 2], i % 2 if labels else None, i) for i, ids in enumerate(INPUTS))
    return Encoded(made, 0, words if labels else None, False, ())


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 3), (8, 8), (30, 41)])
def test_pairing_equals_scipys(shape: tuple[int, int]) -> None:
    for seed in range(20):
        worth = noise(*shape, seed=seed)
        pairs = match(worth)
        expected = linear_sum_assignment(worth.numpy(), maximize=True)
        assert pairs == list(zip(*(side.tolist() for side in expected), strict=True))


def test_pairing_refuses_what_is_no_number() -> None:
    with pytest.raises(ConfigError, match="no numbers"):
        match(torch.tensor([[torch.nan]]))


def test_cka_sees_through_rotation_and_order_and_length() -> None:
    front = noise(6, 32).double()
    turn = torch.linalg.qr(noise(6, 6, seed=1).double()).Q
    assert cka(front, turn @ front) == pytest.approx(1)
    assert cka(front, 3 * front.flip(0)) == pytest.approx(1)
    twice = torch.cat([front, front])
    assert cka(front, twice) == pytest.approx(1)
    stranger = cka(front, noise(9, 32, seed=2).double())
    assert stranger is not None
    assert stranger < 0.5
    assert cka(front, torch.zeros(2, 32).double()) is None


def test_cka_equals_the_definition() -> None:
    """With kernels K = X X^T over the examples, which are the dimensions: <K, L> / (|K| |L|)."""
    x, y = noise(5, 12).double(), noise(7, 12, seed=1).double()
    one, other = ((t.T @ t).numpy() for t in (x, y))
    expected = (one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other))
    assert cka(x, y) == pytest.approx(expected)


def test_likeness_of_copies_and_strangers() -> None:
    words = Vocabulary.of(tiny.base())
    first = words.centre + noise(5, 32)
    order = torch.tensor([3, 0, 4, 1, 2])
    fronts = {
        "one": first,
        "copy": words.centre + 2 * (first - words.centre),
        "mixed": first[order],
        "other": words.centre + noise(5, 32, seed=1),
        "short": first[:2],
    }
    found = named(likeness(fronts, words))
    assert set(found) == {"positions", "matched", "cka"}
    for kind, same in (("positions", [1]), ("matched", [1, 2, 4]), ("cka", [1, 2])):
        values = found[kind].values[0]
        for place in range(1, 5):
            value = values[place]
            if place in same:
                assert value == pytest.approx(1, abs=1e-5)
            else:
                assert value is None or value < 0.7
    assert found["positions"].values[0][4] is None  # of another length
    for matrix in found.values():
        table = [[1.0 if v is None else v for v in row] for row in matrix.values]
        assert np.allclose(table, np.array(table).T)
        assert [row[i] for i, row in enumerate(table)] == pytest.approx([1] * 5, abs=1e-5)
        json.dumps(matrix.to_json(), allow_nan=False)


def test_prompts_that_began_alike_are_compared_by_where_they_went() -> None:
    words = Vocabulary.of(tiny.base())
    start = words.base.embed([20, 21, 22])
    step = noise(3, 32)
    step[0] = 0  # a word of the front, which never moves
    fronts = {
        "one": start + 0.01 * step,
        "back": start - 0.01 * step,
        "far": start + 0.5 * step,
        "new": start,
    }
    found = named(likeness(fronts, words, {name: start for name in fronts if name != "new"}))
    assert found["positions"].values[0][1] == pytest.approx(1, abs=0.01)
    assert found["travel"].values[0][1] == pytest.approx(-1, abs=1e-3)
    assert found["travel"].values[0][2] == pytest.approx(1, abs=1e-3)
    assert found["travel"].values[3] == (None,) * 4


def test_effects_equal_plain_ones() -> None:
    base = tiny.base()
    soft = {"a": base.embed([40, 41]), "b": base.embed([50])}
    fronts: dict[str, Front] = {**soft, "same": base.prefill(soft["a"])}
    found = named(effects(base, fronts, rows(labels=True)))
    assert set(found) == {"next word", "agreement", "probabilities"}
    shares = {}
    for name, front in soft.items():
        with torch.no_grad():
            passes = [base.model(inputs_embeds=torch.cat([front, base.embed(i)])[None]) for i in INPUTS]
        shares[name] = [out.logits[0, -1].double().softmax(-1).numpy() for out in passes]
    expected = [jensenshannon(a, b) ** 2 for a, b in zip(shares["a"], shares["b"], strict=True)]
    matrix = found["next word"]
    assert matrix.values[0][1] == pytest.approx(np.mean(expected), rel=1e-4)
    assert matrix.values[0][0] == 0
    assert matrix.values[0][2] == pytest.approx(0, abs=1e-9)
    assert matrix.low is not None
    assert matrix.high is not None
    assert matrix.low[0][1] <= float(np.mean(expected)) <= matrix.high[0][1] <= math.log(2)
    judged = [judge(base, each, rows(labels=True)) for each in fronts.values()]
    picked = [j.weights.argmax(1) for j in judged]
    assert found["agreement"].values[0][1] == float((picked[0] == picked[1]).double().mean())
    flat = [j.probabilities.flatten().double().detach().numpy() for j in judged]
    assert found["probabilities"].values[0][1] == pytest.approx(np.corrcoef(flat[0], flat[1])[0, 1], abs=1e-5)
    for one in found.values():
        assert one.rows == 4
        json.dumps(one.to_json(), allow_nan=False)


def test_free_text_and_trained_prefixes_are_compared_by_the_next_word() -> None:
    base = tiny.base()
    start = base.prefill(base.embed([40, 41])).detached()
    trained = Prefix(start.keys, start.values, None, start.base)
    (matrix,) = effects(base, {"trained": trained, "soft": base.embed([40, 41])}, rows(labels=False))
    assert matrix.kind == "next word"
    assert matrix.values[0][1] == pytest.approx(0, abs=1e-9)
