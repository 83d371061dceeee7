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

from softprompt.base.packing import multiple_of
from softprompt.base.targets import TopTokens

__all__ = ["Head", "backbone"]

CHUNK = 256
"""Positions whose logits exist at one time: 256 x V numbers instead of M x V."""

TOKENS, LOGITS = 1024, 2**22
"""Positions, and logits of them, that exist at one time where the head is frozen: what a cache holds."""

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
            found = (target.chunk(m, m + CHUNK).plain(self.logits(h)) for m, h in _chunks(hidden, CHUNK))
            return torch.cat(list(found))
        losses: Tensor
        if type(self._projection) is nn.Linear and self._softcap is None and self._whole is None:
            bias = self._projection.bias
            losses = _FrozenLoss.apply(hidden, weight, bias, target)  # type: ignore[no-untyped-call]
        else:
            losses = _AnyFrozenLoss.apply(hidden, self, target)  # type: ignore[no-untyped-call]
        return losses


def _chunks(hidden: Tensor, size: int) -> list[tuple[int, Tensor]]:
    """Parts of hidden [M, E], each with the number of its first token."""
    return [(part * size, h) for part, h in enumerate(hidden.split(size))]


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

    @property
    def named(self) -> Tensor:
        """``[M, k]`` the tokens it says something of."""
        ...

    def loss(self, named: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [M, k] of the named, and the sum of exp [M, 1] over all others -> losses [M], two gradients.

        The gradient of another token's logit is that of the others [M, 1] times its exp; a named one has its
        own [M, k].
        """
        ...


class _Label(NamedTuple):
    """The tokens [M] themselves; with q = exp / sum(exp), the gradient is q - onehot."""

    ids: Tensor

    def chunk(self, start: int, stop: int) -> _Label:
        return _Label(self.ids[start:stop])

    def plain(self, logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, self.ids, reduction="none")

    @property
    def named(self) -> Tensor:
        return self.ids[:, None]

    def loss(self, named: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = others + named.exp()  # [M, 1]
        return (total.log() - named)[:, 0], 1 / total, named.exp() / total - 1


class _Soft(NamedTuple):
    """A distribution over k tokens and the rest.

    With q = exp / sum(exp), the gradient is q - p at a token that is named, else q (1 - p_rest / q_rest).
    """

    top: TopTokens

    def chunk(self, start: int, stop: int) -> _Soft:
        return _Soft(self.top[start:stop])

    def plain(self, logits: Tensor) -> Tensor:
        return _divergence(logits, self.top)

    @property
    def named(self) -> Tensor:
        return self.top.ids

    def loss(self, named: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p, rest = self.top.probabilities, self.top.rest[:, None]
        total = others + named.exp().sum(1, keepdim=True)  # [M, 1]
        others = others.clamp(min=math.exp(LEAST))
        log_q = named - total.log()
        losses = -(p * log_q).sum(1) - (rest * (others / total).log())[:, 0] - self.top.entropy
        return losses, (1 - rest * total / others) / total, log_q.exp() - p


class _FrozenLoss(torch.autograd.Function):
    """The loss of a frozen head and its gradient in one go, a block of words after the other.

    No array of M x V numbers is ever made, and a block's logits are still in the processor's cache when
    their gradient is taken.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: _Target) -> Tensor:
        losses, gradient = [], torch.empty_like(hidden)
        for m, h in _chunks(hidden, TOKENS):
            part = target.chunk(m, m + TOKENS)
            named, others, pull = _over_words(h.to(weight.device), weight, bias, part.named)
            found, of_others, of_named = part.loss(named, others)
            losses.append(found)
            pull = pull.mul_(of_others) + torch.einsum("mk,mke->me", of_named, weight[part.named].float())
            gradient[m : m + TOKENS] = pull
        ctx.save_for_backward(gradient)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None, None


def _over_words(h: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [M, k] of words named by ids [M, k]; over all others sum(exp) [M, 1], sum(exp x weight) [M, E].

    Logits are told less the greatest of their token. What was summed before a greater one came is scaled by
    it, as in an online softmax (Milakov and Gimelshein 2018).
    """
    tokens = len(h)
    spare = -tokens % multiple_of(h.dtype)
    h, ids = functional.pad(h, (0, 0, 0, spare)), functional.pad(ids, (0, 0, 0, spare))
    named, others = h.new_zeros(ids.shape, dtype=torch.float32), h.new_zeros((len(h), 1), dtype=torch.float32)
    pull, top = h.new_zeros(h.shape, dtype=torch.float32), torch.full_like(others, -torch.inf)
    words = max(1, LOGITS >> (len(h) - 1).bit_length())  # few sizes of blocks, whatever the number of tokens
    for first, block in enumerate(weight.split(words)):
        start, count = first * words, len(block)
        z = functional.linear(h, block, None if bias is None else bias[start : start + count]).float()
        inside = (ids >= start) & (ids < start + count)
        own = (ids - start).clamp(0, count - 1)
        named = torch.where(inside, z.gather(1, own), named)
        greatest = torch.maximum(top, z.amax(1, keepdim=True))
        z.sub_(greatest).exp_()
        z.scatter_reduce_(1, own, torch.where(inside, 0.0, torch.inf), "amin")  # named ones are no others
        shrink, total = (top - greatest).exp(), z.sum(1, keepdim=True)  # [M, 1] each
        others, top = others.mul_(shrink).add_(total), greatest
        pull.mul_(shrink)
        if block.dtype == torch.float32:
            pull.addmm_(z, block)
        elif block.dtype == torch.float16:  # many words alike sum to more than it holds
            less = LARGEST / total.clamp(min=LARGEST)  # [M, 1]
            pull += (z.mul_(less).to(block.dtype) @ block) / less
        else:
            pull += z.to(block.dtype) @ block
    return (named - top)[:tokens], others[:tokens], pull[:tokens]


class _AnyFrozenLoss(torch.autograd.Function):
    """The same for a head of any kind, whose gradient is found by running it backward, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, target: _Target) -> Tensor:
        losses, gradients = list[Tensor](), list[Tensor]()
        for m, h in _chunks(hidden, CHUNK):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                found = target.chunk(m, m + CHUNK).plain(head.logits(h))
                gradients += torch.autograd.grad(found.sum(), h)
            losses.append(found.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _FrozenLoss.backward(ctx, *grads)[:3]
