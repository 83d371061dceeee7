"""The language-model head, run only where a label asks for it.

It knows hidden states and the frozen head; it does not know which rows they came from.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt.base.targets import TopTokens

__all__ = ["Head"]

CHUNK = 256
"""Positions whose logits exist at one time: 256 x V numbers instead of M x V."""

LARGEST = 4096.0
"""Largest number that float16, which ends at 65,504, has to hold on the way to the head's gradient."""


LEAST = -60.0
"""The least log-probability the rest may have, so that loss and gradient stay finite."""


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
        if self._plain(hidden):
            parts = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
            return torch.cat(
                [functional.cross_entropy(self.logits(h), t, reduction="none") for h, t in parts]
            )
        losses: Tensor = _FrozenLoss.apply(hidden, self, self._projection.weight, _Label(targets))  # type: ignore[no-untyped-call]
        return losses

    def divergence(self, hidden: Tensor, top: TopTokens) -> Tensor:
        """KL(expected || this head's) of M tokens given hidden [M, E], in nats, fp32 [M].

        Both distributions are over the k tokens named for each and the rest as one.
        """
        if self._plain(hidden):
            parts = zip(
                hidden.split(CHUNK), top.ids.split(CHUNK), top.probabilities.split(CHUNK), strict=True
            )
            return torch.cat([_divergence(self.logits(h), TopTokens(i, p)) for h, i, p in parts])
        losses: Tensor = _FrozenLoss.apply(hidden, self, self._projection.weight, _Soft(top))  # type: ignore[no-untyped-call]
        return losses

    def _plain(self, hidden: Tensor) -> bool:
        """Whether autograd has to see every step, or nothing is to be learnt."""
        learnt = bool(self._projection.weight.requires_grad)
        return self._softcap is not None or learnt or not hidden.requires_grad


def _divergence(logits: Tensor, top: TopTokens) -> Tensor:
    """KL [M] of logits [M, V] from what was expected, through autograd."""
    named = logits.gather(1, top.ids)  # [M, k]
    others = logits.scatter(1, top.ids, -torch.inf).logsumexp(1)  # [M]
    total = torch.logaddexp(named.logsumexp(1), others)
    rest = torch.where(top.rest > 0, top.rest * (others - total).clamp(min=LEAST), 0.0)
    return -(top.probabilities * (named - total[:, None])).sum(1) - rest - top.entropy


class _Target(Protocol):
    """What M tokens are held against."""

    def chunk(self, start: int, stop: int) -> _Target:
        """Of some of the tokens."""
        ...

    def loss(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [M, V] less their greatest -> losses [M] and the sum of exp [M, 1].

        In place of the logits stands their gradient times that sum afterwards.
        """
        ...


class _Label(NamedTuple):
    """The tokens [M] themselves; the gradient is z / sum(z) - onehot."""

    ids: Tensor

    def chunk(self, start: int, stop: int) -> _Label:
        return _Label(self.ids[start:stop])

    def loss(self, z: Tensor) -> tuple[Tensor, Tensor]:
        wanted = z.gather(1, self.ids[:, None])  # [M, 1]
        total = z.exp_().sum(1, keepdim=True)  # [M, 1]
        z.scatter_add_(1, self.ids[:, None], -total)
        return (total.log() - wanted)[:, 0], total


class _Soft(NamedTuple):
    """A distribution over k tokens and the rest.

    With q = z / sum(z), the gradient is q - p at a token that is named, else q (1 - p_rest / q_rest).
    """

    top: TopTokens

    def chunk(self, start: int, stop: int) -> _Soft:
        return _Soft(self.top[start:stop])

    def loss(self, z: Tensor) -> tuple[Tensor, Tensor]:
        ids, p, rest = self.top.ids, self.top.probabilities, self.top.rest[:, None]
        named = z.gather(1, ids)  # [M, k]
        others = z.exp_().scatter_(1, ids, 0).sum(1, keepdim=True)  # [M, 1]
        total = others + named.exp().sum(1, keepdim=True)  # [M, 1]
        others = others.clamp(min=math.exp(LEAST))
        log_q = named - total.log()
        losses = -(p * log_q).sum(1) - (rest * (others / total).log())[:, 0] - self.top.entropy
        z.mul_(1 - rest * total / others)
        z.scatter_(1, ids, named.exp() - p * total)
        return losses, total


class _FrozenLoss(torch.autograd.Function):
    """The loss of a frozen head and its gradient in one go, chunk by chunk, in place of the logits.

    No second array of M x V numbers is ever made, and none is kept.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, weight: Tensor, target: _Target) -> Tensor:
        losses, gradient = [], torch.empty_like(hidden)
        for start, (h, g) in enumerate(zip(hidden.split(CHUNK), gradient.split(CHUNK), strict=True)):
            z = head.logits(h)  # [M, V]
            z.sub_(z.amax(1, keepdim=True))
            found, total = target.chunk(start * CHUNK, start * CHUNK + len(h)).loss(z)
            losses.append(found)
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
