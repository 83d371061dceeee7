"""Names to versions: who asks for a name leases what it means now. One lock guards all of it.

Knows names, leases, loads on their way, bytes, users and pins; not how a version is made from files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Condition, Event
from time import monotonic
from traceback import clear_frames
from types import TracebackType

from softprompt.config_io import nearest, shown
from softprompt.errors import ArtifactError, ConfigError, ResourceError
from softprompt.serving.version import Build, Version

__all__ = ["CachedVersion", "Lease", "Registry", "RegistryStats"]

_ROUNDS = 5
"""How often a lease looks again because the artifact was replaced while it was being loaded."""


@dataclass(frozen=True)
class RegistryStats:
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


@dataclass(frozen=True)
class CachedVersion:
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


class Lease:
    """The right to use one version: ``with registry.lease(name) as version: ...``.

    While it is open the version stays in memory, also when its artifact is replaced or removed. Close it when
    the request has ended, and let go of ``version`` then: its bytes may no longer be counted.
    """

    def __init__(self, cached: _Cached, give_back: Callable[[Lease], None]) -> None:
        self.version: Version = cached.version
        self._cached: _Cached | None = cached
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


@dataclass(eq=False)
class _Cached:
    """A version in memory: ``users`` leases are open on it, and its files looked like ``stamp``."""

    version: Version
    stamp: Hashable
    users: int = 0


@dataclass(eq=False)
class _Load:
    """A load on its way, shared by all who asked for that name and stamp meanwhile.

    It is done with a version, with an error, or with neither: then one has to look again.
    """

    name: str
    stamp: Hashable
    deadline: float
    waiters: int = 0
    cached: _Cached | None = None
    error: Exception | None = None
    done: Event = field(default_factory=Event)


class Registry:
    """The versions a server answers with: the bare base, and artifacts, loaded when first asked for.

    There is one current version a name, and beside those the *stale*: their artifact was replaced or removed,
    so nobody gets them any more, but requests still answer behind them. The bytes of all that is held never
    exceed the budget. A version that is just being built comes on top until it is admitted, so there are at
    most ``builds`` of those. The lock is never held while files are looked at or a version is built.

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
        self._build, self._stamp, self._names = build, stamp, names
        self._budget, self._patience = budget, patience
        self._turns = BoundedSemaphore(builds)
        # Notified when memory may have become free. Its lock is reentrant: the garbage collector may close a
        # forgotten lease in a thread that holds it.
        self._freed = Condition()
        self._base = _Cached(base, None)
        self._pinned = set(pinned)
        self._current: dict[str, _Cached] = {}  # the longest unused first
        self._stale: set[_Cached] = set()
        self._sizes: dict[str, tuple[Hashable, int]] = {}  # by name: the last stamp and its bytes
        self._loads: dict[tuple[str, Hashable], _Load] = {}
        self._hits = self._misses = self._evictions = self._failures = 0
        self._seconds = 0.0

    def lease(self, name: str) -> Lease:
        """What a name means now; loaded first where it is not in memory, which may take a while.

        Raises:
            ArtifactError: there is no such artifact (any more), it is damaged or is replaced all the time.
            WrongBaseError: it was learnt on another base.
            ResourceError: it does not fit into the memory budget.
            Exception: whatever else building it raised; all who waited for that build get the same error.
        """
        held = self.lease_held(name)
        if held is not None:
            return held
        for _ in range(_ROUNDS):
            stamp = self._present_stamp(name)
            with self._freed:
                cached = self._find(name, stamp)
                if cached is not None:
                    return self._hit(cached)
                self._misses += 1
                load = self._loads.get((name, stamp))
                first = load is None
                if load is None:
                    load = self._loads[name, stamp] = _Load(name, stamp, monotonic() + self._patience)
                load.waiters += 1
            try:
                if first:
                    self._run(load)
                load.done.wait()
            except BaseException:  # Ctrl-C: the others wait on
                with self._freed:
                    load.waiters -= 1
                    if load.cached is not None:
                        self._release(load.cached)
                raise
            if load.error is not None:
                raise load.error
            if load.cached is not None:
                return Lease(load.cached, self._give_back)
        raise ArtifactError(
            f"{name} was replaced again and again while it was being loaded; ask again when it is complete."
        )

    def lease_held(self, name: str) -> Lease | None:
        """What ``lease`` would give if that takes no loading, else None; never waits for a load."""
        with self._freed:
            if name == self._base.version.name:
                return self._hit(self._base)
            stale = (cached.version.name for cached in tuple(self._stale))
            if name not in self._current and name not in stale:
                return None  # without a look at its files, which may lie far away
        stamp = self._stamp(name)
        with self._freed:
            held = None if stamp is None else self._find(name, stamp)
            return None if held is None else self._hit(held)

    def pin(self, name: str) -> None:
        """Protect a name from being evicted; loads nothing, and it need not be loaded yet."""
        with self._freed:
            self._pinned.add(name)

    def unpin(self, name: str) -> None:
        """Protect a name no longer."""
        with self._freed:
            self._pinned.discard(name)
            self._freed.notify_all()

    def evict(self, name: str) -> bool:
        """Drop a version from memory; False where it is in use, pinned, not held, or the base."""
        with self._freed:
            found = any(cached.version.name == name for cached in self._idle())
            if found:
                self._drop(name)
            return found

    def loaded(self) -> list[CachedVersion]:
        """What is in memory: the base; the current, the longest unused first; the replaced and removed."""
        with self._freed:
            base = self._base.version
            told = [CachedVersion(base.name, base.digest, 0, self._base.users, True, True)]
            current = [(cached, True) for cached in tuple(self._current.values())]
            for cached, now in [*current, *((cached, False) for cached in tuple(self._stale))]:
                version, pinned = cached.version, now and cached.version.name in self._pinned
                told.append(
                    CachedVersion(version.name, version.digest, version.nbytes, cached.users, pinned, now)
                )
            return told

    @property
    def counts(self) -> RegistryStats:
        """Counters, all read at one moment."""
        with self._freed:
            return RegistryStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                failures=self._failures,
                bytes=self._nbytes(),
                budget=self._budget,
                seconds_loading=self._seconds,
            )

    # -- loading: called without the lock --------------------------------------------------------

    def _present_stamp(self, name: str) -> Hashable:
        """How the artifact's files look now; if there are none, nothing is kept for it."""
        stamp = self._stamp(name)
        if stamp is not None:
            return stamp
        with self._freed:
            self._retire(name)
            self._sizes.pop(name, None)
            self._freed.notify_all()
        near = nearest(name, (self._base.version.name, *self._names()))
        hint = f"did you mean {near}?" if near else "choose one of those that are listed."
        raise ArtifactError(f"There is no prompt called {shown(name)}; {hint}")

    def _run(self, load: _Load) -> None:
        """Load for all who wait; an error is theirs too, an interruption is not."""
        try:
            with self._turns:
                self._build_and_admit(load)
        except Exception as error:
            clear_frames(error.__traceback__)  # else what is half built lives as long as the error
            load.error = error
        finally:
            with self._freed:
                self._failures += load.error is not None
                self._finish(load)

    def _build_and_admit(self, load: _Load) -> None:
        """Admit a new version, unless the files are others than were asked for, before or after."""
        name, stamp = load.name, load.stamp
        if self._stamp(name) != stamp:
            return
        with self._freed:
            self._retire(name)  # what is held was made from other files
            known, nbytes = self._sizes.get(name, (None, 0))
            self._make_room(load, nbytes if known == stamp else 0)
        began = monotonic()
        try:
            version = self._build(name)
        except Exception:
            if self._stamp(name) == stamp:
                raise
            return  # what failed is gone
        finally:
            with self._freed:
                self._seconds += monotonic() - began
        if self._stamp(name) == stamp:
            with self._freed:
                self._sizes[name] = stamp, version.nbytes
                self._make_room(load, version.nbytes)
                # Used by all who wait from here on, so nothing evicts it before they have it.
                load.cached = _Cached(version, stamp, load.waiters)
                self._put(load.cached)
                self._finish(load)

    # -- memory: called with the lock -------------------------------------------------------------

    def _finish(self, load: _Load) -> None:
        if not load.done.is_set():
            del self._loads[load.name, load.stamp]
            load.done.set()

    def _make_room(self, load: _Load, nbytes: int) -> None:
        """Evict for a version; where that does not suffice, wait for leases to be given back."""
        budget = self._budget
        if budget is None:
            return
        if nbytes > budget:
            raise ResourceError(
                f"{load.name} takes {nbytes:,} bytes of memory, more than the whole budget of {budget:,}; "
                "raise the budget."
            )

        def fits() -> bool:
            """Evict the longest unused until it does; nothing if that would not suffice."""
            lacking = self._nbytes() + nbytes - budget
            idle = self._idle()
            if lacking > sum(cached.version.nbytes for cached in idle):
                return False
            for cached in idle:
                if lacking <= 0:
                    break
                self._drop(cached.version.name)
                lacking -= cached.version.nbytes
            return True

        if not self._freed.wait_for(fits, load.deadline - monotonic()):
            taken = self._nbytes() - sum(cached.version.nbytes for cached in self._idle())
            raise ResourceError(
                f"{load.name} takes {nbytes:,} bytes of memory, but {taken:,} of the budget of {budget:,} "
                "are in use or pinned; ask again later, unpin a prompt or raise the budget."
            )

    def _nbytes(self) -> int:
        """Bytes of all that is held, the stale included."""
        return sum(cached.version.nbytes for cached in (*self._current.values(), *self._stale))

    def _idle(self) -> list[_Cached]:
        """What may be evicted, the longest unused first."""
        current = tuple(self._current.items())
        return [cached for name, cached in current if not cached.users and name not in self._pinned]

    def _find(self, name: str, stamp: Hashable) -> _Cached | None:
        """The version of a name that was made from files of that stamp; current again, if it was stale."""
        for cached in tuple(self._stale):
            if (cached.version.name, cached.stamp) == (name, stamp):  # the files were put back
                self._stale.discard(cached)
                self._put(cached)
        current = self._current.get(name)
        return current if current is not None and current.stamp == stamp else None

    def _put(self, cached: _Cached) -> None:
        """Hold a version as the current one of its name; room must have been made."""
        self._retire(cached.version.name)
        self._current[cached.version.name] = cached
        assert self._budget is None or self._nbytes() <= self._budget, "no room was made"

    def _retire(self, name: str) -> None:
        """Keep the version of a name only for those who use it; drop it where nobody does."""
        cached = self._current.pop(name, None)
        if cached is not None and cached.users:
            self._stale.add(cached)

    def _drop(self, name: str) -> None:
        del self._current[name]
        self._evictions += 1
        self._freed.notify_all()

    def _hit(self, cached: _Cached) -> Lease:
        self._hits += 1
        cached.users += 1
        self._touch(cached)
        return Lease(cached, self._give_back)

    def _give_back(self, lease: Lease) -> None:
        with self._freed:
            cached, lease._cached = lease._cached, None
            if cached is not None:
                self._release(cached)

    def _release(self, cached: _Cached) -> None:
        """One user less; a stale version leaves with its last."""
        cached.users -= 1
        self._touch(cached)
        if not cached.users:
            self._stale.discard(cached)
        self._freed.notify_all()

    def _touch(self, cached: _Cached) -> None:
        """Make it the last used."""
        name = cached.version.name
        if self._current.get(name) is cached:
            self._current[name] = self._current.pop(name)
