"""Lets code for real devices run on torch's meta device: the kernel a device takes, numbers where none are.

It knows operations of torch, not models. Attention goes to the kernel that the planned device would take,
because what that keeps for its backward pass is half of what an attention layer keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from softprompt.base.attention import Recomputed

__all__ = ["Kernels"]

_ALIGNED = 16
"""The efficient kernel of CUDA takes masks of rows as long as a multiple of this, and copies others."""


class Kernels(TorchFunctionMode):
    """Inside, tensors on the meta device behave, in sizes, as on a device of type ``device``."""

    def __init__(self, device: str) -> None:
        """device: cpu, cuda or mps."""
        super().__init__()
        self._attend = {"cpu": _on_cpu, "cuda": _on_cuda}.get(device, _plainly)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        on_meta = bool(args) and isinstance(args[0], Tensor) and args[0].is_meta
        if on_meta and func is functional.scaled_dot_product_attention:
            return self._attend(*args, **given)
        if on_meta and func in _GROUPED:
            return _Grouped.apply(args[0], args[1])  # type: ignore[no-untyped-call]
        if on_meta and func is torch.where and len(args) == 1:
            return _places(args[0]).unbind(1)
        if on_meta and func in _VALUES:
            return _VALUES[func](args[0])
        return func(*args, **given)


def _places(t: Tensor) -> Tensor:
    """Where something is: once in each row."""
    return t.new_zeros(t.shape.numel() // max(t.shape[-1], 1), t.dim(), dtype=torch.long)


_VALUES: dict[Any, Callable[[Tensor], Any]] = {
    Tensor.cpu: lambda t: torch.zeros(t.shape, dtype=t.dtype),
    Tensor.tolist: lambda t: torch.ones(t.shape, dtype=t.dtype).tolist(),
    Tensor.item: lambda t: torch.ones((), dtype=t.dtype).item(),
    Tensor.__float__: lambda t: 1.0,
    Tensor.__int__: lambda t: 1,
    Tensor.__bool__: lambda t: True,
    Tensor.nonzero: _places,
    torch.nonzero: _places,
}
"""Where a number is asked for, some number: nothing that is counted depends on it."""

_GROUPED = (functional.grouped_mm, torch._grouped_mm)


class _Grouped(torch.autograd.Function):
    """The products of experts with the tokens that chose them, in number formats the meta device refuses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *([x] if weight.requires_grad else []))
        return x.new_empty(x.shape[0], weight.shape[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        weight, *inputs = ctx.saved_tensors
        d_x = grads[0].new_empty(grads[0].shape[0], weight.shape[1])
        return d_x, weight.new_empty(weight.shape) if inputs else None


def _on_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As ``base.attention`` decides on a CPU: recomputed in half precision, else torch's fused kernel."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    if half and q.requires_grad and attn_mask is not None and attn_mask.is_floating_point():
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        found: Tensor = Recomputed.apply(q, k, v, attn_mask, factor)  # type: ignore[no-untyped-call]
        return found
    if v.shape[-1] != q.shape[-1]:  # the fused kernel takes one width
        return _plainly(q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out: Tensor = fused(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out


def _on_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Torch's memory-efficient kernel; where heads are grouped, which it does not take, plain products."""
    if enable_gqa:
        return _plainly(q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if attn_mask is not None:
        missing = -attn_mask.shape[-1] % _ALIGNED
        if missing:
            attn_mask = functional.pad(attn_mask, (0, missing))[..., : attn_mask.shape[-1]]
        attn_mask = attn_mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    keeps = any(t.requires_grad for t in (q, k, v))
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    out: Tensor = efficient(q, k, v, attn_mask, keeps, dropout_p, is_causal, scale=scale)[0]
    return out


def _plainly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Plain products with all scores in memory, as the meta device does by itself."""
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
