"""A gradient has the same bits every time, in any number of threads and however many rows share a front."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import tiny
from softprompt.base.model import Batch
from softprompt.base.packing import TokenRow


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


ROWS = [TokenRow(tuple(3 + (7 * n + t) % 90 for t in range(40)), 0) for n in range(96)]
"""Scored from the first token on, which all of them expect from the end of the front."""


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("architecture", ["llama", "bloom"])
@pytest.mark.parametrize("learnt", ["soft prompt", "KV prefix"])
def test_a_gradient_has_the_same_bits_every_time(architecture: str, learnt: str) -> None:
    base = tiny.base(architecture)
    soft = torch.randn(64, base.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prefix = base.prefill(soft).detached()
    keys = tuple(t.clone().requires_grad_() for t in prefix.keys)
    front = soft if learnt == "soft prompt" else replace(prefix, keys=keys)
    numbers = [soft] if learnt == "soft prompt" else list(keys)

    def gradient() -> torch.Tensor:
        (found,) = base.nll_many([Batch(ROWS, front)])
        return torch.cat([g.flatten() for g in torch.autograd.grad(found.nll.sum(), numbers)])

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(8))
