"""Whether an answer is the right one: held token by token against a plain pass of transformers in fp32.

It knows embeddings, tokens and logits; it does not know who gave the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve_loads import Answer, Ask, Material

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True)
class Agreement:
    """How far answers are those of the reference.

    Attributes:
        checked: how many answers were looked at.
        same_answers: share of answers that are the reference's own greedy ones, every token.
        same_tokens: share of tokens that the reference would have chosen at that place, after the tokens
            before it in the same answer.
        worst_gap: by how many nats a chosen token was less likely than the reference's choice, at most.
    """

    checked: int
    same_answers: float
    same_tokens: float
    worst_gap: float


def agreement(
    model: Any, material: Material, asks: Sequence[Ask], answers: Sequence[Answer], most: int
) -> Agreement:
    """Hold up to ``most`` answers, spread over all, against ``model``, a plain one in fp32.

    An answer equal to the reference's at every place, each after its own tokens, is the reference's answer.
    """
    count = min(most, len(asks))
    some = [round(n * (len(asks) - 1) / max(count - 1, 1)) for n in range(count)]
    gaps = [_gaps(model, material, asks[n], answers[n]) for n in some]  # [T] each
    every = torch.cat(gaps)
    return Agreement(
        checked=len(some),
        same_answers=sum(bool((own == 0).all()) for own in gaps) / len(gaps),
        same_tokens=float((every == 0).float().mean()),
        worst_gap=float(every.max()),
    )


@torch.no_grad()
def _gaps(model: Any, material: Material, ask: Ask, answer: Answer) -> Tensor:
    """What each token of one answer lacks to the likeliest, in nats; [T]."""
    ids = torch.tensor([*ask.ids, *answer[:-1]], device=model.device)
    embedded = torch.cat([material.prompts[ask.prompt].to(model.device), model.get_input_embeddings()(ids)])
    logits = model(inputs_embeds=embedded[None], logits_to_keep=len(answer)).logits[0].float()  # [T, V]
    own = logits.gather(1, torch.tensor(answer, device=logits.device)[:, None])[:, 0]
    allowed = logits[:, list(material.labels)] if material.load.classifies else logits
    gaps: Tensor = (allowed.amax(1) - own).cpu()
    return gaps
