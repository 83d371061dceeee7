"""Where a prompt's keys and values go in a paged KV cache, and which of them: plain arithmetic, no vLLM."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["heads_of", "is_placed", "layer_number", "placeholders", "slots"]


def placeholders(positions: int, ids: Sequence[int]) -> list[int]:
    """The token ids vLLM is sent for a text behind P positions: P copies of its first token, then the text.

    The copies are never read, since their keys and values are loaded. They repeat a token that is in the text
    anyway, so that a penalty for tokens of the text sees the same ones.
    """
    return [*([ids[0]] * positions), *ids]


def is_placed(positions: int, ids: Sequence[int]) -> bool:
    """Whether ids may be those of a text behind P positions, as ``placeholders`` makes them."""
    return len(ids) > positions and len(set(ids[: positions + 1])) == 1


def slots(first: int, last: int, blocks: Sequence[int], block_size: int) -> Tensor:
    """The places ``[last - first]`` of positions in the cache, counted over all its blocks.

    Args:
        first: of the positions.
        last: behind the last of them.
        blocks: the sequence's blocks, in order.
        block_size: positions of a block.
    """
    where = torch.arange(first, last)
    return torch.tensor(list(blocks), dtype=torch.long)[where // block_size] * block_size + where % block_size


def heads_of(rank: int, ranks: int, heads: int) -> range:
    """Which of a layer's key/value heads one of several tensor-parallel processes holds.

    Where there are more processes than heads, neighbours hold the same one.
    """
    if heads >= ranks:
        assert heads % ranks == 0, f"{heads} heads over {ranks} processes"
        each = heads // ranks
        return range(rank * each, (rank + 1) * each)
    assert ranks % heads == 0, f"{heads} heads over {ranks} processes"
    one = rank // (ranks // heads)
    return range(one, one + 1)


def layer_number(name: str) -> int:
    """The number in a layer's full name, as 7 in ``model.layers.7.self_attn.attn``; ValueError if none."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    if len(numbers) != 1:
        raise ValueError(f"{name!r} holds {len(numbers)} numbers, so it does not say which layer it is")
    return int(numbers[0])
