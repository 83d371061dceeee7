"""Which replica answers for a prompt: its home, as long as that is not busier than the rest. Knows no Ray.

A prompt is worth most where its keys and values lie already. So every name has an order of all replicas, by a
hash of both (rendezvous hashing, Thaler and Ravishankar 1998): when a replica comes or goes, only its own
prompts move. No replica takes more than its share of the requests under way (consistent hashing with bounded
loads, Mirrokni, Thorup and Zadimoghaddam 2018), so a hot prompt spreads and a cold one stays. And a prompt
that nobody holds goes where there is room for it, so that a library which just fits stays loaded.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Homes", "ranked"]


def ranked(name: str, replicas: Iterable[str]) -> list[str]:
    """All replicas in the order in which a name prefers them; alike in every process."""
    return sorted(replicas, key=lambda replica: _weight(name, replica), reverse=True)


def _weight(name: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{replica}\0{name}".encode(), digest_size=8).digest()


@dataclass(eq=False)
class _Replica:
    """What is known of one: its budget, requests under way, and the bytes it holds by name, the longest
    unused first. Of ``untold`` prompts the bytes are not known; they stand there with 0.
    """

    budget: int | None
    active: int = 0
    held: OrderedDict[str, int] = field(default_factory=OrderedDict)
    nbytes: int = 0
    untold: int = 0

    def hold(self, name: str, nbytes: int) -> None:
        self._count(self.held.get(name), -1)
        self.held[name] = nbytes
        self._count(nbytes, 1)

    def drop_oldest(self) -> str:
        name, nbytes = self.held.popitem(last=False)
        self._count(nbytes, -1)
        return name

    def _count(self, nbytes: int | None, sign: int) -> None:
        if nbytes is not None:
            self.nbytes += sign * nbytes
            self.untold += sign * (not nbytes)


class Homes:
    """The replicas there are, what they hold, and how busy they are; nothing here waits or asks.

    Args:
        budget: bytes of prompts that a replica holds that has not told; None for no limit.
        free: requests that a replica answers together at no loss, up to which it counts as idle.
        slack: how much more than its even share of all requests a replica may have under way.
    """

    def __init__(self, budget: int | None = None, *, free: int = 8, slack: float = 1.25) -> None:
        self._budget, self._free, self._slack = budget, free, slack
        self._replicas: dict[str, _Replica] = {}
        self._holders: dict[str, set[str]] = {}
        self._sizes: dict[str, int] = {}
        self._active = self._known_bytes = 0

    def there(self, replicas: Iterable[str]) -> None:
        """Told which replicas there are now; what is known of others is forgotten."""
        now = set(replicas)
        if now == self._replicas.keys():
            return
        for gone in self._replicas.keys() - now:
            self._active -= self._replicas[gone].active
            one = self._replicas.pop(gone)
            while one.held:
                self._let_go(gone, one)
        for new in now - self._replicas.keys():
            self._replicas[new] = _Replica(self._budget)

    def holds(self, replica: str, sizes: Mapping[str, int], budget: int | None) -> None:
        """Told by a replica what it holds and may hold, in bytes, which may be news of a while ago: what went
        there since is held as well, and used later.
        """
        for name, nbytes in sizes.items():
            self._known_bytes += nbytes - self._sizes.get(name, 0)
            self._sizes[name] = nbytes
        one = self._replicas.get(replica)
        if one is None:
            return
        one.budget = budget
        for name, nbytes in reversed(list(sizes.items())):
            known = name in one.held
            self._hold(replica, one, name, nbytes)
            if not known:
                one.held.move_to_end(name, last=False)
        self._fit(replica, one)

    def home(self, name: str) -> str:
        """The replica for a request now; there must be one.

        Of those with time for it the first that holds the prompt, else the first with room for it, else the
        first, each in the order of the name. One always has time, since the bound is above an even share.
        """
        share = math.ceil(self._slack * (self._active + 1) / len(self._replicas))
        most = max(self._free, share)
        holding = [r for r in self._holders.get(name, ()) if self._replicas[r].active < most]
        if holding:
            return ranked(name, holding)[0]
        able = ranked(name, (r for r, one in self._replicas.items() if one.active < most))
        fewest = min(len(one.held) for one in self._replicas.values())
        size = self._sizes.get(name) or self._mean
        return next((r for r in able if self._has_room(self._replicas[r], size, fewest)), able[0])

    def began(self, replica: str, name: str) -> bool:
        """A request for a prompt goes to a replica, which holds it from now on; no name is no prompt.

        Returns whether it did not hold the prompt before, as far as is known.
        """
        one = self._replicas.get(replica)
        if one is None:
            return False
        one.active += 1
        self._active += 1
        if not name:
            return False
        new = name not in one.held
        self._hold(replica, one, name, self._sizes.get(name, 0))
        one.held.move_to_end(name)
        self._fit(replica, one)
        return new

    def never_came(self, replica: str, name: str) -> None:
        """The request that would have brought a prompt to a replica went elsewhere."""
        one = self._replicas.get(replica)
        if one is not None and name in one.held:
            one.held.move_to_end(name, last=False)
            self._let_go(replica, one)

    def ended(self, replica: str) -> None:
        """A request to a replica has ended, however it did."""
        one = self._replicas.get(replica)
        if one is not None and one.active:
            one.active -= 1
            self._active -= 1

    def _hold(self, replica: str, one: _Replica, name: str, nbytes: int) -> None:
        one.hold(name, nbytes)
        self._holders.setdefault(name, set()).add(replica)

    def _fit(self, replica: str, one: _Replica) -> None:
        """Forget what a replica must have let go, the longest unused first."""
        while one.budget is not None and len(one.held) > 1 and self._bytes(one) > one.budget:
            self._let_go(replica, one)

    def _let_go(self, replica: str, one: _Replica) -> None:
        name = one.drop_oldest()
        self._holders[name].discard(replica)
        if not self._holders[name]:
            del self._holders[name]

    def _has_room(self, one: _Replica, size: float, fewest: int) -> bool:
        """Whether a prompt fits beside what is held. Before any size is known, all are taken to be alike."""
        if one.budget is None:
            return True
        return self._bytes(one) + size <= one.budget if self._sizes else len(one.held) == fewest

    def _bytes(self, one: _Replica) -> float:
        return one.nbytes + one.untold * self._mean

    @property
    def _mean(self) -> float:
        """What a prompt takes that was never told of: as much as a mean one; nothing before there is one."""
        return self._known_bytes / max(1, len(self._sizes))
