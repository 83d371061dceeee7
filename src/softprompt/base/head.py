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

LARGEST = 4096.0
"""Largest number that float16, which ends at 65,504, has to hold on the way to the head's gradient."""


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
        weight = self._projection.weight
        if self._softcap is not None or weight.requires_grad or not hidden.requires_grad:
            parts = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
            return torch.cat(
                [functional.cross_entropy(self.logits(h), t, reduction="none") for h, t in parts]
            )
        losses: Tensor = _FrozenNLL.apply(hidden, targets, self, weight)  # type: ignore[no-untyped-call]
        return losses


class _FrozenNLL(torch.autograd.Function):
    """The loss of a frozen head and its gradient in one go, chunk by chunk, in place of the logits.

    With z = exp(logits - max), the gradient is (z / sum(z) - onehot) @ weight: no second array of
    M x V numbers is ever made, and none is kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, weight: Tensor) -> Tensor:
        losses, gradient = [], torch.empty_like(hidden)
        for h, t, g in zip(hidden.split(CHUNK), targets.split(CHUNK), gradient.split(CHUNK), strict=True):
            z = head.logits(h)  # [M, V]
            z.sub_(z.amax(1, keepdim=True))
            wanted = z.gather(1, t[:, None])  # [M, 1]
            total = z.exp_().sum(1, keepdim=True)  # [M, 1]
            losses.append((total.log() - wanted)[:, 0])
            z.scatter_add_(1, t[:, None], -total)
            if weight.dtype == torch.float16:  # many words alike sum to more than it holds
                shrink = LARGEST / total.clamp(min=LARGEST)  # [M, 1]
                z.mul_(shrink)
                total = total * shrink
            g.copy_((z.to(weight.dtype) @ weight) / total)
        ctx.save_for_backward(gradient)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None, None
