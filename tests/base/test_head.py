"""Long targets in chunks give the loss and gradient of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from softprompt.base.head import CHUNK, Head


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("count", [5, CHUNK + 1, 3 * CHUNK])
def test_chunks_change_nothing(count: int, softcap: float | None) -> None:
    torch.manual_seed(0)
    projection = nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(count, 8, requires_grad=True)
    targets, weights = torch.randint(50, (count,)), torch.rand(count)
    head = Head(projection, softcap)
    (found,) = torch.autograd.grad((head.nll(hidden, targets) * weights).sum(), hidden)
    logits = projection(hidden)
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    expected = functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(head.nll(hidden, targets), expected)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), hidden)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.01, 0.5], ids=["flat", "uneven"])
def test_half_precision_gives_the_gradient_over_a_large_vocabulary(dtype: torch.dtype, spread: float) -> None:
    torch.manual_seed(0)
    projection = nn.Linear(16, 131_072, bias=False).requires_grad_(False)
    projection.weight.copy_(torch.randn(131_072, 16) * spread)
    projection.to(dtype)
    hidden, targets = torch.randn(3, 16).to(dtype).requires_grad_(), torch.tensor([1, 2, 3])
    (found,) = torch.autograd.grad(Head(projection, None).nll(hidden, targets).sum(), hidden)
    exact = hidden.detach().double().requires_grad_()
    loss = functional.cross_entropy(exact @ projection.weight.double().T, targets, reduction="sum")
    (expected,) = torch.autograd.grad(loss, exact)
    assert (found.double() - expected).norm() < 0.02 * expected.norm()
