"""A registry loads once for all who ask, follows what happens to artifacts, and takes back no lease."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from serving.shop import (
    BASE,
    SIZE,
    Shop,
    held,
    holds,
    one_sentence,
    touch,
    until,
    version,
    waiting,
    wrong_base,
)
from softprompt.errors import ArtifactError, SoftpromptError, WrongBaseError
from softprompt.serving.registry import Lease, Registry
from softprompt.serving.version import Version


@pytest.fixture
def shop() -> Shop:
    """Artifacts a, b, c and d, of the same size and content."""
    made = Shop()
    made.write("a", "b", "c", "d")
    return made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(100) as made:
        yield made


# Loading -----------------------------------------------------------------------------------------


def test_a_hundred_who_ask_for_a_cold_name_cause_one_build_and_all_get_it(
    shop: Shop, pool: ThreadPoolExecutor
) -> None:
    registry = shop.registry(budget=SIZE)
    with shop.holding("a"):
        asked = [pool.submit(registry.lease, "a") for _ in range(100)]
        waiting(registry, 100)
    leases = [each.result() for each in asked]
    assert shop.builds == ["a"]
    assert len({id(lease.version) for lease in leases}) == 1
    assert registry.loaded()[1].users == 100
    for lease in leases:
        lease.close()
    assert registry.loaded()[1].users == 0


def test_what_is_in_memory_is_not_built_again(shop: Shop) -> None:
    registry = shop.registry()
    with registry.lease("a") as first, registry.lease("a") as second:
        assert first is second
    with registry.lease("a") as third:
        assert third is first
    assert shop.builds == ["a"]


def test_nothing_is_loaded_before_it_is_asked_for(shop: Shop) -> None:
    registry = shop.registry(pinned=["a"])
    registry.pin("b")
    assert held(registry) == []
    assert shop.builds == []


def test_a_build_keeps_nobody_from_what_is_in_memory(shop: Shop, pool: ThreadPoolExecutor) -> None:
    registry = shop.registry()
    touch(registry, "b")
    with shop.holding("a") as begun:
        slow = pool.submit(registry.lease, "a")
        assert begun.wait(10)
        touch(registry, "b", BASE.name)
        assert registry.evict("b")
        assert not slow.done()
    assert holds(slow.result().version, 1)


@pytest.mark.parametrize("builds", [1, 2])
def test_so_many_builds_run_at_a_time(shop: Shop, pool: ThreadPoolExecutor, builds: int) -> None:
    registry = shop.registry(builds=builds)
    with ExitStack() as gates:
        begun = [gates.enter_context(shop.holding(name)) for name in "abcd"]
        asked = [pool.submit(registry.lease, name) for name in "abcd"]
        waiting(registry, 4)
        until(lambda: sum(event.is_set() for event in begun) == builds)
    assert {each.result().version.name for each in asked} == set("abcd")
    assert shop.most_at_once == builds


# Failures ----------------------------------------------------------------------------------------


def test_a_failed_build_tells_all_who_waited_and_the_next_tries_again(
    shop: Shop, pool: ThreadPoolExecutor
) -> None:
    registry = shop.registry()
    shop.write("a", fault=wrong_base("a"))
    with shop.holding("a"):
        asked = [pool.submit(registry.lease, "a") for _ in range(10)]
        waiting(registry, 10)
    errors = {each.exception() for each in asked}
    assert len(errors) == 1
    assert isinstance(errors.pop(), WrongBaseError)
    assert registry.counts.failures == 1
    assert held(registry) == []
    shop.write("a")  # whole again, and its stamp is the same
    with registry.lease("a") as found:
        assert holds(found, 1)
    assert shop.builds == ["a", "a"]


def test_a_failed_replacement_disturbs_nobody_and_never_enters(shop: Shop) -> None:
    registry = shop.registry()
    with registry.lease("a") as old:
        shop.write("a", content=2, fault=ArtifactError("a is damaged; restore it from a good copy."))
        for _ in range(2):
            with pytest.raises(ArtifactError, match="damaged"):
                registry.lease("a")
        assert holds(old, 1)
        (left,) = registry.loaded()[1:]
        assert (left.digest, left.users, left.current) == (old.digest, 1, False)
    assert held(registry) == []


def test_an_error_does_not_keep_what_was_half_built(shop: Shop) -> None:
    gc.collect()
    gc.disable()
    try:
        refused: list[weakref.ref[Version]] = []

        def build(name: str) -> Version:
            half = version(name, 1)
            refused.append(weakref.ref(half))
            raise ArtifactError(f"{half.name} is damaged; restore it from a good copy.")

        registry = Registry(build, shop.stamp, shop.names, base=BASE)
        with pytest.raises(ArtifactError) as caught:
            registry.lease("a")
        assert caught.value is not None
        assert refused[0]() is None
    finally:
        gc.enable()


def test_an_interrupted_build_is_taken_over_by_those_who_wait(shop: Shop, pool: ThreadPoolExecutor) -> None:
    registry = shop.registry()

    def interrupt(name: str) -> None:
        if len(shop.builds) == 1:
            raise KeyboardInterrupt

    shop.after_build = interrupt
    with shop.holding("a") as begun:
        first = pool.submit(registry.lease, "a")
        assert begun.wait(10)
        others = [pool.submit(registry.lease, "a") for _ in range(5)]
        waiting(registry, 6)
    assert isinstance(first.exception(), KeyboardInterrupt)
    for each in others:
        each.result().close()
    assert shop.builds == ["a", "a"]
    assert registry.loaded()[1].users == 0


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the shell that started the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_who_stops_waiting_keeps_nothing_in_use(shop: Shop, pool: ThreadPoolExecutor) -> None:
    registry = shop.registry()

    def ctrl_c() -> None:
        waiting(registry, 2)
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with shop.holding("a") as begun:
        first = pool.submit(registry.lease, "a")
        assert begun.wait(10)
        pool.submit(ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            registry.lease("a")
    first.result().close()
    assert registry.loaded()[1].users == 0


@pytest.mark.usefixtures("_interruptible")
def test_who_leaves_just_when_a_version_is_there_gives_it_back(shop: Shop, pool: ThreadPoolExecutor) -> None:
    """The interruption comes when the load has ended and its waiter counts as a user already."""
    registry = shop.registry(budget=SIZE)
    go_on = threading.Event()

    def hold() -> Lease:
        with shop.holding("a") as begun:
            lease = pool.submit(registry.lease, "a")
            assert begun.wait(10)
            assert go_on.wait(10)
        return lease.result()

    def leave(number: int, frame: object) -> None:
        go_on.set()
        until(lambda: [each.users for each in registry.loaded()[1:]] == [2])
        raise KeyboardInterrupt

    def ctrl_c() -> None:
        waiting(registry, 2)
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    first = pool.submit(hold)
    waiting(registry, 1)
    signal.signal(signal.SIGINT, leave)
    pool.submit(ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        registry.lease("a")
    first.result().close()
    assert registry.loaded()[1].users == 0
    touch(registry, "b")  # there is room, since nobody uses it
    assert held(registry) == ["b"]


# Replaced and removed ----------------------------------------------------------------------------


def test_the_next_lease_has_the_replacement_and_open_ones_keep_what_they_had(shop: Shop) -> None:
    registry = shop.registry()
    early, also_early = registry.lease("a"), registry.lease("a")
    shop.write("a", content=2, nbytes=30)
    late = registry.lease("a")
    assert holds(early.version, 1)
    assert holds(late.version, 2)
    assert [(each.nbytes, each.users, each.current) for each in registry.loaded()[1:]] == [
        (30, 1, True),
        (SIZE, 2, False),
    ]
    assert registry.counts.bytes == SIZE + 30
    early.close()
    assert registry.counts.bytes == SIZE + 30
    also_early.close()
    assert registry.counts.bytes == 30
    assert registry.counts.evictions == 0


def test_a_replaced_version_is_freed_with_its_last_lease(shop: Shop) -> None:
    registry = shop.registry()
    lease = registry.lease("a")
    alive = weakref.ref(lease.version)
    shop.write("a", content=2)
    touch(registry, "a")
    assert alive() is not None
    lease.close()
    del lease
    assert alive() is None


def test_a_removed_artifact_is_refused_also_while_it_is_in_memory(shop: Shop) -> None:
    shop.write("topics", "quotes")
    registry = shop.registry(pinned=["quotes"])
    lease = registry.lease("topics")
    touch(registry, "quotes")
    shop.remove("topics")
    shop.remove("quotes")
    shop.write("topic")
    for name in ("topics", "quotes"):
        with pytest.raises(ArtifactError, match=f"no prompt called '{name}'") as caught:
            registry.lease(name)
        one_sentence(caught.value)
    with pytest.raises(ArtifactError, match=r"did you mean topic\?"):
        registry.lease("topics")
    assert held(registry) == ["topics"]
    assert holds(lease.version, 1)
    lease.close()
    assert held(registry) == []


def test_what_is_put_back_while_it_is_in_use_is_not_built_again(shop: Shop) -> None:
    registry = shop.registry(budget=SIZE)
    with registry.lease("a") as early:
        shop.remove("a")
        with pytest.raises(ArtifactError):
            registry.lease("a")
        shop.write("a")
        with registry.lease("a") as late:
            assert late is early
            assert registry.loaded()[1].current
    assert held(registry) == ["a"]
    assert shop.builds == ["a"]


def test_what_is_replaced_while_it_is_built_is_built_again(shop: Shop) -> None:
    registry = shop.registry()

    def replace(name: str) -> None:
        if len(shop.builds) < 3:
            shop.write(name, content=1 + len(shop.builds))

    shop.after_build = replace
    with registry.lease("a") as found:
        assert holds(found, 3)
    assert shop.builds == ["a"] * 3
    assert held(registry) == ["a"]


def test_what_is_replaced_before_its_turn_comes_is_built_once(shop: Shop, pool: ThreadPoolExecutor) -> None:
    registry = shop.registry()
    with shop.holding("b") as begun:
        first = pool.submit(registry.lease, "b")
        assert begun.wait(10)
        second = pool.submit(registry.lease, "a")
        waiting(registry, 2)
        shop.write("a", content=2)
    assert holds(second.result().version, 2)
    first.result().close()
    assert shop.builds == ["b", "a"]


def test_what_does_not_stop_being_replaced_is_given_up(shop: Shop) -> None:
    registry = shop.registry()
    shop.after_build = lambda name: shop.write(name, content=1 + len(shop.builds))
    with pytest.raises(ArtifactError, match="replaced again and again") as caught:
        registry.lease("a")
    one_sentence(caught.value)
    assert 1 < len(shop.builds) < 10
    assert held(registry) == []


def test_the_fault_of_an_artifact_that_was_replaced_meanwhile_is_not_told(shop: Shop) -> None:
    registry = shop.registry()
    shop.write("a", fault=wrong_base("a"))
    shop.after_build = lambda name: shop.write(name, content=2)
    with registry.lease("a") as found:
        assert holds(found, 2)
    assert registry.counts.failures == 0


def test_what_is_removed_while_it_is_built_never_enters(shop: Shop) -> None:
    registry = shop.registry()
    shop.after_build = shop.remove
    with pytest.raises(ArtifactError, match="no prompt called 'a'"):
        registry.lease("a")
    assert held(registry) == []


# The base, pins, leases --------------------------------------------------------------------------


def test_the_base_is_always_there_and_costs_nothing(shop: Shop) -> None:
    registry = shop.registry(budget=0)
    shop.write(BASE.name)  # an artifact of that name is never reached
    assert not registry.evict(BASE.name)
    with registry.lease(BASE.name) as found:
        assert found is BASE
        (about,) = registry.loaded()
        assert (about.digest, about.nbytes, about.users, about.pinned) == (BASE.digest, 0, 1, True)
    assert shop.builds == []
    assert registry.counts.bytes == 0


def test_evict_drops_what_nobody_uses_or_pinned(shop: Shop) -> None:
    registry = shop.registry()
    assert not registry.evict("a")
    with registry.lease("a"):
        assert not registry.evict("a")
    registry.pin("a")
    assert not registry.evict("a")
    registry.unpin("a")
    assert registry.evict("a")
    assert held(registry) == []
    assert registry.counts.evictions == 1


def test_a_lease_may_be_closed_by_many_and_often_but_counts_once(
    shop: Shop, pool: ThreadPoolExecutor
) -> None:
    registry = shop.registry()
    mine = registry.lease("a")
    other = registry.lease("a")
    list(pool.map(lambda _: other.close(), range(100)))
    assert registry.loaded()[1].users == 1
    with mine:
        pass
    mine.close()
    assert registry.loaded()[1].users == 0


def test_a_lease_ends_with_its_block_also_by_an_error(shop: Shop) -> None:
    registry = shop.registry()
    with pytest.raises(SoftpromptError, match="went wrong"), registry.lease("a"):
        raise SoftpromptError("It went wrong.")
    assert registry.loaded()[1].users == 0


def test_counters_tell_what_happened(shop: Shop) -> None:
    registry = shop.registry(budget=SIZE)
    touch(registry, "a", "a", "b", BASE.name)
    shop.write("c", fault=wrong_base("c"))
    with pytest.raises(WrongBaseError):
        registry.lease("c")
    counts = registry.counts
    assert (counts.hits, counts.misses, counts.evictions, counts.failures) == (2, 3, 1, 1)
    assert (counts.bytes, counts.budget) == (SIZE, SIZE)
    assert 0 < counts.seconds_loading < 10
