"""A teacher's likeliest tokens as targets: divergence and gradient as defined, whatever the mixture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tiny
from softprompt.base.head import CHUNK, Head
from softprompt.base.model import Batch
from softprompt.base.packing import TokenRow
from softprompt.base.targets import TopTokens


def divergence(logits: Tensor, top: TopTokens) -> Tensor:
    """KL over k tokens and the rest, written down as it is defined, in fp64."""
    q = logits.double().softmax(1)
    named = q.gather(1, top.ids)
    ours = torch.cat([named, (1 - named.sum(1, keepdim=True)).clamp(min=1e-30)], 1)
    p = top.probabilities.double()
    theirs = torch.cat([p, top.rest.double()[:, None]], 1)
    return (torch.xlogy(theirs, theirs) - torch.xlogy(theirs, ours)).sum(1)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("count", [5, CHUNK + 1])
@pytest.mark.parametrize("k", [1, 7])
def test_loss_and_gradient_are_those_of_the_definition(k: int, count: int, softcap: float | None) -> None:
    torch.manual_seed(0)
    projection = nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(count, 8, requires_grad=True)
    weights = torch.rand(count)
    top = TopTokens.of_logits(2 * torch.randn(count, 50), k)
    found = Head(projection, softcap).divergence(hidden, top)
    (gradient,) = torch.autograd.grad((found * weights).sum(), hidden)
    logits = projection(hidden)
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    expected = divergence(logits, top)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    (right,) = torch.autograd.grad((expected * weights).sum(), hidden)
    torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-6)


def test_a_reader_does_not_diverge_from_itself() -> None:
    torch.manual_seed(0)
    projection = nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(9, 8, requires_grad=True)
    top = TopTokens.of_logits(projection(hidden).detach(), 20)
    found = Head(projection, None).divergence(hidden, top)
    assert float(found.detach().abs().max()) < 1e-5
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert float(gradient.abs().max()) < 1e-5


def test_all_words_named_leave_no_rest() -> None:
    torch.manual_seed(0)
    projection = nn.Linear(8, 5, bias=False).requires_grad_(False)
    hidden = torch.randn(4, 8, requires_grad=True)
    top = TopTokens.of_logits(torch.randn(4, 5), 20)
    found = Head(projection, None).divergence(hidden, top)
    torch.testing.assert_close(found.double(), divergence(projection(hidden), top), rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(found.sum(), hidden)[0].isfinite().all()


def test_what_is_sure_to_come_is_a_label_also_beside_a_distribution() -> None:
    torch.manual_seed(0)
    projection = nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(6, 8, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 4, 49])
    soft = TopTokens.of_logits(torch.randn(2, 50), 5)
    mixed = TopTokens.joined([TopTokens.certain(labels[:4]), soft])
    head = Head(projection, None)
    found = head.divergence(hidden, mixed)[:4]
    wanted = head.nll(hidden[:4], labels[:4])
    torch.testing.assert_close(found, wanted)
    (one,) = torch.autograd.grad(found.sum(), hidden)
    (other,) = torch.autograd.grad(wanted.sum(), hidden)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert all(len(set(row)) == len(row) for row in mixed.ids.tolist())


def test_rows_with_a_teacher_are_read_as_any_others() -> None:
    base = tiny.base()
    text, front = (20, 21, 22, 23, 24), base.embed([1, 30, 31])
    places = [[(0, t) for t in (1, 2, 3)]]
    with torch.no_grad():
        logits = base.head.logits(base.hidden([Batch([TokenRow(text)], front)], places))
    row = TokenRow(text, 2, TopTokens.of_logits(logits, 20))
    assert float(base.nll([row], front).nll.abs().max()) < 1e-5
    assert float(base.nll([row], base.embed([1])).nll.abs().max()) > 1e-2


def test_a_first_token_nothing_expects_is_left_out_with_its_distribution() -> None:
    base = tiny.base()
    top = TopTokens.of_logits(torch.randn(3, tiny.VOCABULARY), 4)
    row = TokenRow((20, 21, 22), 0, top)
    cut = row.scored_behind(1)
    assert cut.scored == 2
    assert cut.teacher is not None
    assert torch.equal(cut.teacher.ids, top.ids[1:])
    assert len(base.nll([row], base.embed([])).nll) == 2
