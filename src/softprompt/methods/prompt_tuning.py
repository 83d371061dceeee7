"""Prompt tuning (Lester et al. 2021): P learnt vectors among the words in front of a frozen model.

It knows where its vectors stand and what trains; it does not know rows, losses or optimizers.

What is learnt is the way from the start, in units of the spread of the model's own embeddings: those of one
model may be a hundred times as large as another's, and one learning rate has to suit them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from softprompt.base.model import Base
from softprompt.errors import ConfigError
from softprompt.methods.front import Soft, Words
from softprompt.methods.init import spread
from softprompt.methods.reparametrisation import PromptEncoder, Residual
from softprompt.methods.text import held

__all__ = ["PromptTuning"]

_LEAST = 1e-6
"""The unit of a model whose embeddings are all alike."""


class PromptTuning:
    """A front of fixed words and learnt vectors.

    Args:
        base: the frozen model.
        parts: words and soft runs, in order, with at least one soft run.
        start: ``[n, E]`` the vectors of all soft runs, in order, to start from.
        reparametrisation: what the vectors pass through while they are learnt, if anything.
    """

    def __init__(
        self,
        base: Base,
        parts: Sequence[Words | Soft],
        start: Tensor,
        reparametrisation: Residual | PromptEncoder | None = None,
    ) -> None:
        counts = [part.count for part in parts if isinstance(part, Soft)]
        if not counts:
            raise ConfigError('method.front has no "{soft:N}", so there is nothing to learn; add one.')
        assert start.shape == (sum(counts), base.width)
        self._base, self._network = base, reparametrisation
        network = dict(reparametrisation.named_parameters()) if reparametrisation else {}
        starts = {"soft": start, **{f"network.{name}": tensor for name, tensor in network.items()}}
        self._starts = {
            name: t.detach().to(base.device, torch.float32, copy=True) for name, t in starts.items()
        }
        self._unit = spread(base).clamp_min(_LEAST)
        self._ways = {name: nn.Parameter(torch.zeros_like(t)) for name, t in self._starts.items()}
        ids = held(base, parts)
        self._fixed = base.embed([token or 0 for token in ids]).float()  # [P, E]
        places = [place for place, token in enumerate(ids) if token is None]
        self._places = torch.tensor(places, device=base.device)  # [n] those of the learnt vectors

    @property
    def base(self) -> Base:
        return self._base

    def front(self) -> Tensor:
        """The whole front as embeddings, fp32 ``[P, E]``: words where words stand, vectors between."""
        learnt = {name: start + self._unit * self._ways[name] for name, start in self._starts.items()}
        soft = learnt.pop("soft")  # [n, E]
        if self._network is not None:
            named = {name.removeprefix("network."): tensor for name, tensor in learnt.items()}
            soft = functional_call(self._network, named, (soft,))
        return self._fixed.index_copy(0, self._places, soft)

    def change(self) -> None:
        return None

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self._ways.values())

    def state(self) -> dict[str, Tensor]:
        starts = {f"start.{name}": tensor for name, tensor in self._starts.items()}
        return starts | {f"way.{name}": way.detach() for name, way in self._ways.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, way in self._ways.items():
                self._starts[name].copy_(state[f"start.{name}"])
                way.copy_(state[f"way.{name}"])
