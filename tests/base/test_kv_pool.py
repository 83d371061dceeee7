"""Rows in pool see what they would see alone, whatever is opened, closed, grown and moved around them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from softprompt.base.copies import twin
from softprompt.base.kv_pool import SHORTEST, Chunk, KVMemory, KVPool, KVSlot
from softprompt.base.layout import PACKED
from softprompt.base.model import Base
from softprompt.errors import WrongBaseError
from softprompt.prefix import Prefix

KINDS = ("llama", "bloom", "gemma3", *tiny.WITH_STATES)
"""One row without padding; masks of the model's own; windows; states."""


class Row:
    """A row of random tokens behind a front, and what the plain model says after each of them."""

    def __init__(self, base: Base, seed: int, front: int, length: int) -> None:
        draw = random.Random(seed)
        self.base = base
        self.ids = [draw.randrange(4, tiny.VOCABULARY) for _ in range(front + length)]
        self.front, self.read = front, front
        with torch.no_grad():
            self.prefix = base.prefill(base.embed(self.ids[:front]))
            plain = tiny.model(base.config.model_type.removesuffix("_text").replace("_", "-"))
            self.wanted = plain(input_ids=torch.tensor([self.ids])).logits[0]  # [front + T, V]

    def next(self, count: int) -> list[int]:
        ids = self.ids[self.read : self.read + count]
        self.read += len(ids)
        return ids

    @property
    def left(self) -> int:
        return len(self.ids) - self.read

    def check(self, hidden: Tensor) -> None:
        """Hold the states [T, E] after the last T tokens read against the plain model."""
        wanted = self.wanted[self.read - len(hidden) : self.read]
        assert torch.allclose(self.base.head.logits(hidden), wanted, atol=1e-3, rtol=1e-3)


def opened(pool: KVPool, row: Row, need: int | None = None) -> KVSlot:
    slot = pool.open(row.prefix, need or len(row.ids))
    assert slot is not None
    return slot


@torch.no_grad()
def read(pool: KVPool, rows: Sequence[Row], places: Sequence[KVSlot], counts: Sequence[int]) -> None:
    """Read the next tokens of some rows, and check what follows each."""
    found = pool.read([Chunk(place, row.next(n)) for row, place, n in zip(rows, places, counts, strict=True)])
    for row, hidden in zip(rows, found, strict=True):
        row.check(hidden)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("tokens", [31, 32, 33, 47, 48, 49])
def test_what_a_pass_is_filled_up_with_reaches_no_row(architecture: str, tokens: int) -> None:
    base = tiny.base(architecture)
    rows = [Row(base, 1, 3, tokens - 1), Row(base, 2, 0, 4), Row(base, 3, 5, 3)]
    pool = KVPool(base)
    places = [opened(pool, row) for row in rows]
    read(pool, rows, places, [1, 3, 2])
    read(pool, rows, places, [row.left for row in rows])
    assert pool.used == sum(len(row.ids) for row in rows)


@pytest.mark.parametrize(("tokens", "width"), [(31, 31), (32, 32), (33, 48), (47, 48), (48, 48), (49, 64)])
def test_a_pass_of_more_than_32_tokens_is_filled_up_to_a_multiple_of_16(tokens: int, width: int) -> None:
    """Matrix libraries keep code and memory for every number of rows they ever met."""
    base, widths = tiny.base(), list[int]()
    row = Row(base, 1, 3, tokens)
    pool = KVPool(base)
    place = opened(pool, row)
    layer = base.model.model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    try:
        read(pool, [row], [place], [tokens])
    finally:
        handle.remove()
    assert widths == [width]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_texts_in_pieces_are_read_as_the_plain_model_reads_them(architecture: str) -> None:
    base, draw = tiny.base(architecture), random.Random(1)
    rows = [Row(base, seed, front, 4 + 9 * seed) for seed, front in enumerate((0, 3, 9, 1, 17, 5))]
    pool = KVPool(base)
    places = [opened(pool, row) for row in rows]
    while any(row.left for row in rows):
        some = [n for n, row in enumerate(rows) if row.left and draw.random() < 0.8]
        draw.shuffle(some)
        counts = [draw.choice((1, 1, 2, 7)) for _ in some]
        if some:
            read(pool, [rows[n] for n in some], [places[n] for n in some], counts)
    assert pool.used == sum(len(row.ids) for row in rows)


