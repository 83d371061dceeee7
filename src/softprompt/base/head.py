"""The language-model head, run only where a label asks for it.

It knows hidden states and the frozen head; it does not know which rows they came from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Head"]

CHUNK = 256
"""Positions whose logits exist at one time: 256 x V numbers instead of M x V."""


class Head:
    """Logits and negative log-likelihoods from hidden states."""

    def __init__(self, projection: nn.Module, softcap: float | None) -> None:
        self._projection = projection
        self._softcap = softcap

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden [M, E] -> fp32 logits [M, V]."""
        logits: Tensor = self._projection(hidden).float()
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of ``targets`` [M] given hidden [M, E], in nats, fp32 [M]."""
        if len(targets) <= CHUNK or any(p.requires_grad for p in self._projection.parameters()):
            return functional.cross_entropy(self.logits(hidden), targets, reduction="none")
        losses: Tensor = _ChunkedNLL.apply(hidden, targets, self)  # type: ignore[no-untyped-call]
        return losses


class _ChunkedNLL(torch.autograd.Function):
    """Long targets in chunks: each chunk's gradient is taken at once, so its logits can be let go."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
        losses, gradients = [], []
        wanted = hidden.requires_grad
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            with torch.set_grad_enabled(wanted):
                h = h.detach().requires_grad_(wanted)
                loss = functional.cross_entropy(head.logits(h), t, reduction="none")
                losses.append(loss.detach())
                if wanted:
                    gradients.append(torch.autograd.grad(loss.sum(), h)[0])
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None
