"""How a hundred thousand prompts would be served by 2 to 200 replicas: a simulation with measured figures.

    python benchmarks/scale.py [--seconds 60]

The choice of a replica is the real one (``softprompt.cluster.homes``), what a replica holds is the real rule
(least recently used, within a budget of bytes); time is simulated. A replica answers one request after the
other in the time that its measured rate leaves for one, and a load keeps it busy for the measured time of
one. Requests come at random (Poisson) at a share of what all replicas could answer, for prompts of Zipf's
popularity. Beside it stands a door that sends each request to the least busy replica, whatever it holds. It
writes ``results/scale.json``, of which docs/scale.md tells; a few minutes, on one core, with no torch.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path

from softprompt.cluster.homes import Homes

RESULTS = Path(__file__).parent.parent / "results" / "scale.json"

PROMPTS = 100_000
RATE = 25.7
"""Requests a second of one replica, of the bundled base on two cores: results/serve.jsonl, classify-20, eight
clients, bfloat16."""
LOAD = 0.13
"""Seconds in which a replica loads a prompt: results/thousand.jsonl, cold less warm."""
BYTES = 921_600
"""Of 20 positions on the bundled base: results/thousand.jsonl."""
MEMORY = 2 * 10**9
"""Bytes a replica keeps for prompts."""


@dataclass(frozen=True)
class Case:
    """One simulation.

    Attributes:
        replicas: how many there are.
        door: "home" for the real choice, "least busy" for any replica.
        memory: bytes of prompts that each holds.
        zipf: exponent of the prompts' popularity.
        share: of what all replicas could answer if nothing had to be loaded.
        free: requests up to which a replica counts as idle (``--rows``).
    """

    replicas: int
    door: str = "home"
    memory: int = MEMORY
    zipf: float = 1.0
    share: float = 0.6
    free: int = 8


@dataclass(frozen=True)
class Outcome:
    """What came of one: shares, milliseconds, and hours of replicas for a million requests."""

    requests_a_second: float
    hit_rate: float
    loads_a_second: float
    busy: float
    p50_ms: float
    p99_ms: float
    replica_hours_a_million: float
    most_replicas_of_a_prompt: int


class LeastBusy:
    """Any replica, the one with the fewest requests under way."""

    def __init__(self, replicas: list[str]) -> None:
        self._active = dict.fromkeys(replicas, 0)

    def home(self, name: str) -> str:
        fewest = min(self._active.values())
        return random.Random(name).choice([r for r, active in self._active.items() if active == fewest])

    def began(self, replica: str, name: str) -> None:
        self._active[replica] += 1

    def ended(self, replica: str) -> None:
        self._active[replica] -= 1


class Cache:
    """What one replica holds."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, OrderedDict[str, None]()

    def hit(self, name: str) -> bool:
        """Whether it was there; it is now."""
        found = name in self._held
        self._held[name] = None
        self._held.move_to_end(name)
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return found


def simulated(case: Case, seconds: float, seed: int = 0) -> Outcome:
    """Requests for so many seconds, from replicas that hold the most asked-for prompts already."""
    draw = random.Random(seed)
    replicas = [f"replica-{number}" for number in range(case.replicas)]
    weights = list(itertools.accumulate(1 / (rank + 1) ** case.zipf for rank in range(PROMPTS)))
    door: Homes | LeastBusy = LeastBusy(replicas)
    caches = {replica: Cache(case.memory // BYTES) for replica in replicas}
    if case.door == "home":
        door = Homes(case.memory, free=case.free)
        door.there(replicas)
        door.holds("before", {"any": BYTES}, None)
    capacity = case.replicas * (case.memory // BYTES)
    for rank in reversed(range(min(PROMPTS, capacity))):
        _send(door, caches, f"prompt-{rank}")
    rate = case.share * case.replicas * RATE
    free = dict.fromkeys(replicas, 0.0)
    ending: list[tuple[float, str]] = []
    waits, loads, work, at = list[float](), 0, 0.0, 0.0
    seen: dict[str, set[str]] = {}
    while (at := at + draw.expovariate(rate)) < seconds:
        while ending and ending[0][0] <= at:
            door.ended(heapq.heappop(ending)[1])
        name = f"prompt-{bisect_left(weights, draw.random() * weights[-1])}"
        replica = door.home(name)
        door.began(replica, name)
        hit = caches[replica].hit(name)
        took = 1 / RATE + (0.0 if hit else LOAD)
        free[replica] = max(free[replica], at) + took
        heapq.heappush(ending, (free[replica], replica))
        waits.append(free[replica] - at)
        loads, work = loads + (not hit), work + took
        seen.setdefault(name, set()).add(replica)
    waits.sort()
    return Outcome(
        round(len(waits) / seconds, 1),
        round(1 - loads / len(waits), 4),
        round(loads / seconds, 2),
        round(work / seconds / case.replicas, 3),
        round(1000 * waits[len(waits) // 2], 1),
        round(1000 * waits[int(0.99 * len(waits))], 1),
        round(case.replicas / 3600 / (len(waits) / seconds) * 10**6, 1),
        max(map(len, seen.values())),
    )


def _send(door: Homes | LeastBusy, caches: dict[str, Cache], name: str) -> None:
    replica = door.home(name)
    door.began(replica, name)
    door.ended(replica)
    caches[replica].hit(name)


CASES = (
    *(Case(count, door) for count in (2, 8, 32, 200) for door in ("home", "least busy")),
    *(Case(8, memory=size) for size in (5 * 10**8, 8 * 10**9)),
    *(Case(8, zipf=zipf) for zipf in (0.7, 1.3)),
    *(Case(8, share=share) for share in (0.4, 0.8)),
    Case(8, free=32),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated, of each case")
    seconds = parser.parse_args().seconds
    rows = []
    heads = (
        "replicas | door | GB each | Zipf | share | rows | hit rate | loads/s | busy | p50 | p99 | hours/M"
    )
    print(f"| {heads} |\n|{'---|' * 12}")
    for case in CASES:
        found = simulated(case, seconds if case.replicas < 100 else seconds / 4)
        rows.append({"case": asdict(case), "found": asdict(found)})
        print(
            f"| {case.replicas} | {case.door} | {case.memory / 1e9:g} | {case.zipf} | {case.share} | "
            f"{case.free} | {found.hit_rate:.1%} | {found.loads_a_second} | {found.busy:.0%} | "
            f"{found.p50_ms:.0f} ms | {found.p99_ms:.0f} ms | {found.replica_hours_a_million} |",
            flush=True,
        )
    about = {
        "prompts": PROMPTS,
        "rate": RATE,
        "load_seconds": LOAD,
        "prompt_bytes": BYTES,
        "seconds": seconds,
    }
    RESULTS.write_text(json.dumps({"measured": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
