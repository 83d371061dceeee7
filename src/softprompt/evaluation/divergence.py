"""How far what a front makes a model expect is from what a teacher expected, token by token.

It knows rows that carry their teacher's likeliest tokens; it does not know who the teacher was. Notation: S
fronts, B rows, M scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.base.head import CHUNK
from softprompt.base.model import Base, Batch
from softprompt.base.packing import TokenRow, batches
from softprompt.base.targets import TopTokens
from softprompt.evaluation.intervals import Sampled, resampled
from softprompt.prefix import Front, Prefix

__all__ = ["Divergence", "divergence", "expectations", "kept_share"]

BATCH_TOKENS = 1024
"""Text tokens read in one pass; bounds memory, changes no score."""


@dataclass(frozen=True)
class Divergence:
    """Of one front, row by row.

    Attributes:
        nats: KL(teacher || front) summed over a row's scored tokens.
        tokens: how many those are.
        agreed: at how many of them both find the same token likeliest.
    """

    nats: tuple[float, ...]
    tokens: tuple[float, ...]
    agreed: tuple[float, ...]

    @property
    def per_token(self) -> float:
        """Mean nats a token."""
        return sum(self.nats) / sum(self.tokens)


@torch.no_grad()
def divergence(
    base: Base,
    fronts: Sequence[Front],
    rows: Sequence[TokenRow],
    progress: Callable[[int, int], None] | None = None,
) -> list[Divergence]:
    """How far each of several fronts is from the rows' teacher, all read in the same passes."""
    prefixes = [base.prefill(front) for front in fronts]
    nats = torch.zeros(len(fronts), len(rows))
    agreed = torch.zeros(len(fronts), len(rows))
    done = 0
    for numbers in batches(rows, BATCH_TOKENS // len(fronts)):
        part = [rows[number] for number in numbers]
        hidden = _at_scored(base, part, prefixes)  # [S * M, E]
        top = _teachers(part).to(base.device)
        for front, states in enumerate(hidden.chunk(len(fronts))):
            kl = base.head.divergence(states, top).cpu()
            best = torch.cat([base.head.logits(h).argmax(1) for h in states.split(CHUNK)])
            same = (best == top.ids[:, 0]).float().cpu()
            sizes = [row.scored for row in part]
            nats[front, numbers] = torch.stack([t.sum() for t in kl.split(sizes)])
            agreed[front, numbers] = torch.stack([t.sum() for t in same.split(sizes)])
        done += len(part)
        if progress is not None:
            progress(done, len(rows))
    tokens = tuple(float(row.scored) for row in rows)
    return [
        Divergence(tuple(kl), tokens, tuple(same))
        for kl, same in zip(nats.tolist(), agreed.tolist(), strict=True)
    ]


@torch.no_grad()
def expectations(base: Base, front: Front, rows: Sequence[TokenRow], k: int) -> list[TopTokens]:
    """What a model behind a front expects at the scored tokens of every row, the k likeliest of them."""
    prefix = base.prefill(front)
    found: dict[int, TopTokens] = {}
    for numbers in batches(rows, BATCH_TOKENS):
        part = [rows[number] for number in numbers]
        hidden = _at_scored(base, part, [prefix])
        top = [TopTokens.of_logits(base.head.logits(h), k) for h in hidden.split(CHUNK)]
        whole, at = TopTokens.joined(top).to(torch.device("cpu")), 0
        for number, row in zip(numbers, part, strict=True):
            found[number] = whole[at : at + row.scored]
            at += row.scored
    return [found[number] for number in range(len(rows))]


def kept_share(student: Divergence, bare: Divergence, *, seed: int = 0) -> Sampled:
    """The share of the bare base's divergence that is gone: 1 - KL(teacher, student) / KL(teacher, bare)."""
    pairs = torch.tensor([student.nats, bare.nats], dtype=torch.float64).T  # [B, 2]
    return resampled(pairs, lambda sums: 1 - sums[:, 0] / sums[:, 1].clamp(min=1e-12), seed=seed)


def _at_scored(base: Base, rows: Sequence[TokenRow], prefixes: Sequence[Prefix]) -> Tensor:
    """Hidden states [S * M, E] that expect the scored tokens of rows, behind each of S prefixes."""
    wanted = [(number, t - 1) for number, row in enumerate(rows) for t in row.targets]
    return base.hidden([Batch(rows, prefix) for prefix in prefixes], [wanted] * len(prefixes))


def _teachers(rows: Sequence[TokenRow]) -> TopTokens:
    return TopTokens.joined([row.teacher for row in rows if row.teacher is not None])
