"""What others compute, for ours to be held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peft
import torch
from torch import Tensor

from softprompt.base.packing import TokenRow


def peft_loss_and_gradient(model: Any, soft: Tensor, rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor]:
    """PEFT's usual way: the prompt repeated into every right-padded row, the head at every position."""
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=len(soft),
        token_dim=soft.shape[1],
        num_attention_heads=1,  # not looked at, but sought in the model's config under names that MPT has not
    )
    wrapped: Any = peft.get_peft_model(model, config).eval()
    weight = wrapped.prompt_encoder["default"].embedding.weight
    weight.data.copy_(soft.detach())
    loss = padded_loss(wrapped, rows)
    loss.backward()
    return loss.detach(), weight.grad


def padded_loss(model: Any, rows: Sequence[TokenRow]) -> Tensor:
    """The loss of right-padded rows as transformers computes it."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids[i, :length] = torch.tensor(row.ids)
        mask[i, :length] = 1
        labels[i, row.scored_from : length] = torch.tensor(row.ids[row.scored_from :])
    loss: Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss
