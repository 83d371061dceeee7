"""The arithmetic of a paged cache, against gathers written out."""

from __future__ import annotations

import random

import pytest
import torch

from softprompt.vllm.slots import heads_of, is_placed, layer_number, placeholders, slots


@pytest.mark.parametrize("block_size", [1, 16, 32, 48])
@pytest.mark.parametrize("positions", [1, 15, 16, 17, 37, 100])
def test_a_prompt_loaded_in_parts_is_read_back_whole(block_size: int, positions: int) -> None:
    draw = random.Random(positions)
    blocks = draw.sample(range(500), positions // block_size + 1)
    values = torch.randn(positions, 2, 4)  # [P, K, D]
    cache = torch.full((500, block_size, 2, 4), torch.nan)
    cached = positions // 2 // block_size * block_size  # what another request left is whole blocks
    for first, last in ((0, cached), (cached, positions)):
        cache.view(-1, 2, 4)[slots(first, last, blocks, block_size)] = values[first:last]
    read = torch.stack([cache[blocks[i // block_size], i % block_size] for i in range(positions)])
    assert torch.equal(read, values)
    assert int(cache.isfinite().any(-1).any(-1).sum()) == positions  # and nothing beside it


def test_after_a_preemption_it_lies_in_other_blocks() -> None:
    before, after = slots(0, 5, [7, 3], 4), slots(0, 5, [1, 9], 4)
    assert before.tolist() == [28, 29, 30, 31, 12]
    assert after.tolist() == [4, 5, 6, 7, 36]


def test_nothing_to_load_has_no_slots() -> None:
    assert slots(32, 32, [4], 32).shape == (0,)


@pytest.mark.parametrize(("heads", "ranks"), [(8, 1), (8, 2), (8, 8), (3, 3), (2, 8), (1, 4)])
def test_ranks_hold_all_heads_between_them(heads: int, ranks: int) -> None:
    held = [heads_of(rank, ranks, heads) for rank in range(ranks)]
    assert len({len(some) for some in held}) == 1
    each = max(1, ranks // heads)
    flat = [head for some in held for head in some]
    assert flat == sorted(head for head in range(heads) for _ in range(each))


def test_heads_that_do_not_divide_are_no_split() -> None:
    with pytest.raises(AssertionError):
        heads_of(0, 2, 3)


def test_a_layer_is_named_by_its_number() -> None:
    assert layer_number("model.layers.7.self_attn.attn") == 7
    assert layer_number("transformer.h.11.attn") == 11
    for name in ("model.embed", "model.layers.1.experts.2.attn", "model.h2.attn"):
        with pytest.raises(ValueError, match="which layer"):
            layer_number(name)


@pytest.mark.parametrize("positions", [0, 1, 20])
def test_placeholders_are_told_from_a_text(positions: int) -> None:
    ids = placeholders(positions, (5, 9, 9, 2))
    assert ids == [5] * positions + [5, 9, 9, 2]
    assert is_placed(positions, ids)
    if positions:
        assert not is_placed(positions, ids[1:])
        assert not is_placed(positions, [6, *ids[1:]])
    assert not is_placed(positions, ids[:positions])
