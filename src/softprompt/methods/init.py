"""Where a soft prompt starts: vectors ``[n, E]`` on the scale of the base's own embeddings.

Initialisation decides as much as the method: vectors of N(0, 1) lie far outside a real embedding
table and train badly, so none of these draws them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.base.model import Base
from softprompt.errors import ConfigError

__all__ = ["from_labels", "from_random", "from_text", "from_vocabulary", "spread"]

COMMON = 5000
"""Sampled words come from the lowest ids, the most frequent in a BPE vocabulary (Lester et al. 2021)."""


def from_text(base: Base, text: str, count: int) -> Tensor:
    """The embeddings of a text, repeated or cut to ``count`` vectors."""
    special = set(base.tokenizer.all_special_ids)
    ids = [i for i in base.encode(text) if i not in special]
    if not ids:
        raise ConfigError("method.init_text has no tokens to start from; give it at least one word.")
    return base.embed((ids * (count // len(ids) + 1))[:count]).float()


def from_labels(base: Base, words: Sequence[str], count: int, seed: int) -> Tensor:
    """One vector a label word (the mean of its tokens), the rest sampled from the vocabulary.

    Class-label initialisation of Lester et al. 2021, "The Power of Scale".
    """
    means = [base.embed(base.encode(word)).float().mean(0) for word in words[:count]]
    rest = from_vocabulary(base, count - len(means), seed)
    return torch.cat([torch.stack(means), rest]) if means else rest


def from_vocabulary(base: Base, count: int, seed: int) -> Tensor:
    """The embeddings of ``count`` different frequent words, drawn by ``seed``."""
    special = set(base.tokenizer.all_special_ids)
    size = min(len(base.tokenizer), base.embedding.weight.shape[0])
    words = torch.tensor([i for i in range(min(size, COMMON + len(special))) if i not in special])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(words), generator=generator).repeat(count // len(words) + 1)
    return base.embed(words[order[:count]].tolist()).float()


def from_random(base: Base, count: int, seed: int) -> Tensor:
    """Normal vectors with the mean and spread the embedding table has in each dimension."""
    sample = _sample(base)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, base.width, generator=generator).to(base.device)
    return sample.mean(0) + noise * sample.std(0)


def spread(base: Base) -> Tensor:
    """The standard deviation of the numbers in the embedding table, a scalar."""
    return _sample(base).std()


def _sample(base: Base) -> Tensor:
    """Some thousands of embeddings from all over the table, ``[n, E]``."""
    words = base.embedding.weight.shape[0]
    return base.embed(list(range(0, words, max(1, words // COMMON)))).float()
