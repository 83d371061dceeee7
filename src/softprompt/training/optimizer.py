"""The optimizers, and their state as plain tensors that safetensors can hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from softprompt.config import TrainConfig

__all__ = ["build_optimizer", "optimizer_state", "restore_optimizer"]


def build_optimizer(parameters: Sequence[nn.Parameter], config: TrainConfig) -> Optimizer:
    """AdamW or Adafactor over the fp32 master tensors."""
    kinds: dict[str, type[Optimizer]] = {"adamw": torch.optim.AdamW, "adafactor": torch.optim.Adafactor}
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    nothing = nn.Parameter(torch.empty(0))  # torch refuses to optimise nothing, which is what text learns
    return kinds[config.optimizer](parameters or [nothing], **options)  # type: ignore[arg-type]


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """Every tensor and number an optimizer remembers, as ``"number.name" -> tensor``."""
    return {
        f"{number}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: Optimizer, state: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_state`` gave."""
    whole = optimizer.state_dict()
    restored: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, name = key.split(".", 1)
        restored.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**whole, "state": restored})
