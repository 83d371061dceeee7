"""Scores equal what a plain forward pass over each row gives."""

from __future__ import annotations

import pytest
import torch

import tiny
from softprompt.data.rows import Encoded, Example
from softprompt.evaluation.score import Scores, likelihoods, score, target_rows

INPUTS = [(5, 6, 7), (8,), (9, 10, 11, 12), (13, 14)]


def plain(base: object, front: torch.Tensor, ids: tuple[int, ...], target: tuple[int, ...]) -> list[float]:
    """Log-likelihoods of the target tokens, from one unpadded row read the model's own way."""
    assert isinstance(base, type(tiny.base()))
    with torch.no_grad():
        embedded = torch.cat([front, base.embed(ids + target)])[None]
        logs = base.model(inputs_embeds=embedded).logits[0].log_softmax(-1)
    start = len(front) + len(ids) - 1
    return [float(logs[start + i, t]) for i, t in enumerate(target)]


def encoded(words: tuple[tuple[int, ...], ...], whole: bool) -> Encoded:
    rows = [Example(ids, words[i % 2], i % 2, i) for i, ids in enumerate(INPUTS)]
    return Encoded(tuple(rows), 0, words, whole, ())


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
@pytest.mark.parametrize(
    ("words", "whole"), [(((20,), (21, 22)), False), (((20, 21), (20, 22, 23)), True)], ids=["first", "whole"]
)
def test_label_likelihoods(architecture: str, words: tuple[tuple[int, ...], ...], whole: bool) -> None:
    base = tiny.base(architecture)
    front = base.embed((3, 4))
    seen = words if whole else tuple(word[:1] for word in words)
    expected = [[sum(plain(base, front, ids, word)) for word in seen] for ids in INPUTS]
    with torch.no_grad():
        found = likelihoods(base, front, encoded(words, whole))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    scores = score(base, front, encoded(words, whole))
    best = tuple(row.index(max(row)) for row in expected)
    assert scores.predictions == best
    assert scores.accuracy == sum(p == i % 2 for i, p in enumerate(best)) / 4
    losses = [-expected[i][i % 2] for i in range(4)]
    assert scores.nll == pytest.approx(sum(losses) / sum(len(seen[i % 2]) for i in range(4)), rel=1e-4)


def test_text_loss_is_per_target_token() -> None:
    base = tiny.base()
    front = base.embed((3, 4))
    targets = [(30,), (31, 32, 33), (34, 35), (36,)]
    rows = tuple(Example(ids, t, None, i) for i, (ids, t) in enumerate(zip(INPUTS, targets, strict=True)))
    found = score(base, front, Encoded(rows, 0, None, False, ()))
    logs = [sum(plain(base, front, ids, t)) for ids, t in zip(INPUTS, targets, strict=True)]
    assert found.nll == pytest.approx(-sum(logs) / 7, rel=1e-4)
    assert found.nll_interval[0] <= found.nll <= found.nll_interval[1]
    assert found.accuracy is None


def test_whole_text_rows_score_everything_target_rows_the_target() -> None:
    example = Example((1, 2, 3), (4, 5), None, 0)
    assert target_rows([example])[0].scored == 2
    assert target_rows([example], whole_text=True)[0].scored == 5


def test_scores_survive_json() -> None:
    scores = Scores(4, 1.5, (1.0, 2.0), 0.5, (0.2, 0.8), (0, 1, 1, 0))
    assert Scores.from_json(scores.to_json()) == scores
    assert "predictions" not in scores.summary()
