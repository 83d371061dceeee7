"""Bins hold every row whole, evenly, with hardly a slot empty."""

from __future__ import annotations

import random

import pytest
import torch

from softprompt.base.packing import Group, TokenRow, batches, pack, split


def rows(count: int, seed: int, longest: int = 60) -> list[TokenRow]:
    draw = random.Random(seed)
    return [
        TokenRow(tuple(draw.randrange(99) for _ in range(draw.randint(0, longest)))) for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("slot_cost", [0, 50, 1152])
def test_every_row_is_there_whole_and_alone(seed: int, slot_cost: int) -> None:
    lead = 0 if slot_cost == 0 else seed % 7
    groups = [Group(rows(1 + seed, seed), lead, True), Group(rows(seed % 5, seed + 50), 9)]
    groups += [Group(rows(3, seed + 99), 2 * lead, True)]
    packed = pack(groups, slot_cost=slot_cost)
    flat_ids, flat_owners = packed.ids.flatten(), packed.owners.flatten()
    places = packed.positions.flatten()
    number = 0
    for group, starts in zip(groups, packed.starts, strict=True):
        for row, start in zip(group.rows, starts, strict=True):
            place = slice(start, start + len(row.ids))
            assert tuple(flat_ids[place].tolist()) == row.ids
            assert (flat_owners[place] == number).all()
            assert torch.equal(places[place], group.before + torch.arange(len(row.ids)))
            number += 1
    used = sum(len(row.ids) for group in groups for row in group.rows)
    assert int((flat_owners >= 0).sum()) == used


@pytest.mark.parametrize("seed", range(20))
def test_a_bin_holds_one_group_only_and_its_front_comes_first(seed: int) -> None:
    groups = [Group(rows(1 + (seed + i) % 9, i), 1 + 3 * i, inline=i != 1) for i in range(4)]
    packed = pack(groups)
    owner_of = [n for n, group in enumerate(groups) for _ in group.rows]
    for owners, of, before in zip(packed.owners, packed.of, packed.before, strict=True):
        assert {owner_of[int(o)] for o in owners if o >= 0} <= {int(of)}
        assert int(before) == groups[int(of)].before
    for number, group in enumerate(groups):
        head = slice(packed.heads[number], packed.heads[number] + group.lead)
        assert (packed.owners.flatten()[head] == -1).all()
        assert torch.equal(packed.positions.flatten()[head], torch.arange(group.lead))
        assert int(packed.of[packed.firsts[number]]) == number


def test_a_training_batch_leaves_few_slots_empty() -> None:
    draw = random.Random(0)
    shares = []
    for _ in range(50):
        batch = [TokenRow((1,) * draw.randint(8, 60)) for _ in range(16)]
        packed = pack([Group(batch, 20, inline=True)])
        shares.append((20 + sum(len(r.ids) for r in batch)) / packed.ids.numel())
    assert sum(shares) / len(shares) > 0.95


def test_one_long_row_does_not_make_all_bins_long_for_nothing() -> None:
    batch = [TokenRow((1,) * 500), *[TokenRow((1,) * 20)] * 25]
    packed = pack([Group(batch)])
    assert packed.ids.shape == (2, 500)


def test_bins_are_as_wide_as_is_cheapest() -> None:
    batch = [TokenRow((1,) * 30)] * 40
    widths = [pack([Group(batch)], slot_cost=cost).ids.shape[1] for cost in (10, 1000, 10**9)]
    assert widths == [60, 150, 150]
    assert pack([Group(batch)], slot_cost=10**9).ids.numel() == 1200


def test_a_long_front_makes_every_slot_dearer() -> None:
    """Each slot is held against the front's keys, too: the longer it is, the less an empty slot is worth."""
    batch = [TokenRow((1,) * 30)] * 40
    short, long = (pack([Group(batch, before)], slot_cost=10).ids.shape for before in (0, 1000))
    assert (short, long) == ((25, 60), (8, 150))
    for chosen, other, before in ((short, long, 0), (long, short, 1000)):
        cost, others = (bins * width * (10 + before + width) for bins, width in (chosen, other))
        assert cost < others
    both = pack([Group(batch, 0), Group(batch[:1], 1000)], slot_cost=10)  # the longest one's mask
    assert both.width == 150


@pytest.mark.parametrize("seed", range(10))
def test_keys_of_a_row_follow_a_copy_of_its_fronts(seed: int) -> None:
    groups = [Group(rows(1 + seed, seed), 3, True), Group(rows(seed % 5, seed + 50), 9)]
    groups += [Group(rows(3, seed + 99), 2, True), Group(rows(2, seed), 4)]
    packed = pack(groups, repeats=True)
    keys, slots = packed.keys, packed.ids.numel()
    assert keys is not None
    # Flat slots, then the positions of the two finished fronts of 9 and 4.
    fronts = [[*range(packed.heads[0], packed.heads[0] + 3)], [*range(slots, slots + 9)]]
    fronts += [[*range(packed.heads[2], packed.heads[2] + 2)], [*range(slots + 9, slots + 13)]]
    number = 0
    for group, front, starts in zip(groups, fronts, packed.starts, strict=True):
        for row, start in zip(group.rows, starts, strict=True):
            here = start // packed.width
            (at,) = torch.nonzero(keys.owners[here] == number, as_tuple=True)
            assert keys.sources[here, at].tolist() == [*front, *range(start, start + len(row.ids))]
            assert keys.positions[here, at].tolist() == list(range(len(at)))
            assert torch.equal(at, at[0] + torch.arange(len(at)))
            assert int(keys.counting[here, at[0] : at[-1] + 2].sum()) == 0
            number += 1
    # What nobody sees is of the own bin, so not even a NaN comes from another group.
    unseen = keys.sources[keys.owners == -1] // packed.width
    assert torch.equal(unseen, torch.nonzero(keys.owners == -1)[:, 0])


def test_copies_of_a_long_front_are_not_made_for_a_few_empty_slots() -> None:
    batch = [TokenRow((1,) * length) for length in (20, 24, 22, 21)]
    shared, alone = (pack([Group(batch, before)], slot_cost=1024, repeats=True) for before in (4, 2000))
    assert (len(shared.ids), len(alone.ids)) == (2, 4)
    bounded = pack([Group(batch, 4)], slot_cost=10**6, repeats=True, most_keys=30)
    assert len(bounded.ids) == 4
    assert bounded.keys is not None
    assert bounded.keys.width == 29


def test_batches_bound_the_tokens_and_lose_no_row() -> None:
    batch = rows(40, 3)
    found = list(batches(batch, 100))
    assert sorted(i for numbers in found for i in numbers) == list(range(40))
    assert all(sum(len(batch[i].ids) for i in numbers) <= 100 for numbers in found)
    assert [len(n) for n in batches([TokenRow((1,) * 300)], 100)] == [1]


def test_a_split_keeps_the_order_and_a_size_too_large_stands_alone() -> None:
    assert list(split([4, 4, 4, 20, 1, 9, 1], 10)) == [[0, 1], [2], [3], [4, 5], [6]]
    assert list(split([], 10)) == []
