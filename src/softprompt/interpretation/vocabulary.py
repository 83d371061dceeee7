"""The words of a base as points: their embeddings, centre, spread, principal axes, and how each is printed.

It knows a base's embedding table and tokenizer; it does not know prompts, rows or scores. Notation: V words,
E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from softprompt.base.model import Base

__all__ = ["Axes", "Vocabulary", "Word"]

_CELLS = 8_000_000  # the most (vector, word) pairs, or numbers of words, held at once: 32 MB


@dataclass(frozen=True)
class Word:
    """A token and its text, control characters escaped; what alone is no text has the tokenizer's name."""

    id: int
    text: str


class Axes(NamedTuple):
    """Principal axes, widest first: ``directions`` ``[E, E]``, a row each, and ``variances`` ``[E]``."""

    directions: Tensor
    variances: Tensor


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Every word a base's tokenizer can write, special tokens included.

    Attributes:
        base: whose words they are.
        table: ``[V, E]`` embeddings as the first layer receives them, in the base's number format. Rows
            that a table has beyond its tokenizer stand for nothing and are left out.
    """

    base: Base
    table: Tensor

    @classmethod
    def of(cls, base: Base) -> Vocabulary:
        """The vocabulary of a base."""
        size = min(len(base.tokenizer), base.embedding.weight.shape[0])
        return cls(base, base.embed(range(size)))

    def __len__(self) -> int:
        return self.table.shape[0]

    def word(self, token: int) -> Word:
        """A token with its text."""
        text = self.base.tokenizer.decode([token], skip_special_tokens=False)
        if not text or "\N{REPLACEMENT CHARACTER}" in text:
            text = str(self.base.tokenizer.convert_ids_to_tokens(token))
        return Word(token, "".join(c if c.isprintable() else repr(c)[1:-1] for c in text))

    def vectors(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids of any shape ``[...]``, as they are: fp32 ``[..., E]``."""
        return self.table[ids].float()

    def centred(self, vectors: Tensor) -> Tensor:
        """Vectors ``[..., E]`` less the mean word, fp32 on the base's device.

        All words share one large component, which makes any two look alike (Mu and Viswanath 2018,
        "All-but-the-Top").
        """
        return vectors.to(self.table.device, torch.float32) - self.centre

    def parts(self, vectors: int = 0) -> Iterator[tuple[int, Tensor]]:
        """The centred words ``[c, E]`` a bounded number at a time, each part with the id of its first word.

        Args:
            vectors: how many vectors each part is to be held against.
        """
        size = max(64, _CELLS // max(vectors, self.table.shape[1]))
        for first in range(0, len(self), size):
            yield first, self.centred(self.table[first : first + size])

    @cached_property
    def ordinary(self) -> Tensor:
        """``[V]`` true for words that are not special tokens."""
        marks = torch.ones(len(self), dtype=torch.bool, device=self.table.device)
        marks[[i for i in self.base.tokenizer.all_special_ids if i < len(self)]] = False
        return marks

    @cached_property
    def centre(self) -> Tensor:
        """``[E]`` the mean word, fp32."""
        return self.table.mean(0, dtype=torch.float64).float()

    @cached_property
    def norms(self) -> Tensor:
        """``[V]`` Euclidean norms of the words as they are, not centred, fp32."""
        return torch.cat([part.float().norm(dim=1) for part in self.table.split(8192)])

    @cached_property
    def spread(self) -> float:
        """Root mean squared distance of a word from the mean word."""
        return float(self.axes.variances.sum().sqrt())

    @cached_property
    def axes(self) -> Axes:
        """Principal axes of the centred words; the greatest coordinate of each is positive."""
        products = torch.zeros(self.table.shape[1], self.table.shape[1], dtype=torch.float64)
        for _, part in self.parts():
            products += (part.T @ part).double().cpu()
        variances, columns = torch.linalg.eigh(products / len(self))
        directions = columns.T.flip(0)
        places = directions.abs().argmax(1, keepdim=True)
        directions = directions * directions.gather(1, places).sign()
        return Axes(
            directions.float().to(self.table.device), variances.flip(0).clamp(min=0).to(self.table.device)
        )
