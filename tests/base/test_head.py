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
