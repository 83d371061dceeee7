"""What the sides of ``serve.py`` are asked: soft prompts, texts and label words, all drawn by seed.

It knows tokens and embeddings; it does not know who answers, or how fast.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompt.base.model import Base

__all__ = ["LOADS", "PROMPTS", "Answer", "Ask", "Load", "Material"]

PROMPTS = 32
"""How many soft prompts are in use at once."""

LABELS = (" business", " entertainment", " politics", " sports", " tech")
NOISE = 0.1
"""How far a virtual token lies from the word it was taken from, in standard deviations of the embeddings."""

Answer = tuple[int, ...]
"""The tokens of an answer; one of the labels where a text is classified."""


@dataclass(frozen=True)
class Load:
    """One kind of request.

    Attributes:
        virtual: virtual tokens of every prompt.
        shortest, longest: tokens of a text.
        new_tokens: tokens of an answer, the end token ignored; 1 classifies the text by its labels.
    """

    name: str
    virtual: int
    shortest: int
    longest: int
    new_tokens: int

    @property
    def classifies(self) -> bool:
        return self.new_tokens == 1


LOADS = {
    load.name: load
    for load in (
        Load("classify-20", 20, 20, 50, 1),
        Load("classify-100", 100, 20, 50, 1),
        Load("generate", 20, 34, 34, 64),
    )
}


@dataclass(frozen=True)
class Ask:
    """One request: which prompt, and the tokens of the text behind it."""

    prompt: int
    ids: tuple[int, ...]


class Material:
    """Prompts and texts for one load, the same for every side.

    Attributes:
        load: what they are for.
        prompts: ``[P, E]`` each, fp32, of the base's own numbers.
        labels: the last token of every label word, in SmolLM2 the only one.
    """

    def __init__(self, base: Base, load: Load, texts: Sequence[str], prompts: int = PROMPTS) -> None:
        """texts: what is cut into pieces of the wanted length."""
        self.load = load
        self._stream = base.encode("\n".join(texts))
        self.labels = tuple(dict.fromkeys(base.encode(word)[-1] for word in LABELS))
        spread = base.embedding.weight.float().std()
        self.prompts = [self._prompt(base, number, spread) for number in range(prompts)]

    def asks(self, count: int, seed: int | str, prompts: int | None = None) -> list[Ask]:
        """Requests that name the first ``prompts`` prompts in turn, all of them by default."""
        draw = random.Random(seed)
        names = prompts or len(self.prompts)
        lengths = [draw.randint(self.load.shortest, self.load.longest) for _ in range(count)]
        return [
            Ask(number % names, tuple(self._piece(draw, length))) for number, length in enumerate(lengths)
        ]

    def likeliest_label(self, logits: Any) -> Answer:
        """What logits [V], or log-likelihoods of the labels [C], say about a text."""
        shares = logits if len(logits) == len(self.labels) else logits[list(self.labels)]
        return (self.labels[int(torch.as_tensor(shares).argmax())],)

    def _prompt(self, base: Base, seed: int, spread: Tensor) -> Tensor:
        words = base.embed(self._piece(random.Random(f"prompt {seed}"), self.load.virtual))
        noise = torch.randn(words.shape, generator=torch.Generator().manual_seed(seed))
        moved = words.float() + NOISE * spread * noise.to(words.device)
        return moved.to(base.dtype).float()

    def _piece(self, draw: random.Random, length: int) -> list[int]:
        start = draw.randrange(len(self._stream) - length)
        return self._stream[start : start + length]
