"""One training step, done two ways on the same rows: by PEFT's usual loop and by softprompt.

Both sides are a ``Side``: a loss to call, the one tensor that trains, its optimizer. They know
nothing of clocks or tables.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.catalog import bundled
from softprompt.methods.front import Soft
from softprompt.methods.init import spread
from softprompt.methods.prompt_tuning import PromptTuning

__all__ = [
    "Difference",
    "Side",
    "collate",
    "difference",
    "draw_rows",
    "peft_model",
    "peft_side",
    "softprompt_side",
]

IGNORED = -100
"""The label transformers leaves out of its loss."""


@dataclass
class Side:
    """One way to train a soft prompt.

    Attributes:
        loss: rows -> mean loss of their scored tokens, differentiable in ``soft``.
        soft: ``[P, E]`` fp32, the only tensor that trains.
        optimizer: AdamW over ``soft``.
    """

    loss: Callable[[Sequence[TokenRow]], Tensor]
    soft: nn.Parameter
    optimizer: torch.optim.Optimizer
    unit: float = 1.0
    """How far in the vectors one step of 1 in what is learnt goes."""

    def step(self, rows: Sequence[TokenRow]) -> float:
        """What every training loop does: clear, forward, backward, update, and look at the loss."""
        self.optimizer.zero_grad()
        loss = self.loss(rows)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def softprompt_side(base: Base, start: Tensor, learning_rate: float) -> Side:
    """Prompt tuning as softprompt does it: packed rows behind one front, the head at labels only.

    It learns the way from the start in units of spread; rate and gradient are those of the vectors.
    """
    method = PromptTuning(base, [Soft(len(start))], start)
    (way,) = method.trainable_parameters()
    unit = float(spread(base))
    optimizer = _adamw(way, learning_rate / unit, base.device)
    return Side(lambda rows: base.nll(rows, method.front()).nll.mean(), way, optimizer, unit)


def peft_side(model: Any, start: Tensor, learning_rate: float) -> Side:
    """Prompt tuning as PEFT does it: the prompt repeated into every padded row, the head everywhere."""
    count, width = start.shape
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count, token_dim=width)
    wrapped: Any = peft.get_peft_model(model, config).eval()
    soft: nn.Parameter = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        soft.copy_(start)
    device = soft.device
    loss = lambda rows: wrapped(**collate(rows, device)).loss  # noqa: E731
    return Side(loss, soft, _adamw(soft, learning_rate, device))


def peft_model(dtype: str, device: torch.device) -> Any:
    """The bundled base as transformers itself loads it, with transformers' own choice of attention."""
    folder = bundled("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    assert model.config._attn_implementation == "sdpa"
    return model


def draw_rows(lengths: Sequence[int], vocabulary: int, scored: int | None, seed: int) -> list[TokenRow]:
    """Random rows of these lengths; their last ``scored`` tokens are the label, all of them if ``None``."""
    draw = random.Random(seed)
    return [
        TokenRow(
            tuple(draw.randrange(4, vocabulary) for _ in range(length)),
            0 if scored is None else length - scored,
        )
        for length in lengths
    ]


@dataclass(frozen=True)
class Difference:
    """How far softprompt's first step is from PEFT's, relative: of the loss, and of the gradient's norm."""

    loss: float
    gradient: float


def difference(ours: Side, theirs: Side, rows: Sequence[TokenRow]) -> Difference:
    """Compare loss and gradient on the same rows; no parameter moves."""
    losses, gradients = [], []
    for side in (ours, theirs):
        loss = side.loss(rows)
        losses.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, side.soft)[0] / side.unit)
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    return Difference(abs(losses[0] - losses[1]) / abs(losses[1]), float(error))


def _adamw(soft: nn.Parameter, learning_rate: float, device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.AdamW([soft], lr=learning_rate, weight_decay=0.0)


def collate(rows: Sequence[TokenRow], device: torch.device) -> dict[str, Tensor]:
    """Right-padded [B, T] ids, mask and labels, as transformers' collator makes them."""
    shape = (len(rows), max(len(row.ids) for row in rows))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for number, row in enumerate(rows):
        length = len(row.ids)
        ids[number, :length] = torch.tensor(row.ids)
        mask[number, :length] = 1
        labels[number, row.scored_from : length] = torch.tensor(row.ids[row.scored_from :])
    made = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in made.items()}
