"""The language-model head, run only where a label asks for it.

It knows hidden states and the frozen head; it does not know which rows they came from. Most heads are one
product, perhaps with a soft cap. Where a model does more behind its layers (scales, a layer of its own), its
own forward pass is run with the layers left out.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPast

from softprompt.base.targets import TopTokens

__all__ = ["Head", "backbone"]

CHUNK = 256
"""Positions whose logits exist at one time: 256 x V numbers instead of M x V."""

ROUNDING = 2e-2
"""How far rounding may move logits, of their norm; a scale or a layer moves them further."""

LARGEST = 4096.0
"""Largest number that float16, which ends at 65,504, has to hold on the way to the head's gradient."""

LEAST = -60.0
"""The least log-probability the rest may have, so that loss and gradient stay finite."""


class Head:
    """Logits and negative log-likelihoods from hidden states."""

    def __init__(self, projection: nn.Module, softcap: float | None, whole: nn.Module | None = None) -> None:
        """whole: a model without its layers, where projection and soft cap are not all that it does."""
        self._projection = projection
        self._softcap = softcap
        self._whole = whole

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a transformers model, told by what its own forward pass makes of hidden states."""
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        projection = model.get_output_embeddings()
        plain, bare = cls(projection, softcap), _without_layers(model)
        table = model.get_input_embeddings().weight
        if bare is None or table.is_meta:
            return plain
        whole = cls(projection, softcap, bare)
        drawn = torch.randn(2, projection.weight.shape[1], generator=torch.Generator().manual_seed(0))
        hidden = drawn * torch.tensor([[1.0], [100.0]])  # a cap shows in large logits, a bias in small ones
        with torch.no_grad():
            try:
                expected = whole.logits(hidden.to(table))
                found = plain.logits(hidden.to(table))
            except Exception:  # asks for more than hidden states, or for those of another width
                return plain
        apart = (found - expected).norm(dim=1) / expected.norm(dim=1)
        return plain if bool((apart < ROUNDING).all()) else whole

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden [M, E] -> fp32 logits [M, V]."""
        if self._whole is not None:
            found: Tensor = self._whole(inputs_embeds=hidden[None], use_cache=False).logits
            return found[0].float()
        logits: Tensor = self._projection(hidden).float()
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of ``targets`` [M] given hidden [M, E], in nats, fp32 [M]."""
        return self._losses(hidden, _Label(targets))

    def divergence(self, hidden: Tensor, top: TopTokens) -> Tensor:
        """KL(expected || this head's) of M tokens given hidden [M, E], in nats, fp32 [M].

        Both distributions are over the k tokens named for each and the rest as one.
        """
        return self._losses(hidden, _Soft(top))

    def _losses(self, hidden: Tensor, target: _Target) -> Tensor:
        """Against M targets; a frozen head that is one product gives loss and gradient in one go."""
        weight = self._projection.weight
        learns = any(p.requires_grad for p in (self._whole or self._projection).parameters())
        if learns or not hidden.requires_grad:
            found = (target.chunk(m, m + CHUNK).plain(self.logits(h)) for m, h in _chunks(hidden))
            return torch.cat(list(found))
        kind = _FrozenLoss if self._softcap is None and self._whole is None else _AnyFrozenLoss
        losses: Tensor = kind.apply(hidden, self, weight, target)  # type: ignore[no-untyped-call]
        return losses


def _chunks(hidden: Tensor) -> list[tuple[int, Tensor]]:
    """Parts of hidden [M, E], each with the number of its first token."""
    return [(part * CHUNK, h) for part, h in enumerate(hidden.split(CHUNK))]


def backbone(model: Any) -> Any:
    """The layers of a transformers model; Llama 4 calls them otherwise than it says."""
    return getattr(model, model.base_model_prefix, None) or model.model


class _Given(nn.Module):
    """Stands where a model's layers were: hands on as hidden states what is given as embeddings."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        """inputs_embeds: [1, M, E]."""
        return _Given.Output(last_hidden_state=inputs_embeds)

    class Output(BaseModelOutputWithPast):  # type: ignore[misc]
        """Whatever else a forward pass asks for (router logits, images) was not computed."""

        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)


def _without_layers(model: Any) -> nn.Module | None:
    """The model's own modules but its layers; None where they stand deeper in it."""
    layers = backbone(model)
    if not any(part is layers for part in model.children()):
        return None
    shell: nn.Module = copy.copy(model)
    shell.__dict__.pop("forward", None)  # accelerate's, which runs the model it was made for
    modules = {name: _Given() if part is layers else part for name, part in model._modules.items()}
    shell.__dict__["_modules"] = modules
    return shell


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

    def plain(self, logits: Tensor) -> Tensor:
        """Losses [M] of logits [M, V], through autograd."""
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

    def plain(self, logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, self.ids, reduction="none")

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

    def plain(self, logits: Tensor) -> Tensor:
        return _divergence(logits, self.top)

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
        for m, h in _chunks(hidden):
            z = head.logits(h)  # [M, V]
            z.sub_(z.amax(1, keepdim=True))
            found, total = target.chunk(m, m + CHUNK).loss(z)
            losses.append(found)
            if weight.dtype == torch.float16:  # many words alike sum to more than it holds
                shrink = LARGEST / total.clamp(min=LARGEST)  # [M, 1]
                z.mul_(shrink)
                total = total * shrink
            gradient[m : m + CHUNK] = (z.to(weight.dtype) @ weight) / total
        ctx.save_for_backward(gradient)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None, None


class _AnyFrozenLoss(torch.autograd.Function):
    """The same for a head of any kind, whose gradient is found by running it backward, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, weight: Tensor, target: _Target) -> Tensor:
        losses, gradients = list[Tensor](), list[Tensor]()
        for m, h in _chunks(hidden):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                found = target.chunk(m, m + CHUNK).plain(head.logits(h))
                gradients += torch.autograd.grad(found.sum(), h)
            losses.append(found.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    backward = _FrozenLoss.backward
