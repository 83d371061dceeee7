"""A thousand prompts in a library, and memory for fifty.

    python benchmarks/thousand.py [--model smollm2-135m] [--prompts 1000] [--called 200] [--held 50]

Random soft prompts of 20 virtual tokens are saved in a library of their own. An engine that may hold 50
of them is asked behind 200, in random order: each is called cold (read from the disk, checked,
prefilled) and at once again, warm; then all 200 are asked for at the same time. A call writes 8 tokens,
greedily. Every answer is held against a plain forward pass of transformers over [vectors; text; answer],
in fp32: each token must be the likeliest one. The bytes that prompts take are watched all the time. Adds
a line to ``results/thousand.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import shelf
from machine import describe, resident
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.errors import SoftpromptError
from softprompt.generation.request import Event, Finished, RequestFailed, TextDelta
from softprompt.generation.sampler import Sampling
from softprompt.serving.engine import Engine

POSITIONS, TOKENS = 20, 8
NEAR = 1e-3
"""Two logits so near each other are one to fp32: either token is right."""
RESULTS = Path(__file__).parent.parent / "results" / "thousand.jsonl"

WORDS = (
    "rain",
    "falls",
    "on",
    "the",
    "old",
    "town",
    "while",
    "late",
    "trains",
    "run",
    "and",
    "nobody",
    "minds",
)


@dataclass(frozen=True)
class Result:
    """One line of the output; times in seconds, memory in bytes.

    Attributes:
        saving_seconds: to save one prompt, on average.
        prompt_bytes: what one takes in memory, and ``budget_bytes`` what all may.
        most_bytes: the most that was seen.
        wrong: answers that plain transformers would not have given.
        cold_median, cold_p99, warm_median, warm_p99: of a call.
        together_seconds: for all calls at once.
        process_before, process_full, process_after: resident memory of the process with the base loaded,
            with the budget full for the first time, and at the end.
    """

    model: str
    prompts: int
    called: int
    held: int
    virtual_tokens: int
    new_tokens: int
    saving_seconds: float
    prompt_bytes: int
    budget_bytes: int
    most_bytes: int
    evictions: int
    wrong: int
    cold_median: float
    cold_p99: float
    warm_median: float
    warm_p99: float
    together_seconds: float
    process_before: int
    process_full: int
    process_after: int


class Call:
    """One answer behind one prompt; begun at once, finished by ``wait``."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.number, self.tokens = number, list[int]()
        self._over = threading.Event()
        self._fault: SoftpromptError | None = None
        self._lease = engine.registry.lease(name(number))
        self.ids = self._lease.version.tokens(text(number)).ids
        sampling = Sampling(max_new_tokens=TOKENS, ignore_end=True)
        engine.submit(self._lease.version.generate(self.ids, sampling), self._hear, block=True)

    def _hear(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self.tokens += [said.id for said in event.tokens]
        elif isinstance(event, Finished | RequestFailed):
            self._fault = event.error if isinstance(event, RequestFailed) else None
            self._lease.close()
            self._over.set()

    def wait(self) -> Call:
        self._over.wait()
        if self._fault is not None:
            raise self._fault
        return self


def name(number: int) -> str:
    return f"prompt-{number:04d}"


def text(number: int) -> str:
    """What the prompt of that number is asked."""
    draw = random.Random(number)
    return " ".join(draw.choices(WORDS, k=draw.randint(4, 16)))


def fill(base: Base, library: Path, prompts: int) -> float:
    """Save so many prompts; seconds for one."""
    begun = time.perf_counter()
    for number in range(prompts):
        shelf.prompt(base, name(number), shelf.front(base, number, POSITIONS)).save(library)
    return (time.perf_counter() - begun) / prompts


def right(base: Base, model: Any, call: Call) -> bool:
    """Whether every token is the likeliest one by the model's own pass over all that stands before it."""
    vectors = shelf.front(base, call.number, POSITIONS)
    words = model.get_input_embeddings()(torch.tensor([*call.ids, *call.tokens]))
    with torch.no_grad():
        logits = model(inputs_embeds=torch.cat([vectors, words])[None], use_cache=False).logits[0]
    logits = logits[-len(call.tokens) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(call.tokens)[:, None])[:, 0]
    return len(call.tokens) == TOKENS and bool((logits.amax(1) - chosen <= NEAR).all())


@contextmanager
def watching(engine: Engine) -> Iterator[list[int]]:
    """The bytes that prompts take, looked at all the time."""
    seen, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            seen.append(engine.registry.counts.bytes)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def timed(engine: Engine, numbers: Sequence[int]) -> tuple[list[Call], float]:
    """Calls at once, and the seconds until the last has ended."""
    begun = time.perf_counter()
    calls = [Call(engine, number) for number in numbers]
    return [call.wait() for call in calls], time.perf_counter() - begun


def measure(base: Base, model: Any, prompts: int, called: int, held: int, folder: Path) -> Result:
    """Fill a library, call some of its prompts, and check every answer.

    Args:
        base: what serves.
        model: the same weights in a plain transformers model, which checks.
        prompts: how many are saved.
        called: how many of them are called.
        held: how many the budget holds.
        folder: for the library.
    """
    library = folder / "prompts"
    saving = fill(base, library, prompts)
    numbers = random.Random(1).sample(range(prompts), called)
    with Engine(base, library, pack=False) as engine, engine.registry.lease(name(numbers[0])) as one:
        size = one.nbytes
    with Engine(base, library, budget=held * size) as engine, watching(engine) as seen:
        before, full = resident(), 0
        calls, cold, warm = list[Call](), list[float](), list[float]()
        for place, number in enumerate(numbers, 1):
            for times in (cold, warm):
                found, seconds = timed(engine, [number])
                calls += found
                times.append(seconds)
            full = resident() if place == min(held, called) else full
        everybody, together = timed(engine, random.Random(2).sample(numbers, called))
        counts = engine.registry.counts
        after = resident()
    wrong = sum(not right(base, model, call) for call in (*calls, *everybody))
    return Result(
        model=base.name,
        prompts=prompts,
        called=called,
        held=held,
        virtual_tokens=POSITIONS,
        new_tokens=TOKENS,
        saving_seconds=saving,
        prompt_bytes=size,
        budget_bytes=held * size,
        most_bytes=max(seen),
        evictions=counts.evictions,
        wrong=wrong,
        cold_median=statistics.median(cold),
        cold_p99=_p99(cold),
        warm_median=statistics.median(warm),
        warm_p99=_p99(warm),
        together_seconds=together,
        process_before=before,
        process_full=full,
        process_after=after,
    )


def _p99(times: Sequence[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(0.99 * len(times)))]


def show(result: Result) -> str:
    """Four sentences a person can read."""
    mib = {k: v / 2**20 for k, v in asdict(result).items() if k.endswith("bytes") or k.startswith("process")}
    return (
        f"{result.prompts} prompts in the library, {result.called} called, memory for {result.held}: "
        f"{result.wrong} wrong answers of {3 * result.called}, {result.evictions} evictions.\n"
        f"Prompts took {mib['most_bytes']:.1f} MiB at most, of {mib['budget_bytes']:.1f}; the process "
        f"{mib['process_before']:.0f} MiB before, {mib['process_full']:.0f} when these were full, "
        f"{mib['process_after']:.0f} at the end.\n"
        f"A call of {TOKENS} tokens: cold {1000 * result.cold_median:.0f} ms "
        f"(p99 {1000 * result.cold_p99:.0f}), "
        f"warm {1000 * result.warm_median:.0f} ms (p99 {1000 * result.warm_p99:.0f}).\n"
        f"All at once: {result.together_seconds:.1f} s."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--called", type=int, default=200)
    parser.add_argument("--held", type=int, default=50)
    asked = parser.parse_args()
    base = load_base(asked.model, dtype="float32", device="cpu")
    model = load_base(asked.model, dtype="float32", device="cpu").model
    model.set_attn_implementation("eager")  # transformers' own
    with tempfile.TemporaryDirectory() as folder:
        result = measure(base, model, asked.prompts, asked.called, asked.held, Path(folder))
    print(show(result))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps({**asdict(result), **describe()}) + "\n")


if __name__ == "__main__":
    main()
