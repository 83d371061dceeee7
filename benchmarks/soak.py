"""A server under mixed traffic for minutes: answers right, nothing stuck, memory flat, an orderly end.

    python benchmarks/soak.py [--minutes 10] [--clients 12]

``softprompt serve`` runs in a process of its own, on a small random base in fp32, with soft prompts, KV
prefixes, adapters and a fine-tuned model, and memory for a third of them. Clients write and classify, with
and without streams; some leave in the middle, some send nonsense, sometimes more come at once than may wait.
Meanwhile prompts are replaced, dropped from memory and damaged on the disk.

All that is asked with one key. Beside it others send half a head and stay, hang up amid long texts, ask for
hundreds of answers at once and for long ones (``soak_attacks``), and one key that behaves asks for a token
now and then: how long it waits, in peace and under the floods, is told.

Each answer that comes back is held against what the library gives to that one text alone, behind the very
version that the answer names (``system_fingerprint``), which must have been current while it was asked. Each
request must end within a bound. At the end the server gets SIGTERM amid traffic: what it accepted it must
finish or refuse in words, and it must exit with 0. Adds a line to ``results/soak.jsonl``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from machine import describe, resident
from soak_attacks import Attacks, Keys
from soak_prompts import BASE, Shelves
from soak_traffic import BOUND, Traffic
from softprompt.serving.keys import add_key

ROWS, QUEUE, DRAIN = 8, 16, 30
WARM = 0.3
"""This part of the time is not counted when memory is watched: threads, caches and arenas are made in it."""
RESULTS = Path(os.environ.get("SOAK_RESULTS", Path(__file__).parent.parent / "results")) / "soak.jsonl"


@dataclass(frozen=True)
class Result:
    """One line of the output.

    Attributes:
        ends: how requests ended, and how many did so.
        events: what was done to the library and the registry.
        wrong: answers that were not the one their version gives, or of a version that was not current.
        stuck: requests that did not end in time; ``odd``: replies that should not be.
        slowest: seconds of the slowest request.
        memory_first, memory_last, memory_most: resident bytes of the server after warming up.
        memory_slope: MiB a minute over that time, by least squares.
        last_ends: how the requests ended that were under way at SIGTERM.
        attacks: what was done by those who mean no good.
        peaceful, flooded: seconds, p50 and p99, of the well-behaved key's answers, without and with floods.
        cut: those of them that were neither finished nor told.
        exit_code, exit_seconds: of the server after SIGTERM.
    """

    minutes: float
    clients: int
    requests: int
    checked: int
    ends: dict[str, int]
    events: dict[str, int]
    wrong: list[str]
    stuck: int
    odd: list[str]
    slowest: float
    evictions: int
    failures: int
    memory_first: int
    memory_last: int
    memory_most: int
    memory_slope: float
    last_ends: dict[str, int]
    attacks: dict[str, int]
    peaceful: tuple[float, float]
    flooded: tuple[float, float]
    cut: int
    exit_code: int | None
    exit_seconds: float

    @property
    def sound(self) -> bool:
        """Whether all that was promised was kept; how flat memory must be is for the reader."""
        return not (self.wrong or self.stuck or self.odd or self.cut or self.exit_code)


@dataclass
class Memory:
    """Resident bytes of a process, second by second."""

    samples: list[tuple[float, int]] = field(default_factory=list)

    def note(self, process: int) -> None:
        self.samples.append((time.monotonic(), resident(process)))

    def warm(self) -> list[tuple[float, int]]:
        """The samples after warming up."""
        begun, ended = self.samples[0][0], self.samples[-1][0]
        return [sample for sample in self.samples if sample[0] >= begun + WARM * (ended - begun)]

    @property
    def slope(self) -> float:
        """MiB a minute."""
        samples = self.warm()
        minutes = [(at - samples[0][0]) / 60 for at, _ in samples]
        mib = [size / 2**20 for _, size in samples]
        middle, mean = sum(minutes) / len(minutes), sum(mib) / len(mib)
        spread = sum((at - middle) ** 2 for at in minutes)
        return sum((at - middle) * (size - mean) for at, size in zip(minutes, mib, strict=True)) / spread


@contextmanager
def serving(folder: Path, budget: int, keys: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of ``folder``, and its address."""
    code = "import sys; from softprompt.cli.main import main; sys.argv[0] = 'softprompt'; main()"
    options = [
        "--port",
        "0",
        "--json",
        "--keys",
        str(keys),
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--base",
        BASE,
    ]
    options += ["--budget", f"{budget}B", "--rows", str(ROWS), "--queue", str(QUEUE), "--drain", str(DRAIN)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", *options],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        assert process.stdout is not None
        said = ""
        while (line := process.stdout.readline()) and not line.startswith("}"):
            said += line
        if not line:
            raise SystemExit(f"The server did not start:\n{(folder / 'server.log').read_text()}")
        yield process, json.loads(said + line)["url"]
    finally:
        process.kill()
        process.communicate()


async def watched(process: int, memory: Memory) -> None:
    while True:
        memory.note(process)
        await asyncio.sleep(1)


async def soak(
    shelves: Shelves, process: int, url: str, keys: Keys, minutes: float, clients: int
) -> tuple[Traffic, Memory, Attacks]:
    """Traffic for some minutes, then SIGTERM in the middle of it."""
    memory, attacks = Memory(), Attacks(url, keys)
    async with Traffic(shelves, url, queue=QUEUE, secret=keys.boss) as traffic:
        watching = asyncio.create_task(watched(process, memory))
        await asyncio.gather(traffic.flow(60 * minutes, clients), attacks.go_on(60 * minutes))
        watching.cancel()
        await traffic.counted()
        await traffic.ended(lambda: os.kill(process, signal.SIGTERM), clients)
    return traffic, memory, attacks


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """The middle, and what one in a hundred is above."""
    ordered = sorted(seconds) or [float("nan")]
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def run(folder: Path, minutes: float, clients: int) -> Result:
    """Fill a folder, serve it, ask, and check what came back."""
    shelves, file = Shelves(folder), folder / "keys.toml"
    keys = Keys(*(add_key(file, name, admin=name == "boss")[1] for name in ("boss", "flood", "quiet")))
    with serving(folder, shelves.budget, file) as (process, url):
        traffic, memory, attacks = asyncio.run(soak(shelves, process.pid, url, keys, minutes, clients))
        begun = time.monotonic()
        try:
            code: int | None = process.wait(DRAIN + 10)
        except subprocess.TimeoutExpired:
            code = None
        exited = time.monotonic() - begun
    wrong = [fault for answer in traffic.answers if (fault := shelves.fault(answer))]
    warm = memory.warm()
    return Result(
        minutes=minutes,
        clients=clients,
        requests=traffic.requests,
        checked=len(traffic.answers),
        ends=dict(traffic.ends),
        events=dict(traffic.events),
        wrong=wrong[:20],
        stuck=traffic.stuck,
        odd=[*traffic.odd, *attacks.odd][:20],
        slowest=traffic.slowest,
        evictions=int(traffic.counts.get("softprompt:prompt_evictions_total", 0)),
        failures=int(traffic.counts.get("softprompt:prompt_load_failures_total", 0)),
        memory_first=warm[0][1],
        memory_last=warm[-1][1],
        memory_most=max(size for _, size in warm),
        memory_slope=memory.slope,
        last_ends=dict(traffic.last_ends),
        attacks=dict(attacks.done),
        peaceful=percentiles(attacks.peaceful),
        flooded=percentiles(attacks.flooded),
        cut=traffic.last_ends["cut"],
        exit_code=code,
        exit_seconds=exited,
    )


def show(result: Result) -> str:
    """A table a person can read."""
    mib = 2**20
    ends = ", ".join(f"{count} {how}" for how, count in Counter(result.ends).most_common())
    events = ", ".join(f"{count} {what}" for what, count in sorted(result.events.items()))
    last = ", ".join(f"{count} {how}" for how, count in sorted(result.last_ends.items()))
    rows = {
        "requests": f"{result.requests} in {result.minutes:g} minutes, {result.clients} clients",
        "they ended": ends,
        "meanwhile": f"{events}, {result.evictions} evictions, {result.failures} failed loads",
        "attacks": ", ".join(f"{count} {what}" for what, count in sorted(result.attacks.items())),
        "the quiet key": f"p50 {result.peaceful[0]:.2f} s, p99 {result.peaceful[1]:.2f} s; under floods "
        f"p50 {result.flooded[0]:.2f} s, p99 {result.flooded[1]:.2f} s",
        "answers checked": f"{result.checked}, {len(result.wrong)} wrong",
        "stuck": f"{result.stuck}; the slowest took {result.slowest:.1f} s of {BOUND:.0f}",
        "odd replies": str(len(result.odd)),
        "memory": f"{result.memory_first / mib:.0f} MiB warm, {result.memory_last / mib:.0f} at the end, "
        f"{result.memory_most / mib:.0f} at most, {result.memory_slope:+.2f} MiB a minute",
        "at SIGTERM": f"{last}; exit code {result.exit_code} after {result.exit_seconds:.1f} s",
        "verdict": "sound" if result.sound else "NOT SOUND",
    }
    lines = [f"{name:<16}{said}" for name, said in rows.items()]
    return "\n".join([*lines, *result.wrong, *result.odd])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=12)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), asked.minutes, asked.clients)
    print(show(result))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps({**asdict(result), **describe()}) + "\n")
    raise SystemExit(not result.sound)


if __name__ == "__main__":
    main()
