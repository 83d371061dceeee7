"""Scores equal what a plain forward pass over each row gives."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

import tiny
from softprompt.data.rows import Encoded, Example
from softprompt.errors import DataError
from softprompt.evaluation.score import Scores, judge, likelihoods, score, score_many, target_rows
from softprompt.prefix import Prefix

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
        (found,) = likelihoods(base, [front], encoded(words, whole))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    scores = score(base, front, encoded(words, whole))
    best = tuple(row.index(max(row)) for row in expected)
    assert scores.predictions == best
    assert scores.accuracy == sum(p == i % 2 for i, p in enumerate(best)) / 4
    losses = [-expected[i][i % 2] for i in range(4)]
    assert scores.nll == pytest.approx(sum(losses) / sum(len(seen[i % 2]) for i in range(4)), rel=1e-4)


def test_both_ends_of_a_loss_interval_are_those_of_the_bootstrap() -> None:
    """Of nats per token over rows that are drawn again: scipy's percentiles, the lower end and the upper."""
    rows = [
        Example((5 + i % 9,), tuple(20 + (7 * i + k) % 60 for k in range(1 + i % 4)), None, i)
        for i in range(60)
    ]
    found = score(tiny.base(), tiny.base().embed((3, 4)), Encoded(tuple(rows), 0, None, False, ()))
    columns = np.array(found.losses), np.array(found.tokens)

    def per_token(losses: Any, tokens: Any, axis: int = -1) -> Any:
        return losses.sum(axis) / tokens.sum(axis)

    expected = bootstrap(
        columns, per_token, paired=True, vectorized=True, method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    width = expected.high - expected.low
    assert found.nll_interval[0] == pytest.approx(expected.low, abs=0.1 * width)
    assert found.nll_interval[1] == pytest.approx(expected.high, abs=0.1 * width)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
@pytest.mark.parametrize("whole", [False, True])
def test_many_fronts_at_once_score_as_each_alone(architecture: str, whole: bool) -> None:
    base = tiny.base(architecture)
    fronts = [base.embed(ids) for ids in ((3, 4), (9,), (5, 6, 7, 8, 30))]
    fronts.append(base.prefill(base.embed((40, 41, 42))))  # type: ignore[arg-type]
    words: tuple[tuple[int, ...], ...] = ((20, 21), (20, 22, 23)) if whole else ((20,), (21, 22))
    texts = tuple(Example(ids, (30, 31)[: 1 + i % 2], None, i) for i, ids in enumerate(INPUTS))
    for rows in (encoded(words, whole), Encoded(texts, 0, None, False, ())):
        for together, front in zip(score_many(base, fronts, rows), fronts, strict=True):
            alone = score(base, front, rows)
            assert together.predictions == alone.predictions
            assert together.losses == pytest.approx(alone.losses, rel=1e-4)
            assert together.confidences == pytest.approx(alone.confidences, rel=1e-4)


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


def test_whole_choices_of_each_row_are_compared() -> None:
    base = tiny.base()
    front = base.embed((3, 4))
    offered = [
        ((20, 21), (22,)),
        ((20,), (23, 24), (25,)),
        ((30,), (31,)),
        ((32, 33, 34), (20,), (22,), (6,)),
    ]
    labels = [(0,), (2, 1), (1,), (3, 0)]
    rows = tuple(
        Example(ids, c[right[0]], right[0], i, c, right if len(right) > 1 else ())
        for i, (ids, c, right) in enumerate(zip(INPUTS, offered, labels, strict=True))
    )
    encoded = Encoded(rows, 0, None, True, ())
    expected = [[sum(plain(base, front, r.input_ids, c)) for c in r.candidates or ()] for r in rows]
    with torch.no_grad():
        (found,) = likelihoods(base, [front], encoded)
    assert found.shape == (4, 4)
    for row, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(row[: len(wanted)], torch.tensor(wanted), rtol=1e-4, atol=1e-4)
        assert bool((row[len(wanted) :] == -torch.inf).all())
    scores = score(base, front, encoded)
    best = tuple(row.index(max(row)) for row in expected)
    assert scores.predictions == best
    assert scores.accuracy == sum(p in right for p, right in zip(best, labels, strict=True)) / 4
    shares = [max(torch.tensor(row).softmax(0).tolist()) for row in expected]
    assert scores.confidences == pytest.approx(shares, rel=1e-4)
    assert scores.macro_f1 is None
    tokens = sum(len(r.target_ids) for r in rows)
    assert scores.nll == pytest.approx(
        -sum(e[r[0]] for e, r in zip(expected, labels, strict=True)) / tokens, rel=1e-4
    )


def test_any_right_choice_is_a_hit() -> None:
    base = tiny.base()
    front = base.embed((3, 4))
    offered = ((20,), (21,), (22,))
    for right in ((0, 1, 2), (2, 1, 0)):
        row = Example(INPUTS[0], offered[right[0]], right[0], 0, offered, right)
        assert score(base, front, Encoded((row,), 0, None, True, ())).accuracy == 1


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("own", [False, True], ids=["labels", "choices"])
def test_length_and_calibration_by_hand(by_length: bool, calibrated: bool, own: bool) -> None:
    base = tiny.base()
    front = base.embed((3, 4))
    words = ((20, 21), (22, 23, 24), (25,))
    neutral = (7, 7)
    rows = []
    for i, ids in enumerate(INPUTS):
        candidates = words[: 2 + i % 2]
        mine, empty = candidates if own else None, neutral if calibrated else None
        rows.append(Example(ids, words[i % 2], i % 2, i, mine, (), empty))
    encoded = Encoded(tuple(rows), 0, None if own else words, True, (), by_length)
    judged = judge(base, front, encoded)
    scores = score(base, front, encoded)
    for row, found in zip(rows, judged.weights, strict=True):
        expected = []
        for word in row.candidates or words:
            weight = sum(plain(base, front, row.input_ids, word))
            weight -= sum(plain(base, front, neutral, word)) if calibrated else 0
            expected.append(weight / (len(word) if by_length else 1))
        torch.testing.assert_close(found[: len(expected)], torch.tensor(expected), rtol=1e-4, atol=1e-4)
        assert bool((found[len(expected) :] == -torch.inf).all())
        assert scores.predictions[row.index] == expected.index(max(expected))
        assert scores.confidences[row.index] == pytest.approx(
            float(torch.tensor(expected).softmax(0).max()), rel=1e-3
        )
    # What training minimises stays what it is.
    plainly = score(
        base,
        front,
        replace(encoded, by_length=False, examples=tuple(replace(r, neutral_ids=None) for r in rows)),
    )
    assert (scores.nll, scores.nll_interval) == (plainly.nll, plainly.nll_interval)


def test_calibration_of_first_tokens() -> None:
    base = tiny.base()
    front = base.embed((3, 4))
    words = ((20,), (21, 22))
    rows = tuple(Example(ids, words[0], 0, i, None, (), (7, i % 2)) for i, ids in enumerate(INPUTS))
    found = judge(base, front, Encoded(rows, 0, words, False, ())).weights
    for row, weights in zip(rows, found, strict=True):
        expected = [
            plain(base, front, row.input_ids, w[:1])[0] - plain(base, front, row.neutral_ids or (), w[:1])[0]
            for w in words
        ]
        torch.testing.assert_close(weights, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_calibration_evens_out_what_is_said_of_nothing() -> None:
    """Behind the content-free input itself every label is as likely as every other."""
    base = tiny.base()
    words = ((20,), (21,), (22,))
    row = Example((7, 8), words[0], 0, 0, None, (), (7, 8))
    judged = judge(base, base.embed((3, 4)), Encoded((row,), 0, words, False, ()))
    torch.testing.assert_close(judged.probabilities, torch.full((1, 3), 1 / 3))


def test_macro_f1_of_labels() -> None:
    base = tiny.base()
    scores = score(base, base.embed((3, 4)), encoded(((20,), (21, 22)), False))
    truth = [i % 2 for i in range(4)]
    hits = [
        [p == t == label for p, t in zip(scores.predictions, truth, strict=True)].count(True)
        for label in (0, 1)
    ]
    f1 = [2 * hits[k] / (scores.predictions.count(k) + 2) for k in (0, 1)]
    assert scores.macro_f1 == pytest.approx(sum(f1) / 2)
    assert scores.macro_f1 is not None
    assert scores.macro_f1_interval is not None
    assert scores.macro_f1_interval[0] <= scores.macro_f1 <= scores.macro_f1_interval[1]
    assert Scores.from_json(json.loads(json.dumps(scores.to_json()))) == scores
    assert not {"predictions", "confidences"} & set(scores.summary())
    older = {
        k: v for k, v in scores.to_json().items() if k not in ("confidences", "macro_f1", "macro_f1_interval")
    }
    assert Scores.from_json(older).accuracy == scores.accuracy


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_long_inputs_are_read_once_for_all_candidates(architecture: str) -> None:
    """Far fewer tokens are read, and the likelihoods are those of whole rows."""
    base = tiny.base(architecture)
    front = base.embed((3, 4))
    lengths = (140, 9, 70, 131)  # the second is too short for it
    words = (
        ((20, 21), (20, 22), (25,)),
        ((20,), (23, 24), (25,)),
        ((30,),) * 5,
        ((32, 33, 34), (20, 6), (7,)),
    )
    rows = tuple(
        Example(tuple(5 + (7 * k + i) % 80 for k in range(n)), c[0], 0, i, c)
        for i, (n, c) in enumerate(zip(lengths, words, strict=True))
    )
    told: list[tuple[int, int]] = []
    with torch.no_grad():
        (found,) = likelihoods(
            base, [front], Encoded(rows, 0, None, True, ()), lambda *counts: told.append(counts)
        )
    for row, values in zip(rows, found, strict=True):
        expected = [sum(plain(base, front, row.input_ids, word)) for word in row.candidates or ()]
        torch.testing.assert_close(values[: len(expected)], torch.tensor(expected), rtol=2e-4, atol=2e-4)
    assert told[-1] == (14, 14)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_first_token_that_nothing_expects_is_not_counted() -> None:
    """Behind a KV prefix, or nothing at all, a row without input has a token less to be scored."""
    base = tiny.base()
    rows = (Example((), (9, 10, 11), None, 0), Example((5, 6), (7, 8), None, 1))
    texts = Encoded(rows, 0, None, True, ())
    soft = base.embed((3, 4))
    kept = base.prefill(soft).detached()
    finished = Prefix(kept.keys, kept.values, None, kept.base)
    behind, alone = (
        [sum(plain(base, front, row.input_ids, row.target_ids)) for row in rows]
        for front in (soft, base.embed((9,)))
    )
    behind[0] -= plain(base, soft, (), (9,))[0]
    alone[0] = sum(plain(base, base.embed((9,)), (), (10, 11)))
    alone[1] = sum(plain(base, base.embed(()), (5, 6), (7, 8)))
    for front, expected in ((finished, behind), (base.embed(()), alone)):
        found = score(base, front, texts)
        assert found.tokens == (2.0, 2.0)
        assert found.nll == pytest.approx(-sum(expected) / 4, rel=1e-4)
    assert score(base, soft, texts).tokens == (3.0, 2.0)


def test_rows_of_which_nothing_can_be_scored_are_refused() -> None:
    base = tiny.base()
    texts = Encoded((Example((), (9,), None, 0),), 0, None, True, ())
    with pytest.raises(DataError, match=r"No token of these rows can be scored.*data\.input"):
        score(base, base.embed(()), texts)
