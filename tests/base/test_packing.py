"""Bins hold every row whole, evenly, with hardly a slot empty."""

from __future__ import annotations

import random

import pytest
import torch

from softprompt.base.packing import TokenRow, batches, pack


def rows(count: int, seed: int, longest: int = 60) -> list[TokenRow]:
    draw = random.Random(seed)
    return [
        TokenRow(tuple(draw.randrange(99) for _ in range(draw.randint(0, longest)))) for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("slot_cost", [0, 50, 1152])
def test_every_row_is_there_whole_and_alone(seed: int, slot_cost: int) -> None:
    batch = rows(1 + seed, seed)
    lead = 0 if slot_cost == 0 else seed % 7
    packed = pack(batch, lead=lead, slot_cost=slot_cost)
    flat_ids, flat_owners = packed.ids.flatten(), packed.owners.flatten()
    for number, row in enumerate(batch):
        place = slice(packed.starts[number], packed.starts[number] + len(row.ids))
        assert tuple(flat_ids[place].tolist()) == row.ids
        assert (flat_owners[place] == number).all()
        assert torch.equal(packed.positions.flatten()[place], torch.arange(len(row.ids)))
    used = sum(len(row.ids) for row in batch)
    assert int((flat_owners >= 0).sum()) == used
    assert (flat_owners[:lead] == -1).all()


def test_a_training_batch_leaves_few_slots_empty() -> None:
    draw = random.Random(0)
    shares = []
    for _ in range(50):
        batch = [TokenRow((1,) * draw.randint(8, 60)) for _ in range(16)]
        packed = pack(batch, lead=20)
        shares.append((20 + sum(len(r.ids) for r in batch)) / packed.ids.numel())
    assert sum(shares) / len(shares) > 0.95


def test_one_long_row_does_not_make_all_bins_long_for_nothing() -> None:
    batch = [TokenRow((1,) * 500), *[TokenRow((1,) * 20)] * 25]
    packed = pack(batch)
    assert packed.ids.shape == (2, 500)


def test_bins_are_as_wide_as_is_cheapest() -> None:
    batch = [TokenRow((1,) * 30)] * 40
    widths = [pack(batch, slot_cost=cost).ids.shape[1] for cost in (10, 1000, 10**9)]
    assert widths == [60, 150, 150]
    assert pack(batch, slot_cost=10**9).ids.numel() == 1200


def test_batches_bound_the_tokens_and_lose_no_row() -> None:
    batch = rows(40, 3)
    found = list(batches(batch, 100))
    assert sorted(i for numbers in found for i in numbers) == list(range(40))
    assert all(sum(len(batch[i].ids) for i in numbers) <= 100 for numbers in found)
    assert [len(n) for n in batches([TokenRow((1,) * 300)], 100)] == [1]