@pytest.mark.parametrize("architecture", ["llama", "bloom", "gemma3", "lfm2", "mamba2"])
def test_rows_come_and_go_and_the_others_stay_what_they_are(architecture: str) -> None:
    """Places are taken, freed, swapped and grown all the time; every token read is checked."""
    base, draw = tiny.base(architecture), random.Random(2)
    pool = KVPool(base)
    rows: list[Row] = []
    places: list[KVSlot] = []
    for seed in range(60):
        if len(rows) < 3 or (len(rows) < 11 and draw.random() < 0.6):
            rows.append(Row(base, seed, draw.randrange(6), draw.choice((3, 12, 80))))
            places.append(opened(pool, rows[-1], len(rows[-1].ids) + draw.choice((0, 70))))
        some = draw.sample(range(len(rows)), draw.randint(1, len(rows)))
        read(pool, [rows[n] for n in some], [places[n] for n in some], [draw.choice((1, 1, 5)) for _ in some])
        for n in sorted((n for n, row in enumerate(rows) if not row.left), reverse=True):
            pool.close(places.pop(n))
            del rows[n]
    assert max(bucket.rows for bucket in pool._buckets.values()) > 4, "no bucket has grown"
    for place in places:
        pool.close(place)
    assert pool.used == 0
    assert all(not bool(t.any()) for s in pool._buckets.values() for t in (*s.pairs, *s.states.values())), (
        "not cleared"
    )


