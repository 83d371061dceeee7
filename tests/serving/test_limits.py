"""A key gets its minute's requests and its number at once, no more, and what it did not use costs nothing."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from softprompt.errors import ResourceError
from softprompt.serving.keys import KeyRing
from softprompt.serving.limits import Limiter, Pass, TooManyError


@dataclass(frozen=True)
class Owner:
    id: str = "k1"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(clock)


def admitted(limiter: Limiter, key: Owner, tries: int) -> int:
    """How many of ``tries`` requests, each ended at once, are let in."""
    count = 0
    for _ in range(tries):
        try:
            limiter.enter(key).close()
        except TooManyError:
            continue
        count += 1
    return count


def test_a_minute_may_be_spent_at_once_and_comes_back_evenly(limiter: Limiter, clock: Clock) -> None:
    key = Owner(requests_per_minute=30)
    assert admitted(limiter, key, 100) == 30
    clock.now += 10  # a sixth of a minute
    assert admitted(limiter, key, 100) == 5
    clock.now += 3_600  # no more than a minute's worth is saved up
    assert admitted(limiter, key, 100) == 30


def test_over_m_minutes_it_is_at_most_m_plus_one_times_the_limit(limiter: Limiter, clock: Clock) -> None:
    key, draw = Owner(requests_per_minute=7), random.Random(0)
    count, began = 0, clock.now
    while clock.now < began + 600:
        count += admitted(limiter, key, draw.randrange(4))
        clock.now += draw.uniform(0, 2)
    minutes = (clock.now - began) / 60
    assert 7 * minutes - 1 <= count <= 7 * (minutes + 1)


@pytest.mark.parametrize("rate", [1, 3, 7, 60, 997])
def test_who_waits_as_long_as_told_is_let_in_and_nobody_sooner(
    limiter: Limiter, clock: Clock, rate: int
) -> None:
    key = Owner(requests_per_minute=rate)
    assert admitted(limiter, key, 1_000) == rate
    for _ in range(50):
        with pytest.raises(TooManyError) as caught:
            limiter.enter(key)
        assert caught.value.limit == "requests_per_minute"
        assert caught.value.retry_after == pytest.approx(60 / rate)
        clock.now += caught.value.retry_after * 0.99
        with pytest.raises(TooManyError) as again:
            limiter.enter(key)
        clock.now += again.value.retry_after
        limiter.enter(key).close()


def test_a_refusal_uses_nothing_up(limiter: Limiter, clock: Clock) -> None:
    key = Owner(requests_per_minute=2, concurrent=1)
    first = limiter.enter(key)
    assert admitted(limiter, key, 50) == 0  # for the one under way
    first.close()
    assert admitted(limiter, key, 50) == 1  # the second of the minute is still there
    clock.now += 29
    assert admitted(limiter, key, 50) == 0
    clock.now += 1
    assert admitted(limiter, key, 50) == 1


def test_only_so_many_are_under_way_at_once(limiter: Limiter) -> None:
    key = Owner(concurrent=2)
    passes = [limiter.enter(key), limiter.enter(key)]
    with pytest.raises(TooManyError, match="2 requests under way") as caught:
        limiter.enter(key)
    assert (caught.value.limit, caught.value.retry_after) == ("concurrent", 1.0)
    assert isinstance(caught.value, ResourceError)
    for _ in range(3):
        passes[0].close()  # again and again, and still one place only
    limiter.enter(key)
    with pytest.raises(TooManyError):
        limiter.enter(key)


def test_a_pass_ends_with_its_block_also_when_that_fails(limiter: Limiter) -> None:
    key = Owner(concurrent=1)
    with pytest.raises(ZeroDivisionError), limiter.enter(key):
        raise ZeroDivisionError
    with limiter.enter(key) as leave:
        assert isinstance(leave, Pass)
    limiter.enter(key).close()


def test_keys_do_not_share_limits_and_a_key_without_has_none(limiter: Limiter) -> None:
    assert admitted(limiter, Owner("k1", 3), 10) == 3
    assert admitted(limiter, Owner("k2", 3), 10) == 3
    assert admitted(limiter, Owner("k3"), 10_000) == 10_000
    ring, _ = KeyRing().add("a real key", requests_per_minute=1)
    limiter.enter(ring.keys[0])
    with pytest.raises(TooManyError, match="1 request a minute"):
        limiter.enter(ring.keys[0])


def test_an_edited_limit_counts_from_the_next_request(limiter: Limiter, clock: Clock) -> None:
    key = Owner(requests_per_minute=10)
    assert admitted(limiter, key, 20) == 10
    assert admitted(limiter, replace(key, requests_per_minute=15), 20) == 5
    assert admitted(limiter, replace(key, requests_per_minute=5), 20) == 0
    clock.now += 60 * 15 / 5 - 1  # what was spent under the wider limit empties at the narrow one's pace
    assert admitted(limiter, replace(key, requests_per_minute=5), 20) == 4
    assert admitted(limiter, replace(key, requests_per_minute=None), 20) == 20
    assert admitted(limiter, key, 20) == 10  # what was asked without a limit is not counted afterwards
    inside = limiter.enter(Owner("k2"))
    with pytest.raises(TooManyError):
        limiter.enter(Owner("k2", concurrent=1))
    inside.close()
    limiter.enter(Owner("k2", concurrent=1))


def test_many_threads_get_exactly_what_one_would(limiter: Limiter) -> None:
    key, gate = Owner(requests_per_minute=500, concurrent=8), threading.Barrier(16)
    inside, most, lock = 0, 0, threading.Lock()

    def visit(_: int) -> int:
        nonlocal inside, most
        gate.wait()
        count = 0
        for _ in range(200):
            try:
                with limiter.enter(key):
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    with lock:
                        inside -= 1
                count += 1
            except TooManyError:
                continue
        return count

    with ThreadPoolExecutor(16) as pool:
        total = sum(pool.map(visit, range(16)))
    assert total == 500
    assert 1 <= most <= 8


def test_memory_is_bounded_by_who_asked_within_a_minute(limiter: Limiter, clock: Clock) -> None:
    held = Owner("held", requests_per_minute=6, concurrent=1)
    limiter.enter(held)
    assert admitted(limiter, Owner("spent", requests_per_minute=1), 1) == 1
    for number in range(50_000):
        limiter.enter(Owner(f"k{number}", requests_per_minute=60)).close()
        clock.now += 0.001
    assert len(limiter._accounts) <= 2 * 1_024
    with pytest.raises(TooManyError, match="under way"):
        limiter.enter(held)  # never forgotten while it holds a pass
    with pytest.raises(TooManyError, match="a minute"):
        limiter.enter(Owner("spent", requests_per_minute=1))  # nor before its minute is over


def test_tokens_beyond_the_limit_are_waited_for_before_the_next_request(
    limiter: Limiter, clock: Clock
) -> None:
    key = Owner(tokens_per_minute=600)
    with limiter.enter(key) as first:
        first.spend(500)
    with limiter.enter(key) as second:  # it is let in with 100 left, and takes more
        second.spend(200)
    with pytest.raises(
        TooManyError, match=r"600 tokens read and written a minute; try again in 10\.1 s"
    ) as caught:
        limiter.enter(key)
    assert caught.value.limit == "tokens_per_minute"
    assert caught.value.retry_after == pytest.approx(10.1)
    clock.now += caught.value.retry_after
    limiter.enter(key).close()
    limiter.enter(Owner("k2")).spend(10**6)
    limiter.enter(Owner("k2")).close()
