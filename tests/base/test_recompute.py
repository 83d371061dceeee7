"""Layers that are computed again give the same losses and gradients, and keep a fraction of the memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from softprompt.base import recompute
from softprompt.base.model import Base, Batch
from softprompt.base.packing import TokenRow
from softprompt.base.recompute import recomputed
from softprompt.errors import ConfigError

ROWS = [TokenRow(tuple(3 + (7 * n + t) % 90 for t in range(12 + 5 * n)), 2) for n in range(6)]
ARCHITECTURES = [*tiny.ARCHITECTURES, "mpt", "qwen3-next", "lfm2", "deepseek-v3"]
CASES = [(one, learnt) for one in ARCHITECTURES for learnt in ("soft prompt", "KV prefix")]


def read(base: Base, front: Any, *, again: bool) -> tuple[Tensor, int]:
    """The losses, and how many bytes were kept for the backward pass."""
    kept = 0

    def keep(t: Tensor) -> Tensor:
        nonlocal kept
        kept += t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        (found,) = base.nll_many([Batch(ROWS, front)], recompute=again)
    return found.nll, kept


@pytest.mark.parametrize(("architecture", "learnt"), [*CASES, ("mamba2", "soft prompt")])
def test_losses_and_gradients_are_the_same(architecture: str, learnt: str) -> None:
    base = tiny.base(architecture)
    soft = torch.randn(7, base.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prefix = base.prefill(soft).detached()
    keys = tuple(t.clone().requires_grad_() for t in prefix.keys)
    front = soft if learnt == "soft prompt" else replace(prefix, keys=keys)
    numbers = [soft] if learnt == "soft prompt" else list(keys)
    found = []
    for again in (False, True):
        nll, _ = read(base, front, again=again)
        found.append((nll.detach(), *torch.autograd.grad(nll.sum(), numbers)))
    for usual, other in zip(*found, strict=True):
        torch.testing.assert_close(other, usual, rtol=1e-6, atol=1e-7)


def test_little_is_kept() -> None:
    base = tiny.base("llama")
    soft = torch.randn(7, base.width).requires_grad_()
    (_, usual), (_, less) = (read(base, soft, again=again) for again in (False, True))
    assert less < usual / 2


def test_layers_are_left_as_they_were() -> None:
    base = tiny.base("llama")
    before = {name: dict(vars(module)) for name, module in base.model.named_modules()}
    with pytest.raises(RuntimeError, match="in between"), recomputed(base.model):
        raise RuntimeError("in between")
    assert {name: set(vars(module)) for name, module in base.model.named_modules()} == {
        name: set(about) for name, about in before.items()
    }


def test_a_model_without_such_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "GradientCheckpointingLayer", torch.nn.Bilinear)
    with pytest.raises(ConfigError, match=r"train\.recompute"), recomputed(tiny.base("llama").model):
        pass
