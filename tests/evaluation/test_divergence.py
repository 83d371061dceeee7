"""How far a front is from a teacher: the same batched, alone and by hand; the share that is gone."""

from __future__ import annotations

import pytest
import torch

import tiny
from softprompt.base.model import Batch
from softprompt.base.packing import TokenRow
from softprompt.evaluation.divergence import Divergence, divergence, expectations, kept_share
from softprompt.prefix import Front

ROWS = [TokenRow((20, 21, 22, 23), 2), TokenRow((30, 31), 1), TokenRow((40, 41, 42, 43, 44, 45), 3)]


def taught(k: int = 20) -> list[TokenRow]:
    base = tiny.base()
    found = expectations(base, base.embed([1, 50, 51, 52]), ROWS, k)
    return [TokenRow(row.ids, row.scored_from, top) for row, top in zip(ROWS, found, strict=True)]


def test_a_teacher_expects_what_its_own_logits_say() -> None:
    base = tiny.base()
    front = base.embed([1, 50, 51, 52])
    for row, with_teacher in zip(ROWS, taught(), strict=True):
        with torch.no_grad():
            places = [(0, t - 1) for t in row.targets]
            logits = base.head.logits(base.hidden([Batch([row], front)], [places]))
        top = with_teacher.teacher
        assert top is not None
        wanted = logits.softmax(1).gather(1, top.ids)
        torch.testing.assert_close(top.probabilities, wanted, atol=1e-5, rtol=1e-4)
        assert torch.equal(top.ids[:, 0], logits.argmax(1))


def test_fronts_together_diverge_as_each_alone_and_as_the_loss_says() -> None:
    base, rows = tiny.base(), taught()
    fronts: list[Front] = [
        base.embed([1]),
        base.embed([1, 50, 51, 52]),
        base.prefill(base.embed([1, 60, 61])),
    ]
    together = divergence(base, fronts, rows)
    for front, found in zip(fronts, together, strict=True):
        (alone,) = divergence(base, [front], rows)
        assert found.nats == pytest.approx(alone.nats, abs=1e-5)
        assert found.agreed == alone.agreed
        with torch.no_grad():
            assert found.nats == pytest.approx(base.nll(rows, front).per_row().tolist(), abs=1e-5)
    assert together[1].per_token == pytest.approx(0, abs=1e-5)
    assert together[1].agreed == together[1].tokens == (2.0, 1.0, 3.0)


def test_the_share_that_is_gone_and_its_interval() -> None:
    bare = Divergence((4.0, 2.0, 2.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    student = Divergence((1.0, 0.5, 0.5), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    found = kept_share(student, bare).interval()
    assert found == pytest.approx((0.75, 0.75, 0.75))
    worse = Divergence((8.0, 2.0, 2.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert kept_share(worse, bare).value == pytest.approx(-0.5)
    assert kept_share(worse, bare).interval().low < -0.5 < kept_share(worse, bare).interval().high
