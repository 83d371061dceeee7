"""Artifacts in memory that tests replace, remove, break and hold up while a registry loads them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

import torch

import tiny
from library import samples
from softprompt.errors import WrongBaseError
from softprompt.library.prompt import Prompt
from softprompt.serving.registry import Registry
from softprompt.serving.version import Version

SIZE = 100
"""Bytes a version takes in these tests, unless it says otherwise."""
_PROMPTS = 20
"""So many contents have numbers of their own; further ones differ in their digest."""


@functools.cache
def prompt(seed: int) -> Prompt:
    """A soft prompt of random numbers, read by the tiny base."""
    base = tiny.base()
    return Prompt(base, samples.soft(base, seed), samples.bound(base, "prompt-tuning", samples.P))


def version(name: str, content: int, nbytes: int = SIZE) -> Version:
    """What an artifact of that content is loaded as; the digest is the content, in hex."""
    made = prompt(content % _PROMPTS)
    card = made.card.model_copy(update={"name": name})
    return Version(name, f"{content:064x}", card, made.prefix, None, made.base, nbytes, made)


def holds(found: Version, content: int) -> bool:
    """Whether a version has the digest, the keys and the values of that content."""
    wanted = prompt(content % _PROMPTS).prefix
    pairs = zip((*found.prefix.keys, *found.prefix.values), (*wanted.keys, *wanted.values), strict=True)
    return int(found.digest, 16) == content and all(torch.equal(mine, theirs) for mine, theirs in pairs)


BASE = version(tiny.base().name, 999, nbytes=7)


@dataclass
class Shop:
    """Artifacts by name: ``write`` replaces one, ``holding`` stops its builds half-way."""

    builds: list[str] = field(default_factory=list)
    after_build: Callable[[str], None] = lambda name: None
    most_at_once: int = 0
    _there: dict[str, tuple[int, int, Exception | None]] = field(default_factory=dict)
    _gates: dict[str, tuple[Event, Event]] = field(default_factory=dict)
    _now: int = 0
    _lock: Any = field(default_factory=Lock)

    def write(
        self, *names: str, content: int = 1, nbytes: int = SIZE, fault: Exception | None = None
    ) -> None:
        for name in names:
            self._there[name] = content, nbytes, fault

    def remove(self, name: str) -> None:
        self._there.pop(name, None)

    def stamp(self, name: str) -> int | None:
        artifact = self._there.get(name)
        return None if artifact is None else artifact[0]

    def names(self) -> list[str]:
        return sorted(self._there)

    def build(self, name: str) -> Version:
        content, nbytes, fault = self._there[name]
        with self._lock:
            self.builds.append(name)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            begun, go_on = self._gates.get(name, (Event(), None))
            begun.set()
            assert go_on is None or go_on.wait(20), "a test forgot to let a build go on"
            if fault is not None:
                raise fault
            return version(name, content, nbytes)
        finally:
            with self._lock:
                self._now -= 1
            self.after_build(name)

    @contextmanager
    def holding(self, name: str) -> Iterator[Event]:
        """Builds of a name wait until the block ends; the event is set when one has begun."""
        begun, go_on = self._gates[name] = Event(), Event()
        try:
            yield begun
        finally:
            del self._gates[name]
            go_on.set()

    def registry(self, budget: int | None = None, **options: Any) -> Registry:
        return Registry(self.build, self.stamp, self.names, base=BASE, budget=budget, **options)


def wrong_base(name: str) -> WrongBaseError:
    return WrongBaseError(f"{name} was learnt on another base; load that one.")


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def held(registry: Registry) -> list[str]:
    """Names in memory beyond the base."""
    first, *others = registry.loaded()
    assert first.name == BASE.name
    return [each.name for each in others]


def touch(registry: Registry, *names: str) -> None:
    for name in names:
        registry.lease(name).close()


def one_sentence(error: BaseException) -> str:
    """What an error says, plainly."""
    text = str(error)
    assert text.endswith((".", "?"))
    assert "\n" not in text
    return text


def waiting(registry: Registry, leases: int) -> None:
    """Wait until so many leases have had to wait for a load."""
    until(lambda: registry.counts.misses == leases)
