"""Places are shared by weight, whoever asks for how many: by counting, and in a scheduler under floods."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from generation.asking import Asked, some_ids, steps, until_over
from softprompt.errors import QueueFullError
from softprompt.generation.sampler import Sampling
from softprompt.generation.scheduler import Scheduler
from softprompt.generation.sharing import NOBODY, Owner, fair_order, gives_way, may_wait, more_may_wait
from softprompt.serving.version import bare

A, B, HEAVY = Owner("a"), Owner("b"), Owner("heavy", 3.0)
IDS = some_ids(random.Random(0), 4)


@dataclass
class One:
    owner: Owner
    turn: int


# -- counting ---------------------------------------------------------------------------------------------


def test_alone_everything_comes_in_its_turn() -> None:
    waiting = [One(NOBODY, turn) for turn in (3, 1, 2)]
    assert [one.turn for one in fair_order(waiting, {None: 5})] == [1, 2, 3]


def test_the_next_place_goes_to_who_holds_least_for_its_weight() -> None:
    waiting = [One(A, turn) for turn in range(4)] + [One(B, 10), One(HEAVY, 11), One(HEAVY, 12)]
    order = [one.owner.id for one in fair_order(waiting, {"a": 2, "b": 0, "heavy": 3})]
    assert order == ["b", "heavy", "heavy", "a", "a", "a", "a"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([0.5, 1.0, 2.0, 3.0])), min_size=1, max_size=5))
def test_places_given_one_by_one_and_taken_back_come_to_rest_within_one_of_the_share(
    asked: list[tuple[int, float]],
) -> None:
    """Max-min: who wants less than its share has all it wants, the rest hold alike for their weights."""
    places, owners = 12, [Owner(number, weight) for number, (_, weight) in enumerate(asked)]
    wants = {owner: count for owner, (count, _) in zip(owners, asked, strict=True)}
    held: Counter[Hashable] = Counter(
        {owners[0].id: min(places, wants[owners[0]])}
    )  # it came first, and alone
    for _ in range(200):
        waiting = [One(o, 0) for o in owners if wants[o] > held[o.id]]
        for one in fair_order(waiting, held):
            if held.total() < places:
                held[one.owner.id] += 1
                break
            giving = [o for o in owners if gives_way(o, one.owner, held)]
            if giving:
                most = max(giving, key=lambda o: held[o.id] / o.weight)
                held[most.id] -= 1
                held[one.owner.id] += 1
                break
        else:
            break
    else:
        pytest.fail("places go round and round")
    assert held.total() == min(places, sum(wants.values()))
    for mine in owners:
        for other in owners:
            if wants[mine] > held[mine.id]:  # who lacks places holds as much as any other, but for one place
                assert (held[mine.id] + 1) / mine.weight > (held[other.id] - 1) / other.weight


def test_a_queue_cannot_be_filled_by_one() -> None:
    waiting: Counter[Hashable] = Counter()
    while may_wait(A, waiting, 12):
        waiting["a"] += 1
    assert waiting["a"] == 6
    while may_wait(B, waiting, 12):
        waiting["b"] += 1
    assert waiting["b"] == 3
    assert may_wait(Owner("c"), waiting, 12)
    waiting["c"] += 3
    assert not may_wait(Owner("d"), waiting, 12), "full is full"


def test_who_is_not_told_apart_may_fill_the_queue() -> None:
    assert may_wait(NOBODY, {None: 11}, 12)
    assert not may_wait(NOBODY, {None: 12}, 12)


# -- in a scheduler ---------------------------------------------------------------------------------------


def write(own: Scheduler, owner: Owner, tokens: int, count: int = 1) -> list[Asked]:
    how = Sampling(max_new_tokens=tokens, ignore_end=True)
    asked = []
    for row in range(count):
        request = bare(tiny.base()).generate(some_ids(random.Random(row), 4), how, row=row)
        asked.append(Asked(own, request, owner=owner))
    return asked


def test_one_token_comes_in_three_steps_whatever_another_floods_the_server_with() -> None:
    own = Scheduler(tiny.base(), rows=4, queue=400)
    flood = write(own, A, 200, count=120)
    steps(own, 5)
    for _ in range(3):
        (small,) = write(own, B, 1)
        steps(own, 3)
        assert small.over
        assert small.error is None
    until_over(own, *flood[:4])
    alone = Scheduler(tiny.base())
    wanted = write(alone, A, 200, count=4)
    until_over(alone, *wanted)
    assert [one.tokens for one in flood[:4]] == [one.tokens for one in wanted], (
        "who gave way goes on as it was"
    )


def test_a_text_is_scored_before_most_of_a_hundred_of_another() -> None:
    own = Scheduler(tiny.base(), rows=4, chunk=16, queue=400)
    for number in range(100):
        ids = some_ids(random.Random(number), 60)
        Asked(own, bare(tiny.base()).score(ids, [(5,), (6,)], whole=False), owner=A)
    steps(own, 4)
    one = Asked(own, bare(tiny.base()).score(IDS, [(5,), (6,)], whole=False), owner=B)
    taken = 0
    while not one.over:
        own.step()
        taken += 1
    assert taken <= 6, "two steps until a place is free, and two for the text that is before it"


def test_places_follow_weights() -> None:
    own = Scheduler(tiny.base(), rows=8, queue=400)
    write(own, A, 300, count=20)
    steps(own, 3)
    write(own, HEAVY, 300, count=20)
    steps(own, 20)
    held = Counter(row.owner.id for row in own._batch.rows)
    assert held == {"a": 2, "heavy": 6}


def test_one_owner_cannot_fill_the_queue() -> None:
    own = Scheduler(tiny.base(), rows=1, queue=8)
    write(own, A, 5, count=5)
    with pytest.raises(QueueFullError, match="requests of the same owner wait as may"):
        write(own, A, 5)
    write(own, B, 5, count=2)


def test_places_tells_how_many_would_be_taken() -> None:
    own = Scheduler(tiny.base(), rows=3, queue=8)
    for owner in (A, HEAVY, NOBODY):
        places = own.places(owner)
        assert places.now == places.ever == 3 + more_may_wait(owner, {}, 8)
    taken = write(own, A, 2, count=own.places(A).now)
    assert own.places(A).now == 0
    with pytest.raises(QueueFullError, match="requests of the same owner wait as may"):
        write(own, A, 2)
    own.step()
    assert own.places(B).now == more_may_wait(B, {"a": 4}, 8)
    until_over(own, *taken)
    own.step()
    assert own.places(A) == (7, 7)
