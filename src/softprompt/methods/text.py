"""Prompt engineering: an instruction, demonstrations or nothing in front. Nothing trains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from softprompt.base.model import Base
from softprompt.errors import ConfigError
from softprompt.methods.front import FrontPart, Soft, Words

__all__ = ["TextFront", "held", "word_ids"]


def word_ids(base: Base, parts: Sequence[Words | Soft]) -> list[int]:
    """Token ids of a front of words only, behind what the tokenizer sets first."""
    text = []
    for part in parts:
        if isinstance(part, Soft):
            raise ConfigError(
                'method.front has "{soft:N}", and only prompt tuning learns soft tokens; '
                'take it out, or use method.kind = "prompt-tuning".'
            )
        text.append(part.text)
    return base.opening("".join(text))


def held(base: Base, parts: Sequence[FrontPart]) -> list[int | None]:
    """What each position of a front holds: the id of a word's token, or None for what is learnt."""
    lead = parts[0].text if parts and isinstance(parts[0], Words) else ""
    ids: list[int | None] = [*base.opening(lead)]
    for part in parts[1:] if lead else parts:
        ids += base.encode(part.text) if isinstance(part, Words) else [None] * part.count
    return ids


class TextFront:
    """A front of plain words, behind what the tokenizer sets first."""

    def __init__(self, base: Base, parts: Sequence[Words | Soft]) -> None:
        self._base = base
        self._front = base.embed(word_ids(base, parts)).float()  # [P, E]

    @property
    def base(self) -> Base:
        return self._base

    def front(self) -> Tensor:
        """The front as embeddings, fp32 ``[P, E]``."""
        return self._front

    def change(self) -> None:
        return None

    def trainable_parameters(self) -> list[nn.Parameter]:
        return []

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        assert not state
