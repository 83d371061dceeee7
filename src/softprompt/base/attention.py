"""Attention over a prefix and packed rows, registered with transformers as ``softprompt``.

It knows queries, keys, values and a mask; it does not know what they mean.
Grouped heads are never repeated in memory, and on CPUs in half precision, where torch's fused
backward is slow, the scores are recomputed with plain matrix products instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

__all__ = ["IMPLEMENTATION", "PoolSpan", "Recomputed", "register", "told"]

IMPLEMENTATION = "softprompt"


class PoolSpan(NamedTuple):
    """Tokens of a pass that look into a KV pool: one each of several rows, or several of one row.

    Attributes:
        start, stop: which tokens of the pass.
        keys, values: a bucket's, by layer, each ``[R, K, C, D]``.
        first, last: which slots of the R.
        visible: how many of the C positions the longest row will have filled.
        at: ``[stop - start]`` the position of each token.
        apart: whether each token looks by itself, also several of one row; none changes another's bits.
    """

    start: int
    stop: int
    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    first: int
    last: int
    visible: int
    at: Tensor
    apart: bool = False


@cache
def register() -> None:
    """Make ``attn_implementation="softprompt"`` known to transformers, and masks that are ``told`` heard."""
    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    for implementation, made in (("eager", eager_mask), ("sdpa", sdpa_mask)):
        AttentionMaskInterface.register(implementation, _told_or(made))


_told: ContextVar[Tensor | None] = ContextVar("told", default=None)


@contextmanager
def told(mask: Tensor | None) -> Iterator[None]:
    """Within, models that take masks of padding only see what ``mask`` [N, 1, W, C] shows them, additive.

    They have transformers make their causal mask, by functions that it lets one register.
    """
    before = _told.set(mask)
    try:
        yield
    finally:
        _told.reset(before)


def _told_or(made: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes masks as ``made`` does where none is told."""

    @wraps(made)
    def mask(*args: Any, **kwargs: Any) -> Any:
        known = _told.get()
        return made(*args, **kwargs) if known is None else known

    return mask


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    pool: Sequence[PoolSpan] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Query [N, H, W, D], key and value [N, K, C, D], mask broadcast to [N, 1, W, C] -> [N, W, H, D].

    With a pool, N is 1 and the mask [1, 1, W, C] says which positions of its own slot each token sees; tokens
    behind the last span belong to no slot and find nothing.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if pool is not None:
        assert attention_mask is not None
        layer: int = module.layer_idx  # type: ignore[assignment]
        found = [_in_pool(query, span, layer, attention_mask, scale) for span in pool]
        if pool[-1].stop < query.shape[2]:
            found.append(found[0].new_zeros(query.shape[2] - pool[-1].stop, *found[0].shape[1:]))
        return (torch.cat(found) if len(found) > 1 else found[0])[None], None
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


def _in_pool(query: Tensor, span: PoolSpan, layer: int, mask: Tensor, scale: float) -> Tensor:
    """What the tokens of one span find in their slots, [T, H, D]; query [1, H, W, D]."""
    rows = slice(span.first, span.last)
    key, value = (side[layer][rows, :, : span.visible] for side in (span.keys, span.values))
    q, seen = query[0, :, span.start : span.stop], mask[0, 0, span.start : span.stop, : span.visible]
    heads, width = key.shape[1], q.shape[-1]
    if span.apart or len(seen) == span.last - span.first:
        # One token a row: heads that share keys stand where tokens would, five times faster on a CPU.
        grouped = q.transpose(0, 1).reshape(len(seen), heads, -1, width)  # [B, K, G, D]
        k, v = (side.expand(len(seen), -1, -1, -1) for side in (key, value))
        found = functional.scaled_dot_product_attention(
            grouped, k, v, attn_mask=seen[:, None, None], scale=scale
        )
        return found.reshape(len(seen), -1, width)
    found = functional.scaled_dot_product_attention(
        q[None], key, value, attn_mask=seen[None, None], scale=scale, enable_gqa=len(q) != heads
    )
    return found[0].transpose(0, 1)


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
        out = _weights(grouped, k, mask) @ v  # [N, K, G*W, D], where values may have a width of their own
        ctx.save_for_backward(grouped, k, v, mask, out)
        ctx.scale, ctx.shape = scale, q.shape
        return out.reshape(*q.shape[:-1], v.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        grouped, k, v, mask, out = ctx.saved_tensors
        d_out = grads[0].reshape(out.shape)
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
