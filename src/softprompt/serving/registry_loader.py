"""One load for all who ask. Knows how a version is built once, and admitted if it fits and its files are
still those it was made from; does not know what a lease is.

A *flight* is a load on its way, shared by its passengers: all who asked for that name and stamp meanwhile.
The lock is held for bookkeeping only, never while files are looked at or a version is built.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Condition, Event
from time import monotonic
from traceback import clear_frames

from softprompt.errors import ResourceError
from softprompt.serving.registry_shelf import Shelf, Slot
from softprompt.serving.version import Build, Version

__all__ = ["Flight", "Loader"]


@dataclass(eq=False)
class Flight:
    """A load on its way. It lands with a slot, with an error, or with neither: then one has to look again."""

    name: str
    stamp: Hashable
    deadline: float
    passengers: int = 0
    slot: Slot | None = None
    error: Exception | None = None
    landed: Event = field(default_factory=Event)


class Loader:
    """Loads versions onto a shelf.

    Args:
        build: loads a version; slow, called without the lock.
        stamp: how an artifact's files look now.
        shelf: where versions are held.
        freed: the lock of the shelf and of this object; it is notified when memory may have become free.
        builds: how many versions are built at a time.
        patience: seconds, from when a load is asked for, that it may wait for memory.

    Attributes:
        misses: times somebody had to wait for a load.
        failures: loads that ended in an error, however many waited for them.
        seconds: spent in building versions.
    """

    def __init__(
        self,
        build: Build,
        stamp: Callable[[str], Hashable | None],
        shelf: Shelf,
        freed: Condition,
        *,
        builds: int,
        patience: float,
    ) -> None:
        self._build, self._stamp, self._shelf, self._freed = build, stamp, shelf, freed
        self._patience = patience
        self._turns = BoundedSemaphore(builds)
        self._flights: dict[tuple[str, Hashable], Flight] = {}
        self.misses = self.failures = 0
        self.seconds = 0.0

    def board(self, name: str, stamp: Hashable) -> tuple[Flight, bool]:
        """The flight to a version that is not held, and whether the caller flies it; with the lock held."""
        self.misses += 1
        flight = self._flights.get((name, stamp))
        first = flight is None
        if flight is None:
            flight = self._flights[name, stamp] = Flight(name, stamp, monotonic() + self._patience)
        flight.passengers += 1
        return flight, first

    def travel(self, flight: Flight, flying: bool) -> Slot | None:
        """The version, already counted as used by the caller; None if the files were replaced meanwhile.

        Raises:
            ResourceError: it does not fit into the budget.
            Exception: whatever else building it raised, the same object for every passenger.
        """
        try:
            if flying:
                self._fly(flight)
            flight.landed.wait()
        except BaseException:  # Ctrl-C: the others travel on
            self._leave(flight)
            raise
        if flight.error is not None:
            raise flight.error
        return flight.slot

    def _leave(self, flight: Flight) -> None:
        with self._freed:
            flight.passengers -= 1
            if flight.slot is not None:
                self._shelf.give_back(flight.slot)
                self._freed.notify_all()

    def _fly(self, flight: Flight) -> None:
        """Load for all on board; an error is theirs too, an interruption is not."""
        try:
            with self._turns:
                self._load(flight)
        except Exception as error:
            clear_frames(error.__traceback__)  # else what is half built lives as long as the error
            flight.error = error
        finally:
            with self._freed:
                self.failures += flight.error is not None
                self._land(flight)

    def _load(self, flight: Flight) -> None:
        """Build and admit, unless the files are others than were asked for, before or after."""
        if not self._still_there(flight):
            return
        with self._freed:
            self._shelf.retire(flight.name)  # what is held was made from other files
            self._make_room(flight, self._shelf.expected(flight.name, flight.stamp))
        try:
            version = self._timed_build(flight.name)
        except Exception:
            if self._still_there(flight):
                raise
            return  # what failed is gone
        if self._still_there(flight):
            self._admit(flight, version)

    def _still_there(self, flight: Flight) -> bool:
        return self._stamp(flight.name) == flight.stamp

    def _timed_build(self, name: str) -> Version:
        began = monotonic()
        try:
            return self._build(name)
        finally:
            with self._freed:
                self.seconds += monotonic() - began

    def _admit(self, flight: Flight, version: Version) -> None:
        with self._freed:
            self._shelf.note_size(flight.name, flight.stamp, version.nbytes)
            self._make_room(flight, version.nbytes)
            # Used by all on board from here on, so nothing evicts it before they have it.
            flight.slot = Slot(version, flight.stamp, flight.passengers)
            self._shelf.put(flight.slot)
            self._land(flight)

    def _land(self, flight: Flight) -> None:
        if not flight.landed.is_set():
            del self._flights[flight.name, flight.stamp]
            flight.landed.set()

    def _make_room(self, flight: Flight, nbytes: int) -> None:
        """Evict for a version; where that does not suffice, wait for leases to be given back."""
        budget = self._shelf.budget
        if budget is not None and nbytes > budget:
            raise ResourceError(
                f"{flight.name} takes {nbytes:,} bytes of memory, more than the whole budget of {budget:,}; "
                "raise the budget."
            )
        if not self._freed.wait_for(lambda: self._shelf.make_room(nbytes), flight.deadline - monotonic()):
            taken = self._shelf.nbytes - self._shelf.idle_nbytes
            raise ResourceError(
                f"{flight.name} takes {nbytes:,} bytes of memory, but {taken:,} of the budget of {budget:,} "
                "are in use or pinned; ask again later, unpin a prompt or raise the budget."
            )
