"""Names to versions: who asks for a name leases what it means now. Knows names and leases; does not know how
versions are loaded (``registry_loader``), nor which of them may leave memory (``registry_shelf``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from threading import Condition
from types import TracebackType

from softprompt.config_io import nearest, shown
from softprompt.errors import ArtifactError, ConfigError
from softprompt.serving.registry_loader import Loader
from softprompt.serving.registry_shelf import Held, Shelf, Slot
from softprompt.serving.version import Build, Version

__all__ = ["Held", "Lease", "Registry", "RegistryCounts"]

_ROUNDS = 5
"""How often a lease looks again because the artifact was replaced while it was being loaded."""


@dataclass(frozen=True)
class RegistryCounts:
    """Counters since the start, for metrics.

    Attributes:
        hits: leases answered from memory, those of the base included.
        misses: times a lease had to wait for a load.
        evictions: versions dropped to make room, or by ``evict``; the replaced and removed are not counted.
        failures: loads that ended in an error, however many waited for them.
        bytes: held now, beyond the base.
        budget: the most bytes that may be held; None for no limit.
        seconds_loading: spent in building versions.
    """

    hits: int
    misses: int
    evictions: int
    failures: int
    bytes: int
    budget: int | None
    seconds_loading: float


class Lease:
    """The right to use one version: ``with registry.lease(name) as version: ...``.

    While it is open the version stays in memory, also when its artifact is replaced or removed. Close it when
    the request has ended, and let go of ``version`` then: its bytes may no longer be counted.
    """

    def __init__(self, slot: Slot, give_back: Callable[[Lease], None]) -> None:
        self.version: Version = slot.version
        self._slot: Slot | None = slot
        self._give_back = give_back

    def close(self) -> None:
        """Give the version back; from any thread, and as often as one likes."""
        self._give_back(self)

    def __enter__(self) -> Version:
        return self.version

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Registry:
    """The versions a server answers with: the bare base, and artifacts, loaded when first asked for.

    The bytes of what is held never exceed the budget. A version that is just being built comes on top until
    it is admitted, so there are at most ``builds`` of those.

    Args:
        build: loads a version; slow, may raise.
        stamp: how an artifact's files look now: a value that changes when they are replaced, None where there
            is no such artifact. Called at every lease, with names from strangers.
        names: the artifacts there are, for "did you mean".
        base: the bare base. It answers to its own name, costs nothing and never leaves.
        budget: bytes that versions may take beyond the base; None for no limit.
        pinned: names that are protected from the start; nothing is loaded for them.
        builds: how many versions are built at a time, since they share the processor.
        patience: seconds, from when a load is asked for, that it may wait for others to give memory back;
            the next loads wait with it.

    Raises:
        ConfigError: a negative budget.
    """

    def __init__(
        self,
        build: Build,
        stamp: Callable[[str], Hashable | None],
        names: Callable[[], Sequence[str]],
        *,
        base: Version,
        budget: int | None = None,
        pinned: Collection[str] = (),
        builds: int = 1,
        patience: float = 10.0,
    ) -> None:
        if budget is not None and budget < 0:
            raise ConfigError(f"The memory budget is {budget} bytes; give 0 or more, or none for no limit.")
        self._stamp, self._names = stamp, names
        self._base = Slot(base, None)
        # Its lock is reentrant: the garbage collector may close a forgotten lease in a thread that holds it.
        self._freed = Condition()
        self._shelf = Shelf(budget, pinned)
        self._loader = Loader(build, stamp, self._shelf, self._freed, builds=builds, patience=patience)
        self._hits = 0

    def lease(self, name: str) -> Lease:
        """What a name means now; loaded first where it is not in memory, which may take a while.

        Raises:
            ArtifactError: there is no such artifact (any more), it is damaged or is replaced all the time.
            WrongBaseError: it was learnt on another base.
            ResourceError: it does not fit into the memory budget.
            Exception: whatever else building it raised; all who waited for that build get the same error.
        """
        held_now = self.lease_held(name)
        if held_now is not None:
            return held_now
        for _ in range(_ROUNDS):
            stamp = self._present_stamp(name)
            with self._freed:
                held = self._shelf.find(name, stamp)
                if held is not None:
                    return self._hit(held)
                flight, flying = self._loader.board(name, stamp)
            loaded = self._loader.travel(flight, flying)
            if loaded is not None:
                return Lease(loaded, self._give_back)
        raise ArtifactError(
            f"{name} was replaced again and again while it was being loaded; ask again when it is complete."
        )

    def lease_held(self, name: str) -> Lease | None:
        """What ``lease`` would give if that takes no loading, else None; never waits for a load."""
        stamp = None if name == self._base.version.name else self._stamp(name)
        with self._freed:
            if name == self._base.version.name:
                return self._hit(self._base)
            held = None if stamp is None else self._shelf.find(name, stamp)
            return None if held is None else self._hit(held)

    def pin(self, name: str) -> None:
        """Protect a name from being evicted; loads nothing, and it need not be loaded yet."""
        with self._freed:
            self._shelf.pinned.add(name)

    def unpin(self, name: str) -> None:
        """Protect a name no longer."""
        with self._freed:
            self._shelf.pinned.discard(name)
            self._freed.notify_all()

    def evict(self, name: str) -> bool:
        """Drop a version from memory; False where it is in use, pinned, not held, or the base."""
        with self._freed:
            dropped = self._shelf.evict(name)
            self._freed.notify_all()
            return dropped

    def loaded(self) -> list[Held]:
        """What is in memory: the base; the current, the longest unused first; the replaced and removed."""
        with self._freed:
            base = self._base.version
            return [Held(base.name, base.digest, 0, self._base.users, True, True), *self._shelf.held()]

    @property
    def counts(self) -> RegistryCounts:
        """Counters, all read at one moment."""
        with self._freed:
            shelf, loader = self._shelf, self._loader
            return RegistryCounts(
                hits=self._hits,
                misses=loader.misses,
                evictions=shelf.evictions,
                failures=loader.failures,
                bytes=shelf.nbytes,
                budget=shelf.budget,
                seconds_loading=loader.seconds,
            )

    def _present_stamp(self, name: str) -> Hashable:
        """How the artifact's files look now; if there are none, nothing is kept for it."""
        stamp = self._stamp(name)
        if stamp is not None:
            return stamp
        with self._freed:
            self._shelf.forget(name)
            self._freed.notify_all()
        near = nearest(name, (self._base.version.name, *self._names()))
        hint = f"did you mean {near}?" if near else "choose one of those that are listed."
        raise ArtifactError(f"There is no prompt called {shown(name)}; {hint}")

    def _hit(self, slot: Slot) -> Lease:
        self._hits += 1
        self._shelf.take(slot)
        return Lease(slot, self._give_back)

    def _give_back(self, lease: Lease) -> None:
        with self._freed:
            slot, lease._slot = lease._slot, None
            if slot is not None:
                self._shelf.give_back(slot)
                self._freed.notify_all()
