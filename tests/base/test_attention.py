"""The recomputing attention equals torch's, forward and backward."""

from __future__ import annotations

import torch

from softprompt.base.attention import Recomputed


def test_recomputed_attention_equals_torchs() -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    visible = torch.rand(2, 1, 5, 7) > 0.4
    visible[..., 0] = True
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(
        ~visible, torch.finfo(torch.float64).min
    )
    found = Recomputed.apply(q, k, v, mask, 0.3)  # type: ignore[no-untyped-call]
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_values_may_have_a_width_of_their_own() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, width) for heads, width in ((4, 24), (2, 24), (2, 8)))
    mask = torch.zeros(2, 1, 5, 5).masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -1e9)
    given = [t.requires_grad_() for t in (q, k, v)]
    found = Recomputed.apply(*given, mask, 0.2)  # type: ignore[no-untyped-call]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=0.2, enable_gqa=True)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    pairs = zip(
        *(torch.autograd.grad((out * weights).sum(), given) for out in (found, expected)), strict=True
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)
