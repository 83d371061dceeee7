"""Prefix tuning (Li and Liang 2021): the keys and values of P positions, learnt in every layer that attends.

It knows where they start and which of them train; it does not know rows, losses or optimizers. Started
from the prefill of real text, step 0 is the prompted model itself, and training leads far higher than
from random numbers (Eyuboglu et al. 2025, "Cartridges").

What is learnt is the way from there, in units of each side's own spread: keys of one layer may be a hundred
times as long as values of another, and one learning rate has to suit them all. Layers that keep a state begin
with that of the text it started from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt.base.model import Base
from softprompt.errors import ConfigError
from softprompt.prefix import Prefix

__all__ = ["PrefixTuning", "Projection", "Ways"]

_LEAST = 1e-6
"""The unit of numbers that are all alike."""


class PrefixTuning:
    """A KV prefix in fp32.

    Args:
        base: the frozen model.
        sides: makes all keys, then all values, 2L x ``[K, P, D]``; its parameters are what is learnt.
    """

    def __init__(self, base: Base, sides: Ways | Projection) -> None:
        self._base, self._sides = base, sides

    @property
    def base(self) -> Base:
        return self._base

    def front(self) -> Prefix:
        """The prefix as it stands, fp32, ``[K, P, D]`` a layer."""
        sides = self._sides()
        half = len(sides) // 2
        return self._sides.start.over(sides[:half], sides[half:])

    def change(self) -> None:
        return None

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self._sides.parameters())

    def state(self) -> dict[str, Tensor]:
        return dict(self._sides.state_dict())

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._sides.load_state_dict(state)


def _frame(start: Prefix) -> Prefix:
    """A prefix without its keys and values, which are learnt."""
    if not start.keys:
        raise ConfigError(
            "No layer of the model attends, so there are no keys and values to learn; learn a soft prompt."
        )
    return start.detached().over((), ())


class Ways(nn.Module):
    """Every key and value by itself, as the way from where it starts.

    Args:
        start: the prefix to start from, of P positions.
        frozen: how many positions at its head stay as they are; the first one serves models as an
            attention sink and is best left alone.
    """

    def __init__(self, start: Prefix, frozen: int) -> None:
        super().__init__()
        self.start = _frame(start)
        if start.length <= frozen:
            raise ConfigError(
                f"The prefix has {start.length} positions, of which the first {frozen} stay as they are, so "
                "there is nothing to learn; lengthen method.front or set method.positions."
            )
        self._start = [t.detach().float() for t in (*start.keys, *start.values)]
        self._frozen = frozen
        free = [t[:, frozen:] for t in self._start]
        self._units = [t.std().clamp_min(_LEAST) for t in free]
        self.ways = nn.ParameterList(torch.zeros_like(t) for t in free)  # 2L x [K, P - frozen, D]

    def forward(self) -> list[Tensor]:
        """All keys, then all values: 2L x [K, P, D]."""
        still = (0, 0, self._frozen, 0)
        sides = zip(self._start, self._units, self.ways, strict=True)
        return [start + functional.pad(unit * way, still) for start, unit, way in sides]


class Projection(nn.Module):
    """P short random vectors and one network that makes all their keys and values (Li and Liang 2021).

    What comes out has, layer by layer, the mean and spread of ``like``, so that a random start lies where
    the model's own keys and values do. Only its output is ever saved.
    """

    def __init__(self, like: Prefix, positions: int, width: int, seed: int) -> None:
        """like: any prefix of the model; positions: P; width: of the vectors and the hidden layer."""
        super().__init__()
        self.start = _frame(like)
        generator = torch.Generator().manual_seed(seed)
        sides = [t.detach().float() for t in (*like.keys, *like.values)]
        self._shapes = [(t.shape[0], t.shape[2]) for t in sides]
        sizes = [heads * depth for heads, depth in self._shapes]
        device = sides[0].device

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter((torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(device))

        self.vectors = nn.Parameter(torch.randn(positions, width, generator=generator).to(device))
        self.inner, self.outer = drawn(width, width), drawn(sum(sizes), width)
        mean = torch.cat([t.mean(1).flatten() for t in sides])  # [2L*K*D]
        spread = torch.cat([t.std((1, 2)).repeat_interleave(t.shape[2]) for t in sides])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("spread", spread, persistent=False)

    def forward(self) -> list[Tensor]:
        """All keys, then all values: 2L x [K, P, D]."""
        flat = torch.tanh(self.vectors @ self.inner.T) @ self.outer.T  # [P, 2L*K*D]
        flat = self.mean + self.spread * flat  # type: ignore[operator]
        parts = flat.split([heads * depth for heads, depth in self._shapes], dim=1)
        return [
            part.view(len(part), heads, depth).transpose(0, 1)
            for part, (heads, depth) in zip(parts, self._shapes, strict=True)
        ]
