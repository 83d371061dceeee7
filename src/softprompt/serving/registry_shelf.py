"""What is held in memory, and what of it may leave. Knows bytes, users and pins; knows neither files nor
threads: whoever calls holds the registry's lock.

There is one current version a name, and beside those the *retired*: their artifact was replaced or removed,
so nobody gets them any more, but requests still answer behind them.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass

from softprompt.serving.version import Version

__all__ = ["Held", "Shelf", "Slot"]


@dataclass(frozen=True)
class Held:
    """What can be told of one version in memory.

    Attributes:
        name: of the artifact, or of the base.
        digest: hash of its content, hex.
        nbytes: what it takes of the budget; the base takes nothing.
        users: leases that are open.
        pinned: whether it is protected from being evicted.
        current: whether the next lease may get it; False once it was seen to be replaced or removed.
    """

    name: str
    digest: str
    nbytes: int
    users: int
    pinned: bool
    current: bool


@dataclass(eq=False)
class Slot:
    """A version in memory: ``users`` leases are open on it, and its files looked like ``stamp``."""

    version: Version
    stamp: Hashable
    users: int = 0

    @property
    def nbytes(self) -> int:
        return self.version.nbytes


class Shelf:
    """Versions in memory; the bytes of all of them never exceed ``budget``.

    Attributes:
        budget: bytes; None for no limit.
        pinned: names whose current version is not evicted.
        evictions: how many idle versions have left to make room, or by name.
    """

    def __init__(self, budget: int | None, pinned: Collection[str]) -> None:
        self.budget = budget
        self.pinned = set(pinned)
        self.evictions = 0
        self._current: dict[str, Slot] = {}  # the longest unused first
        self._retired: set[Slot] = set()
        self._sizes: dict[str, tuple[Hashable, int]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held, the retired included."""
        return sum(slot.nbytes for slot in (*self._current.values(), *self._retired))

    @property
    def idle_nbytes(self) -> int:
        """Bytes of what may be evicted."""
        return sum(slot.nbytes for slot in self._idle())

    def find(self, name: str, stamp: Hashable) -> Slot | None:
        """The version of a name that was made from files of that stamp; current again, if it was retired."""
        for slot in tuple(self._retired):
            if (slot.version.name, slot.stamp) == (name, stamp):  # the files were put back
                self._retired.discard(slot)
                self.put(slot)
        current = self._current.get(name)
        return current if current is not None and current.stamp == stamp else None

    def expected(self, name: str, stamp: Hashable) -> int:
        """Bytes the version of that stamp took when it was last held; 0 if it never was."""
        known, nbytes = self._sizes.get(name, (None, 0))
        return nbytes if known == stamp else 0

    def note_size(self, name: str, stamp: Hashable, nbytes: int) -> None:
        """Remember how large a version is, so that room can be made before it is built again."""
        self._sizes[name] = stamp, nbytes

    def put(self, slot: Slot) -> None:
        """Hold a version as the current one of its name; room must have been made."""
        self.retire(slot.version.name)
        self._current[slot.version.name] = slot
        assert self.budget is None or self.nbytes <= self.budget, "no room was made"

    def take(self, slot: Slot) -> None:
        """One user more."""
        slot.users += 1
        self._touch(slot)

    def give_back(self, slot: Slot) -> None:
        """One user less; a retired version leaves with its last."""
        slot.users -= 1
        self._touch(slot)
        if not slot.users:
            self._retired.discard(slot)

    def retire(self, name: str) -> None:
        """Keep the version of a name only for those who use it; drop it where nobody does."""
        slot = self._current.pop(name, None)
        if slot is not None and slot.users:
            self._retired.add(slot)

    def forget(self, name: str) -> None:
        """Retire a name that is no more."""
        self.retire(name)
        self._sizes.pop(name, None)

    def evict(self, name: str) -> bool:
        """Drop the version of a name unless it is used, pinned or not there; whether it was dropped."""
        dropped = any(slot.version.name == name for slot in self._idle())
        if dropped:
            del self._current[name]
            self.evictions += 1
        return dropped

    def make_room(self, nbytes: int) -> bool:
        """Evict until so many bytes more fit, the longest unused first; nothing if that would not suffice.

        Returns:
            Whether they fit.
        """
        if self.budget is None:
            return True
        lacking = self.nbytes + nbytes - self.budget
        if lacking > self.idle_nbytes:
            return False
        for slot in self._idle():
            if lacking <= 0:
                break
            self.evict(slot.version.name)
            lacking -= slot.nbytes
        return True

    def held(self) -> list[Held]:
        """The current versions, the longest unused first, then the retired."""
        current = [self._told(slot, True) for slot in tuple(self._current.values())]
        return current + [self._told(slot, False) for slot in tuple(self._retired)]

    def _idle(self) -> list[Slot]:
        """What may be evicted, the longest unused first."""
        current = tuple(self._current.items())
        return [slot for name, slot in current if not slot.users and name not in self.pinned]

    def _touch(self, slot: Slot) -> None:
        name = slot.version.name
        if self._current.get(name) is slot:
            self._current[name] = self._current.pop(name)

    def _told(self, slot: Slot, current: bool) -> Held:
        version = slot.version
        pinned = current and version.name in self.pinned
        return Held(version.name, version.digest, slot.nbytes, slot.users, pinned, current)
