"""Attention over a prefix and packed rows, registered with transformers as ``softprompt``.

It knows queries, keys, values and a mask; it does not know what they mean.
Grouped heads are never repeated in memory, and on CPUs in half precision, where torch's fused
backward is slow, the scores are recomputed with plain matrix products instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

__all__ = ["IMPLEMENTATION", "Recomputed", "register"]

IMPLEMENTATION = "softprompt"


def register() -> None:
    """Make ``attn_implementation="softprompt"`` known to transformers (safe to call again)."""
    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Query [N, H, W, D], key and value [N, K, C, D], mask broadcast to [N, 1, W, C] -> [N, W, H, D]."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if _wants_recomputation(query, attention_mask):
        out = Recomputed.apply(query, key, value, attention_mask, scale)  # type: ignore[no-untyped-call]
    else:
        out = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=attention_mask is None and query.shape[2] > 1,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return out.transpose(1, 2).contiguous(), None


def _wants_recomputation(query: Tensor, mask: Tensor | None) -> bool:
    half = query.dtype in (torch.bfloat16, torch.float16)
    return (
        half
        and query.device.type == "cpu"
        and query.requires_grad
        and mask is not None
        and mask.is_floating_point()
    )


class Recomputed(torch.autograd.Function):
    """Softmax attention that keeps only q, k, v and its output, and computes the scores again backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        grouped = (q * scale).reshape(k.shape[0], k.shape[1], -1, q.shape[-1])  # [N, K, G*W, D]
        out = _weights(grouped, k, mask) @ v  # [N, K, G*W, D]
        ctx.save_for_backward(grouped, k, v, mask, out)
        ctx.scale, ctx.shape = scale, q.shape
        return out.reshape(q.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        grouped, k, v, mask, out = ctx.saved_tensors
        d_out = grads[0].reshape(grouped.shape)
        weights = _weights(grouped, k, mask)  # [N, K, G*W, C]
        d_v = weights.transpose(-1, -2) @ d_out
        d_scores = (d_out @ v.transpose(-1, -2)).sub_((d_out * out).sum(-1, keepdim=True)).mul_(weights)
        d_q = (d_scores @ k).mul_(ctx.scale).reshape(ctx.shape)
        return d_q, d_scores.transpose(-1, -2) @ grouped, d_v, None, None


def _weights(grouped: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Softmax of the scaled scores, [N, K, G*W, C]; mask [N, 1, W, C] serves all G heads of a group."""
    scores = grouped @ k.transpose(-1, -2)
    n, heads, gw, c = scores.shape
    scores.view(n, heads, -1, mask.shape[-2], c).add_(mask[:, :, None])
    return torch.softmax(scores, dim=-1).view(n, heads, gw, c)
