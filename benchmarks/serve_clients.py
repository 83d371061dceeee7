"""Clients that each send their next request when the last one has come back, and what they waited.

It knows sides and clocks; it does not know models or what an answer means.
"""

from __future__ import annotations

import itertools
import statistics
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from serve_loads import Answer, Ask

__all__ = ["Side", "Timing", "closed_loop"]


class Side(Protocol):
    """Somebody who answers.

    Attributes:
        name: of the side.
        most: how many requests it takes at once, one lot after another; None where every client has a thread
            of its own and the side arranges them itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def most(self) -> int | None: ...

    def answer(self, asks: Sequence[Ask], new_tokens: int) -> list[Answer]:
        """The answers to some requests; from several threads where ``most`` is None."""
        ...


@dataclass(frozen=True)
class Timing:
    """What some clients saw.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: seconds of each request that was sent once all clients were under way, so not of the first
            one of each client; may be none.
        answers: in the order of the requests.
    """

    seconds: float
    latencies: tuple[float, ...]
    answers: tuple[Answer, ...]

    def percentile(self, share: float) -> float | None:
        """The latency that this share of the requests did not exceed."""
        if not self.latencies:
            return None
        if len(self.latencies) == 1:
            return self.latencies[0]
        return statistics.quantiles(self.latencies, n=1000, method="inclusive")[round(share * 1000) - 1]


def closed_loop(side: Side, asks: Sequence[Ask], clients: int, new_tokens: int) -> Timing:
    """Let ``clients`` clients send these requests, each the next one there is when its last has come back."""
    run = _in_lots if side.most is not None else _in_threads
    begun = perf_counter()
    times, answers = run(side, asks, clients, new_tokens)
    return Timing(perf_counter() - begun, tuple(times[clients:]), tuple(answers))


def _in_lots(
    side: Side, asks: Sequence[Ask], clients: int, new_tokens: int
) -> tuple[list[float], list[Answer]]:
    """The side does one lot after another and is its clients' clock, so no threads are needed."""
    assert side.most is not None
    times, answers = [0.0] * len(asks), [Answer()] * len(asks)
    coming, begun = iter(range(len(asks))), perf_counter()
    waiting = deque((number, begun) for number in itertools.islice(coming, clients))
    while waiting:
        lot = [waiting.popleft() for _ in range(min(side.most, len(waiting)))]
        found = side.answer([asks[number] for number, _ in lot], new_tokens)
        now = perf_counter()
        for (number, sent), answer in zip(lot, found, strict=True):
            times[number], answers[number] = now - sent, answer
            waiting.extend((after, now) for after in itertools.islice(coming, 1))
    return times, answers


def _in_threads(
    side: Side, asks: Sequence[Ask], clients: int, new_tokens: int
) -> tuple[list[float], list[Answer]]:
    times, answers = [0.0] * len(asks), [Answer()] * len(asks)
    coming, faults = iter(range(len(asks))), list[BaseException]()

    def client() -> None:
        try:
            for number in coming:  # a range's iterator hands every number to one thread only
                sent = perf_counter()
                (answers[number],) = side.answer([asks[number]], new_tokens)
                times[number] = perf_counter() - sent
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=client) for _ in range(min(clients, len(asks)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return times, answers
