"""Long targets in chunks give the loss and gradient of the whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

import tiny
from softprompt.base.head import CHUNK, Head
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import freeze


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("count", [5, CHUNK + 1, 3 * CHUNK])
def test_chunks_change_nothing(count: int, softcap: float | None) -> None:
    torch.manual_seed(0)
    projection = nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(count, 8, requires_grad=True)
    targets, weights = torch.randint(50, (count,)), torch.rand(count)
    head = Head(projection, softcap)
    (found,) = torch.autograd.grad((head.nll(hidden, targets) * weights).sum(), hidden)
    logits = projection(hidden)
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    expected = functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(head.nll(hidden, targets), expected)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), hidden)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.01, 0.5], ids=["flat", "uneven"])
def test_half_precision_gives_the_gradient_over_a_large_vocabulary(dtype: torch.dtype, spread: float) -> None:
    torch.manual_seed(0)
    projection = nn.Linear(16, 131_072, bias=False).requires_grad_(False)
    projection.weight.copy_(torch.randn(131_072, 16) * spread)
    projection.to(dtype)
    hidden, targets = torch.randn(3, 16).to(dtype).requires_grad_(), torch.tensor([1, 2, 3])
    (found,) = torch.autograd.grad(Head(projection, None).nll(hidden, targets).sum(), hidden)
    exact = hidden.detach().double().requires_grad_()
    loss = functional.cross_entropy(exact @ projection.weight.double().T, targets, reduction="sum")
    (expected,) = torch.autograd.grad(loss, exact)
    assert (found.double() - expected).norm() < 0.02 * expected.norm()


HEADS: dict[str, Any] = {
    "granite": lambda: transformers.GraniteConfig(**tiny._LLAMA, logits_scaling=8.0),
    "cohere": lambda: transformers.CohereConfig(**tiny._LLAMA, logit_scale=0.0625),
    "modernbert-decoder": lambda: transformers.ModernBertDecoderConfig(
        **{k: v for k, v in tiny._LLAMA.items() if k != "num_key_value_heads"}, local_attention=8
    ),
    "gemma2": lambda: transformers.Gemma2Config(**tiny._LLAMA, head_dim=8, final_logit_softcapping=3.0),
}


@pytest.mark.parametrize("family", HEADS)
def test_all_that_a_head_does_is_in_losses_gradients_and_logits(family: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(HEADS[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.2 / parameter.std())
    plain = copy.deepcopy(model)
    base = freeze(model, tiny.tokenizer(), f"tiny-{family}")
    rows = [TokenRow((5, 9, 33, 7)), TokenRow((8, 3)), TokenRow((40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50))]
    soft = torch.randn(3, base.width).mul_(0.3).requires_grad_()
    losses = base.nll(rows, soft).per_row()
    (gradient,) = torch.autograd.grad(losses.sum(), soft)
    expected, logits = [], []
    for row in rows:
        ids = torch.tensor(row.ids)
        embedded = torch.cat([soft, plain.get_input_embeddings()(ids)])
        seen = plain(inputs_embeds=embedded[None], use_cache=False).logits[0]
        expected.append(functional.cross_entropy(seen[2:-1], ids, reduction="sum"))
        logits.append(seen[-1].detach())
    (wanted,) = torch.autograd.grad(torch.stack(expected).sum(), soft)
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-4, atol=0)
    assert (gradient - wanted).norm() / wanted.norm() < 1e-4
    torch.testing.assert_close(base.next_logits(rows, soft.detach()), torch.stack(logits))
