"""Places shared among those who ask, by weight: who comes next, who gives way, who may wait. Pure counting.

What is counted are rows, so one request for 128 answers counts 128 times. It knows owners and numbers, not
rows, requests or keys.

A place goes to the owner who holds least for its weight (max-min fairness; Bertsekas and Gallager 1992).
Where all are held, an owner who holds more than its share gives one to another who would still hold no more
than it. The queue has a threshold that moves with what is free of it (Choudhury and Hahne 1998), so that who
comes first cannot fill it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple, Protocol, TypeVar

__all__ = ["NOBODY", "Owner", "Places", "fair_order", "gives_way", "may_wait", "more_may_wait", "takes_turns"]


class Owner(NamedTuple):
    """Whose a row is.

    Attributes:
        id: tells owners apart.
        weight: its share beside others, above 0.
    """

    id: Hashable
    weight: float = 1.0


NOBODY = Owner(None)
"""All that is asked where nobody is told apart."""


class Places(NamedTuple):
    """How many more requests of an owner there is a place for.

    Attributes:
        now: at this moment.
        ever: where nobody else asks and none is under way.
    """

    now: int
    ever: int


class Owned(Protocol):
    """What waits or is under way."""

    @property
    def owner(self) -> Owner: ...
    @property
    def turn(self) -> int: ...


T = TypeVar("T", bound=Owned)


def fair_order(waiting: Iterable[T], held: Mapping[Hashable, int]) -> list[T]:
    """Those that wait in the order in which places go to them; those of one owner in that of their turns.

    Args:
        waiting: what has no place.
        held: places by owner's id.
    """
    in_turn = sorted(waiting, key=lambda one: one.turn)
    if len({one.owner.id for one in in_turn}) <= 1:
        return in_turn
    coming, ranked = Counter(held), list[tuple[float, int, T]]()
    for one in in_turn:
        coming[one.owner.id] += 1
        ranked.append((coming[one.owner.id] / one.owner.weight, one.turn, one))
    return [one for _, _, one in sorted(ranked, key=lambda each: each[:2])]


def gives_way(one: Owner, other: Owner, held: Mapping[Hashable, int]) -> bool:
    """Whether ``one`` gives a place to ``other``: even then it holds no less for its weight."""
    if one.id == other.id:
        return False
    left, then = held.get(one.id, 0) - 1, held.get(other.id, 0) + 1
    return left * other.weight >= then * one.weight


def takes_turns(one: Owner, other: Owner, held: Mapping[Hashable, int]) -> bool:
    """Whether ``one``, its turn over, lets ``other`` have its place: who then holds no more than it did."""
    if one.id == other.id:
        return True
    return held.get(one.id, 0) * other.weight >= (held.get(other.id, 0) + 1) * one.weight


def may_wait(owner: Owner, waiting: Mapping[Hashable, int], queue: int) -> bool:
    """Whether one more of an owner's may wait in a queue of so many places.

    An owner may fill its weight times what stays free beside it: alone half of the queue at weight 1, beside
    another who does the same a third. Whoever has nothing there finds a place.
    """
    free = queue - sum(waiting.values())
    return free > 0 and (owner.id is None or waiting.get(owner.id, 0) < max(1.0, owner.weight * free))


def more_may_wait(owner: Owner, waiting: Mapping[Hashable, int], queue: int) -> int:
    """How many more of an owner's may wait, one after the other."""
    then, more = Counter(waiting), 0
    while may_wait(owner, then, queue):
        then[owner.id] += 1
        more += 1
    return more
