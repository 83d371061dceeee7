"""A prompt stays at home while that has time for it; a hot one spreads, and what just fits stays loaded."""

from __future__ import annotations

from collections import Counter, OrderedDict

import pytest

from softprompt.cluster.homes import Homes, ranked

REPLICAS = [f"replica-{number}" for number in range(8)]


def asked(homes: Homes, name: str) -> str:
    """One request that begins and ends."""
    replica = homes.home(name)
    homes.began(replica, name)
    homes.ended(replica)
    return replica


def homes_of(count: int, budget: int | None = None, *, free: int = 8) -> Homes:
    homes = Homes(budget, free=free)
    homes.there(REPLICAS[:count])
    return homes


def test_the_order_of_a_name_is_the_same_everywhere() -> None:
    """A literal, for processes of other machines and other days must agree."""
    assert ranked("bbc-topics", ["a", "b", "c", "d"]) == ranked("bbc-topics", ["d", "c", "b", "a"])
    assert ranked("bbc-topics", ["a", "b", "c", "d"]) == ["b", "d", "c", "a"]


def test_names_are_spread_evenly() -> None:
    firsts = Counter(ranked(f"prompt-{number}", REPLICAS)[0] for number in range(8000))
    assert all(900 < firsts[replica] < 1100 for replica in REPLICAS)


def test_a_replica_that_goes_moves_its_own_prompts_only() -> None:
    names = [f"prompt-{number}" for number in range(1000)]
    before = {name: ranked(name, REPLICAS)[0] for name in names}
    after = {name: ranked(name, REPLICAS[1:])[0] for name in names}
    moved = [name for name in names if before[name] != after[name]]
    assert moved == [name for name in names if before[name] == REPLICAS[0]]


def test_a_cold_prompt_stays_at_home() -> None:
    homes = homes_of(8)
    assert {asked(homes, "cold") for _ in range(100)} == {ranked("cold", REPLICAS)[0]}


def test_a_prompt_stays_where_it_is_warm_when_a_replica_comes() -> None:
    homes = homes_of(4)
    names = [f"prompt-{number}" for number in range(200)]
    before = {name: asked(homes, name) for name in names}
    homes.there(REPLICAS)
    assert {name: asked(homes, name) for name in names} == before


def test_a_hot_prompt_spreads_and_no_replica_takes_more_than_its_share() -> None:
    homes, under_way = homes_of(4, free=2), Counter[str]()
    for number in range(100):
        replica = homes.home("hot")
        homes.began(replica, "hot")
        under_way[replica] += 1
        most = max(2, -(-1.25 * (number + 1) // 4))
        assert max(under_way.values()) <= most
    assert set(under_way) == set(REPLICAS[:4])


def test_a_hot_prompt_does_not_push_a_cold_one_from_its_home() -> None:
    homes = homes_of(4, free=2)
    home = ranked("hot", REPLICAS[:4])[0]
    cold = next(f"cold-{n}" for n in range(100) if ranked(f"cold-{n}", REPLICAS[:4])[0] != home)
    at = asked(homes, cold)
    for _ in range(3):
        homes.began(homes.home("hot"), "hot")
    assert homes.home(cold) == at


def test_a_home_with_free_rows_keeps_its_prompt_though_others_are_idle() -> None:
    homes = homes_of(8, free=8)
    for _ in range(8):
        replica = homes.home("hot")
        assert replica == ranked("hot", REPLICAS)[0]
        homes.began(replica, "hot")
    assert homes.home("hot") != ranked("hot", REPLICAS)[0]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("replicas", "each"), [(2, 3), (4, 5), (8, 16)])
def test_cold_and_exactly_full_every_prompt_is_loaded_once(replicas: int, each: int, known: bool) -> None:
    """As many prompts as fit, asked for in turn, from nothing; one too many anywhere, and all go round."""
    homes = homes_of(replicas, budget=100 * each)
    names = [f"prompt-{number}" for number in range(replicas * each)]
    if known:
        homes.holds("elsewhere", dict.fromkeys(names, 100), None)
    caches: dict[str, OrderedDict[str, None]] = {replica: OrderedDict() for replica in REPLICAS}
    loads = 0
    for _ in range(10):
        for name in names:
            replica = asked(homes, name)
            cache = caches[replica]
            if name not in cache:
                loads += 1
                cache[name] = None
                if len(cache) > each:
                    cache.popitem(last=False)
            cache.move_to_end(name)
            homes.holds(replica, dict.fromkeys(cache, 100), 100 * each)
    assert loads == len(names)


def test_sizes_that_one_replica_told_first_do_not_fill_the_other() -> None:
    """What went to a replica that has told nothing yet counts as much as what a mean prompt takes."""
    homes, each = homes_of(2, budget=600), 6
    names = [f"prompt-{number}" for number in range(2 * each)]
    held: dict[str, dict[str, int]] = {replica: {} for replica in REPLICAS[:2]}
    for number, name in enumerate(names):
        held[asked(homes, name)][name] = 100
        if number == 4:
            homes.holds(REPLICAS[0], held[REPLICAS[0]], 600)
    assert [len(one) for one in held.values()] == [each, each]


def test_a_prompt_that_never_came_takes_no_room_at_its_home() -> None:
    homes = homes_of(2, budget=2)
    names = [f"prompt-{number}" for number in range(5)]
    at = homes.home(names[0])
    elsewhere = next(replica for replica in REPLICAS[:2] if replica != at)
    assert homes.began(at, names[0])
    assert homes.began(elsewhere, names[0])
    homes.never_came(at, names[0])
    homes.ended(at)
    homes.ended(elsewhere)
    assert homes.home(names[0]) == elsewhere
    homes.holds(elsewhere, {names[0]: 1}, 2)
    assert Counter(asked(homes, name) for name in names[1:4]) == {at: 2, elsewhere: 1}
    assert not homes.began(elsewhere, names[0])


def test_what_replicas_say_they_may_hold_counts_not_what_those_before_them_could() -> None:
    """A router outlives the replicas it was made for."""
    homes, names = homes_of(2, budget=None), [f"prompt-{number}" for number in range(12)]
    for replica in REPLICAS[:2]:
        homes.holds(replica, {}, 600)
    homes.holds("before", {"any": 100}, None)
    assert Counter(asked(homes, name) for name in names) == dict.fromkeys(REPLICAS[:2], 6)


def test_a_request_for_no_prompt_takes_no_room() -> None:
    homes = homes_of(2, budget=100)
    homes.holds(REPLICAS[0], {"one": 100}, 100)
    homes.holds(REPLICAS[1], {"other": 100}, 100)
    for _ in range(3):
        asked(homes, "")
    assert homes.home("one") == REPLICAS[0]
    assert homes.home("other") == REPLICAS[1]


def test_a_replica_that_died_is_forgotten_with_what_was_under_way() -> None:
    homes = homes_of(2, free=1)
    first = homes.home("it")
    homes.began(first, "it")
    homes.there([replica for replica in REPLICAS[:2] if replica != first])
    homes.ended(first)
    assert homes.home("it") != first
    homes.there(REPLICAS[:2])
    assert homes.home("it") == first  # a new one of that name, idle
