"""Threads that lease, replace, remove, break, evict and pin at random never see a promise broken."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import pytest

from serving.shop import SIZE, Shop, holds, wrong_base
from softprompt.errors import ArtifactError, ResourceError, WrongBaseError
from softprompt.serving.registry import Lease, Registry

NAMES = "abcdef"
BUDGET = 5 * SIZE
SECONDS = 1.2


class Storm:
    """A registry with a budget too small for its artifacts, and what was seen of it."""

    def __init__(self, builds: int) -> None:
        self.shop = Shop()
        self.registry: Registry = self.shop.registry(budget=BUDGET, builds=builds, patience=0.02)
        self.newest = dict.fromkeys(NAMES, 0)
        self.leases = self.refusals = 0
        self._lock = Lock()
        for name in NAMES:
            self.replace(name, random.Random(0))

    def blow(self, seed: int) -> None:
        """One thread's part, for a while."""
        dice = random.Random(seed)
        acts = [self.lease] * 12 + [self.replace] * 2 + [self.remove, self.toggle, self.evict]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            dice.choice(acts)(dice.choice(NAMES), dice)
            self.look()

    def lease(self, name: str, dice: random.Random) -> None:
        oldest = self.shop.stamp(name) or 0
        try:
            lease = self.registry.lease(name)
        except (ArtifactError, ResourceError, WrongBaseError):
            self.refusals += 1
            return
        self.leases += 1
        self.check(lease, oldest, self.newest[name])
        if dice.random() < 0.5:
            time.sleep(dice.random() * 0.01)
        # Whatever happened to its artifact and however short memory was: it is still there.
        mine = lease.version.name, lease.version.digest
        (users,) = [each.users for each in self.registry.loaded() if (each.name, each.digest) == mine]
        assert users >= 1
        lease.close()

    def check(self, lease: Lease, oldest: int, newest: int) -> None:
        """What was leased is what the name meant at some moment between asking and getting it."""
        content = int(lease.version.digest, 16)
        assert oldest <= content <= newest
        assert holds(lease.version, content)

    def replace(self, name: str, dice: random.Random) -> None:
        with self._lock:
            self.newest[name] += 1
            fault = wrong_base(name) if dice.random() < 0.2 else None
            self.shop.write(name, content=self.newest[name], nbytes=dice.randint(1, 4) * SIZE, fault=fault)

    def remove(self, name: str, dice: random.Random) -> None:
        self.shop.remove(name)

    def toggle(self, name: str, dice: random.Random) -> None:
        dice.choice([self.registry.pin, self.registry.unpin, self.registry.unpin])(name)

    def evict(self, name: str, dice: random.Random) -> None:
        self.registry.evict(name)

    def look(self) -> None:
        """The budget holds at every moment."""
        assert self.registry.counts.bytes <= BUDGET
        held = self.registry.loaded()
        assert sum(each.nbytes for each in held) <= BUDGET
        assert all(each.users >= 0 for each in held)
        assert all(each.users > 0 for each in held if not each.current)
        current = [each.name for each in held if each.current]
        assert len(current) == len(set(current))


@pytest.mark.parametrize("builds", [1, 3])
def test_a_storm(builds: int) -> None:
    storm = Storm(builds)
    with ThreadPoolExecutor(8) as pool:
        for blown in [pool.submit(storm.blow, seed) for seed in range(8)]:
            blown.result()
    assert storm.leases > 50
    assert storm.refusals > 10
    assert storm.registry.counts.evictions > 10
    assert all(each.users == 0 and each.current for each in storm.registry.loaded())
    for name in NAMES:  # and it serves on
        storm.registry.unpin(name)
    for name in NAMES:
        storm.newest[name] += 1
        storm.shop.write(name, content=storm.newest[name])
        lease = storm.registry.lease(name)
        storm.check(lease, storm.newest[name], storm.newest[name])
        lease.close()
