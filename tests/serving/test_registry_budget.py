"""A registry keeps to its budget: the longest unused leaves, and nothing that is in use or pinned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.shop import SIZE, Shop, held, holds, one_sentence, touch, until
from softprompt.errors import ConfigError, ResourceError


@pytest.fixture
def shop() -> Shop:
    """Artifacts a, b, c and d, of the same size and content."""
    made = Shop()
    made.write("a", "b", "c", "d")
    return made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def test_the_longest_unused_makes_room(shop: Shop) -> None:
    registry = shop.registry(budget=3 * SIZE)
    touch(registry, "a", "b", "c", "a", "d")
    assert held(registry) == ["c", "a", "d"]
    touch(registry, "b")
    assert held(registry) == ["a", "d", "b"]
    assert registry.counts.evictions == 2
    assert registry.counts.bytes == registry.counts.budget


def test_a_version_counts_as_used_until_its_lease_ends(shop: Shop) -> None:
    registry = shop.registry(budget=2 * SIZE)
    with registry.lease("a"):
        touch(registry, "b")
    touch(registry, "c")
    assert held(registry) == ["a", "c"]


def test_neither_the_used_nor_the_pinned_are_evicted(shop: Shop) -> None:
    registry = shop.registry(budget=3 * SIZE, pinned=["a"])
    touch(registry, "a")
    with registry.lease("b"):
        touch(registry, "c", "d")
        assert sorted(held(registry)) == ["a", "b", "d"]


def test_a_replaced_version_counts_until_its_last_lease_ends(shop: Shop) -> None:
    registry = shop.registry(budget=SIZE, patience=0)
    with registry.lease("a"):
        shop.write("a", content=2)
        with pytest.raises(ResourceError, match="in use"):
            registry.lease("a")
    touch(registry, "a")
    assert held(registry) == ["a"]


def test_it_waits_for_a_lease_to_be_given_back(shop: Shop, pool: ThreadPoolExecutor) -> None:
    registry = shop.registry(budget=SIZE)
    lease = registry.lease("a")
    other = pool.submit(registry.lease, "b")
    until(lambda: "b" in shop.builds)
    time.sleep(0.05)
    assert not other.done()
    assert held(registry) == ["a"]
    lease.close()
    assert holds(other.result(5).version, 1)
    assert held(registry) == ["b"]


def test_it_waits_for_a_pin_to_be_taken_away(shop: Shop, pool: ThreadPoolExecutor) -> None:
    registry = shop.registry(budget=SIZE, pinned=["a"])
    touch(registry, "a")
    other = pool.submit(registry.lease, "b")
    until(lambda: "b" in shop.builds)
    registry.unpin("a")
    other.result(5).close()
    assert held(registry) == ["b"]


def test_it_does_not_wait_for_ever(shop: Shop) -> None:
    registry = shop.registry(budget=2 * SIZE, patience=0.1)
    with registry.lease("a"), registry.lease("b"):
        began = time.monotonic()
        with pytest.raises(ResourceError) as caught:
            registry.lease("c")
        assert 0.1 <= time.monotonic() - began < 5
        assert one_sentence(caught.value) == (
            "c takes 100 bytes of memory, but 200 of the budget of 200 are in use or pinned; "
            "ask again later, unpin a prompt or raise the budget."
        )
    touch(registry, "c")


def test_nothing_is_evicted_in_vain(shop: Shop) -> None:
    registry = shop.registry(budget=3 * SIZE, patience=0)
    shop.write("large", nbytes=3 * SIZE)
    touch(registry, "b")
    with registry.lease("a"), pytest.raises(ResourceError):
        registry.lease("large")
    assert held(registry) == ["b", "a"]


def test_one_larger_than_the_whole_budget_is_refused_at_once_and_not_built_twice(shop: Shop) -> None:
    registry = shop.registry(budget=SIZE)
    touch(registry, "a")
    shop.write("large", nbytes=12_345)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(ResourceError) as caught:
            registry.lease("large")
        assert time.monotonic() - began < 5
        assert one_sentence(caught.value) == (
            "large takes 12,345 bytes of memory, more than the whole budget of 100; raise the budget."
        )
    assert shop.builds == ["a", "large"]
    assert held(registry) == ["a"]
    shop.write("large", content=2)  # replaced by a smaller one
    touch(registry, "large")
    assert held(registry) == ["large"]


def test_room_is_made_before_a_known_version_is_built_again(shop: Shop, pool: ThreadPoolExecutor) -> None:
    registry = shop.registry(budget=SIZE)
    touch(registry, "a", "b")
    with shop.holding("a") as begun:
        again = pool.submit(registry.lease, "a")
        assert begun.wait(10)
        assert held(registry) == []
    again.result().close()


def test_a_registry_without_a_budget_keeps_all(shop: Shop) -> None:
    registry = shop.registry()
    touch(registry, *"abcd")
    assert held(registry) == list("abcd")
    assert registry.counts.budget is None


def test_a_negative_budget_is_refused(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="budget is -1 bytes") as caught:
        shop.registry(budget=-1)
    one_sentence(caught.value)