@pytest.mark.parametrize("layout", ["own", "packed"])
def test_the_order_of_chunks_does_not_matter(layout: str) -> None:
    base = tiny.base() if layout == "own" else dataclasses.replace(tiny.base(), layout=PACKED)

    def hidden(order: Sequence[int]) -> list[Tensor]:
        rows = [Row(base, seed, 3, 6) for seed in range(5)]
        pool = KVPool(base)
        places = [opened(pool, row, 64 * (1 + n % 2)) for n, row in enumerate(rows)]
        with torch.no_grad():
            found = pool.read([Chunk(places[n], rows[n].next(1 if n < 3 else 4)) for n in order])
        return [found[order.index(n)] for n in range(5)]

    for one, other in zip(hidden(range(5)), hidden((4, 2, 0, 3, 1)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("architecture", KINDS)
def test_a_row_that_does_not_go_on_from_what_it_reads_is_as_it_was(architecture: str) -> None:
    base = tiny.base(architecture)
    row, beside = Row(base, 1, 4, 10), Row(base, 2, 4, 60)
    pool = KVPool(base)
    place, other = opened(pool, row), opened(pool, beside)
    read(pool, [row, beside], [place, other], [3, 40])
    with torch.no_grad():
        for ids in ([77, 78, 79, 80, 81], [77]):
            tried = [Chunk(place, ids, goes_on=False), Chunk(other, beside.next(1))]
            first, _ = pool.read(tried)
            again, _ = pool.read([tried[0], Chunk(other, beside.next(1))])
            torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-4)
    read(pool, [row, beside], [place, other], [1, 1])
    read(pool, [row, beside], [place, other], [6, 1])


# -- room ------------------------------------------------------------------------------------------


def test_strips_are_as_long_as_needed_and_double() -> None:
    base = tiny.base()
    pool = KVPool(base)
    lengths = {
        need: opened(pool, Row(base, 1, 2, 1), need).bucket.capacity for need in (1, 64, 65, 128, 200, 512)
    }
    assert lengths == {1: SHORTEST, 64: 64, 65: 128, 128: 128, 200: 256, 512: 512}
    assert pool.made == 4 * (64 + 128 + 256 + 512)
    assert pool.slot_bytes(1) == 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes


def test_there_is_never_more_room_than_allowed() -> None:
    base, draw = tiny.base(), random.Random(3)
    pool, places, refused = KVPool(base, KVMemory(1000 * 384)), list[KVSlot](), 0
    front = base.prefill_text("abc")
    for _ in range(300):
        place = pool.open(front, draw.choice((10, 100, 200)))
        refused += place is None
        if place is not None:
            places.append(place)
        assert pool.made <= 1000
        while places and (place is None or draw.random() < 0.4):
            pool.close(places.pop(draw.randrange(len(places))))
    assert refused > 10
    for place in places:
        pool.close(place)
    assert pool.open(front, 512) is not None, "empty shelves of other lengths must give way"
    assert pool.open(front, 512) is None


def test_what_does_not_fit_changes_nothing() -> None:
    base = tiny.base()
    row = Row(base, 1, 3, 9)
    pool = KVPool(base, KVMemory(64 * 384))
    place = opened(pool, row)
    read(pool, [row], [place], [4])
    assert pool.open(row.prefix, 10) is None
    assert pool.open(row.prefix, 100) is None
    read(pool, [row], [place], [5])


def test_a_prefix_of_another_base_is_refused() -> None:
    with pytest.raises(WrongBaseError):
        KVPool(tiny.base()).open(tiny.base(seed=1).prefill_text("a"), 10)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_row_moves_to_a_larger_slot_and_sees_what_it_saw(architecture: str) -> None:
    base = tiny.base(architecture)
    rows = [Row(base, 1, 3, 150), Row(base, 2, 5, 60)]
    pool = KVPool(base)
    places = [opened(pool, rows[0], 10), opened(pool, rows[1], 10)]
    for _ in range(15):
        for row, place in zip(rows, places, strict=True):
            assert pool.reserve(place, place.length + min(10, row.left))
        some = [n for n, row in enumerate(rows) if row.left]
        counts = [min(10, rows[n].left) for n in some]
        read(pool, [rows[n] for n in some], [places[n] for n in some], counts)
    assert [place.capacity for place in places] == [256, 128]
    for place in places:
        pool.close(place)
    assert all(not bool(t.any()) for b in pool._buckets.values() for t in (*b.pairs, *b.states.values()))


def test_a_slot_that_cannot_grow_stays_as_it_is() -> None:
    base = tiny.base()
    row, memory = Row(base, 1, 3, 80), KVMemory(150 * 384)
    pool = KVPool(base, memory)
    place = opened(pool, row, 10)
    read(pool, [row], [place], [20])
    assert not pool.reserve(place, 65)
    read(pool, [row], [place], [20])
    assert (pool.made, memory.taken) == (64, 64 * 384)


def test_pools_share_one_memory_and_give_back_what_nobody_holds() -> None:
    base, memory = tiny.base(), KVMemory(560 * 384)
    front = base.prefill_text("abc")
    pools = [KVPool(base, memory), KVPool(base, memory)]
    small = [pool.open(front, 60) for pool in pools]
    assert memory.taken == 2 * 4 * 64 * 384
    assert pools[0].open(front, 200) is None, "the other's unused slots are not its own to give"
    for pool in pools:
        pool.shrink()
    assert memory.taken == 2 * 64 * 384
    large = pools[0].open(front, 200)
    assert pools[1].open(front, 60, spare=113 * 384) is None
    assert pools[1].open(front, 60, spare=112 * 384) is not None
    assert memory.taken == (256 + 3 * 64) * 384
    for slot in (small[0], large):
        assert slot is not None
        pools[0].close(slot)
    pools[0].shrink()
    assert memory.taken == 2 * 64 * 384


# -- clean places ----------------------------------------------------------------------------------


def nan_prefix(base: Base) -> Prefix:
    made = base.prefill_text("abcdef")
    bad = tuple(torch.full_like(layer, torch.nan) for layer in made.keys)
    states = {key: torch.full_like(state, torch.nan) for key, state in made.states.items()}
    return dataclasses.replace(made, keys=bad, values=bad, states=states)


@torch.no_grad()
def short_beside_long(base: Base, pool: KVPool, long: Row, place: KVSlot) -> None:
    """A short row in the place just freed, read in one pass with a long one that shows many slots."""
    short = Row(base, 9, 2, 8)
    own = opened(pool, short)
    assert own.index == 1
    read(pool, [short], [own], [4])
    for _ in range(3):
        read(pool, [short, long], [own, place], [1, 1])
    pool.close(own)


@pytest.mark.parametrize("architecture", KINDS)
def test_nothing_of_a_row_is_left_for_the_next_not_even_a_nan(architecture: str) -> None:
    base = tiny.base(architecture)
    pool, long = KVPool(base), Row(base, 1, 3, 60)
    place = opened(pool, long)
    read(pool, [long], [place], [50])
    bad = pool.open(nan_prefix(base), 60)
    assert bad is not None
    with torch.no_grad():
        (found,) = pool.read([Chunk(bad, [5] * 40)])
    assert bool(found.isnan().any())
    read(pool, [long], [place], [1])
    pool.close(bad)
    short_beside_long(base, pool, long, place)


@pytest.mark.parametrize("architecture", KINDS)
def test_a_pass_that_failed_half_way_leaves_nothing_either(architecture: str) -> None:
    base = breaking(tiny.base(architecture))
    pool, long = KVPool(base), Row(base, 1, 3, 60)
    place = opened(pool, long)
    read(pool, [long], [place], [50])
    bad = pool.open(nan_prefix(base), 60)
    assert bad is not None
    base.model.broken = True
    with torch.no_grad(), pytest.raises(RuntimeError, match="half-way"):
        pool.read([Chunk(bad, [5] * 40)])
    base.model.broken = False
    pool.close(bad)
    short_beside_long(base, pool, long, place)


def breaking(base: Base) -> Base:
    """A copy of the base whose last layer fails while ``model.broken`` is true."""
    model: Any = twin(base)
    model.broken = False
    backbone = getattr(model, model.base_model_prefix)
    layers = backbone.layers if hasattr(backbone, "layers") else backbone.h

    def fail(*_: Any) -> None:
        if model.broken:
            raise RuntimeError("half-way")

    layers[-1].register_forward_pre_hook(fail)
    return dataclasses.replace(base, model=model)


@pytest.mark.parametrize("architecture", KINDS)
def test_every_pass_is_told_whose_tokens_it_reads(architecture: str) -> None:
    base = tiny.base(architecture)
    rows = [Row(base, seed, 2, 5) for seed in range(4)]
    pool, told = KVPool(base), list[int]()
    chunks = [Chunk(opened(pool, row), row.next(n)) for row, n in zip(rows, (3, 1, 2, 1), strict=True)]

    @contextmanager
    def around(owners: Sequence[int]) -> Iterator[None]:
        told.extend(owners)
        yield

    with torch.no_grad():
        pool.read(chunks, around)
    assert (sorted(told[:2]), told[2:]) == ([1, 3], [0, 0, 0, 2, 2])
