"""The language-model head, run only where a label asks for it.

It knows hidden states and the frozen head; it does not know which rows they came from. Most heads are one
product, perhaps with a soft cap. Where a model does more behind its layers (scales, a layer of its own), its
own forward pass is run with the layers left out.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPast

__all__ = ["Head", "backbone"]

CHUNK = 256
"""Positions whose logits exist at one time: 256 x V numbers instead of M x V."""

ROUNDING = 2e-2
"""How far rounding may move logits, of their norm; a scale or a layer moves them further."""

LARGEST = 4096.0
"""Largest number that float16, which ends at 65,504, has to hold on the way to the head's gradient."""


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
        weight = self._projection.weight
        learns = any(p.requires_grad for p in (self._whole or self._projection).parameters())
        if learns or not hidden.requires_grad:
            parts = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
            return torch.cat([self._losses(h, t) for h, t in parts])
        kind = _FrozenNLL if self._softcap is None and self._whole is None else _AnyFrozenNLL
        losses: Tensor = kind.apply(hidden, targets, self, weight)  # type: ignore[no-untyped-call]
        return losses

    def _losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self.logits(hidden), targets, reduction="none")


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
    modules = {name: _Given() if part is layers else part for name, part in model._modules.items()}
    shell.__dict__["_modules"] = modules
    return shell


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


class _AnyFrozenNLL(torch.autograd.Function):
    """The same for a head of any kind, whose gradient is found by running it backward, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, weight: Tensor) -> Tensor:
        losses, gradients = [], []
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                loss = head._losses(h, t)
                gradients += torch.autograd.grad(loss.sum(), h)
            losses.append(loss.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    backward = _FrozenNLL.backward
