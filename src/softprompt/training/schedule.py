"""Which rows make which step, and how fast each step learns: pure functions of the step number."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Steps", "rate"]

MOST_EPOCHS = 16
"""So often few rows are seen for the sake of a number of steps."""


@dataclass(frozen=True)
class Steps:
    """All steps of a run over ``rows`` rows.

    The order of an epoch depends on ``(seed, epoch)`` alone, so a resumed run needs no state to
    go on with the very rows it would have seen.
    """

    rows: int
    batch_size: int
    epochs: int
    seed: int
    max_steps: int | None = None
    min_steps: int | None = None

    @property
    def per_epoch(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    @property
    def total(self) -> int:
        every = self.per_epoch * self.epochs
        if every:
            every = max(every, min(self.min_steps or 0, self.per_epoch * MOST_EPOCHS))
        return every if self.max_steps is None else min(every, self.max_steps)

    def batch(self, step: int) -> list[int]:
        """The row numbers of a step, counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        order = _order(self.rows, self.seed, epoch)
        return list(order[place * self.batch_size : (place + 1) * self.batch_size])


@lru_cache(maxsize=64)
def _order(rows: int, seed: int, epoch: int) -> Sequence[int]:
    """The rows of an epoch, shuffled; kept, for every step of the epoch asks for it."""
    order = list(range(rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def rate(kind: str, step: int, total: int, warmup: float) -> float:
    """The learning rate of a step as a share of its peak: a linear rise, then ``kind``'s fall."""
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if kind == "constant":
        return 1.0
    done = (step - rising) / max(1, total - rising)
    return 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
