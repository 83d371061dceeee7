"""Networks that vectors pass through while they are learnt, folded away after training.

They know vectors only, not where these stand nor what learns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PromptEncoder", "Residual"]


class PromptEncoder(nn.Module):
    """``MLP(P)``, the prompt encoder of P-tuning (Liu et al. 2021), folded away after training.

    The network's output is brought to the mean and spread of the vectors it starts from, so that training
    begins among real embeddings.
    """

    def __init__(self, start: Tensor, hidden: int, seed: int) -> None:
        """start: [n, E]; hidden: width of the two hidden layers."""
        super().__init__()
        width = start.shape[1]
        generator = torch.Generator().manual_seed(seed)
        sizes = ((hidden, width), (hidden, hidden), (width, hidden))
        layers = [torch.randn(*size, generator=generator) * (2 / size[1]) ** 0.5 for size in sizes]
        self.layers = nn.ParameterList(layers)
        self.mean = nn.Parameter(start.detach().mean(0))
        self.register_buffer("spread", start.detach().std(), persistent=False)

    def forward(self, soft: Tensor) -> Tensor:
        """soft: [n, E] -> [n, E]."""
        found = functional.layer_norm(soft, soft.shape[-1:])
        for layer in self.layers[:-1]:
            found = functional.relu(functional.linear(found, layer))
        return self.mean + self.spread * functional.linear(found, self.layers[-1])  # type: ignore[operator]


class Residual(nn.Module):
    """``P + MLP(P)``, one small network for all vectors (Razdaibiedina et al. 2023).

    The last layer starts at zero, so training starts exactly from the given vectors. Only the
    network's output is ever saved: it is folded away.
    """

    def __init__(self, width: int, bottleneck: int, seed: int) -> None:
        """width: E; bottleneck: width of the hidden layer."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(bottleneck, width, generator=generator) / width**0.5
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(width, bottleneck))

    def forward(self, soft: Tensor) -> Tensor:
        """soft: [n, E] -> [n, E]."""
        normed = functional.layer_norm(soft, soft.shape[-1:])
        return soft + functional.linear(functional.relu(functional.linear(normed, self.down)), self.up)
