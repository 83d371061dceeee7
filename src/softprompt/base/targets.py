"""What a model is to expect of a token: another reader's likeliest tokens, and all the rest as one.

It knows ids and probabilities; it does not know who expected them. Notation: M tokens, k likeliest, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["TopTokens"]

ROUNDING = 1e-6
"""What k probabilities in fp32 may lack to 1."""


@dataclass(frozen=True, eq=False)
class TopTokens:
    """For each of M tokens the k likeliest and their probabilities; what they lack to 1 is the rest's.

    Attributes:
        ids: ``[M, k]``, no id twice in a row.
        probabilities: ``[M, k]``, fp32.
    """

    ids: Tensor
    probabilities: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> TopTokens:
        return TopTokens(self.ids[part], self.probabilities[part])

    @property
    def rest(self) -> Tensor:
        """``[M]`` the probability of all other tokens together; a rounding alone counts as none."""
        left = 1 - self.probabilities.sum(1)
        return left.where(left > ROUNDING, 0.0)

    @property
    def entropy(self) -> Tensor:
        """``[M]`` nats, of the k tokens and the rest as one."""
        every = torch.cat([self.probabilities, self.rest[:, None]], 1)
        return -torch.xlogy(every, every).sum(1)

    def to(self, device: torch.device) -> TopTokens:
        """The same on another device."""
        return TopTokens(self.ids.to(device), self.probabilities.to(device))

    @classmethod
    def certain(cls, ids: Tensor) -> TopTokens:
        """Tokens ``[M]`` that are sure to come."""
        return cls(ids[:, None], torch.ones(len(ids), 1))

    @classmethod
    def of_logits(cls, logits: Tensor, k: int) -> TopTokens:
        """The likeliest by fp32 logits ``[M, V]``, likeliest first."""
        best = logits.topk(min(k, logits.shape[1]))
        return cls(best.indices, (best.values - logits.logsumexp(1, keepdim=True)).exp())

    @classmethod
    def joined(cls, parts: Sequence[TopTokens]) -> TopTokens:
        """All of them in order; one that names fewer tokens is filled up with impossible ones."""
        most = max(part.ids.shape[1] for part in parts)
        filled = [part if part.ids.shape[1] == most else part._filled(most) for part in parts]
        return cls(torch.cat([p.ids for p in filled]), torch.cat([p.probabilities for p in filled]))

    def _filled(self, k: int) -> TopTokens:
        """With tokens of no probability up to ``k``, none of which is there already."""
        there = self.ids.shape[1]
        free = torch.arange(k).expand(len(self), k)
        taken = (free[:, :, None] == self.ids[:, None]).any(2)  # [M, k]
        order = taken.to(torch.int8).argsort(dim=1, stable=True)[:, : k - there]
        more = functional.pad(self.probabilities, (0, k - there))
        return TopTokens(torch.cat([self.ids, free.gather(1, order)], 1), more)
