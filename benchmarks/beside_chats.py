"""Classify requests while 32 chats without a greatest length go on: their wait, and the memory it takes.

    python benchmarks/beside_chats.py [--clients 1,8] [--seconds 30] [--kv-memory BYTES]

All ask one engine on SmolLM2-135M in this process: a classify request is a text of 20 to 50 tokens behind one
of 32 soft prompts of 20 virtual tokens, sent when the client's last has come back. First they are alone, then
32 chats of the bare base write to the end of its context, the end token ignored; in the end everybody leaves,
and a minute later the memory of the process is looked at again. Adds a line to
``results/beside_chats.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe, resident
from serve_loads import LOADS, Material
from serve_sides import Ours
from softprompt.checkpoints.freeze import load_base
from softprompt.data import bundled
from softprompt.generation.sampler import Sampling

CHATS = 32
MODEL = "smollm2-135m"
RESULTS = Path(__file__).parent.parent / "results" / "beside_chats.jsonl"


def asked_for(side: Ours, material: Material, clients: int, seconds: float) -> list[float]:
    """The seconds of every request that so many clients sent one after another in so long a time."""
    end, found = time.perf_counter() + seconds, list[float]()
    asks = material.asks(4096, f"{time.time()}")
    lock = threading.Lock()

    def client() -> None:
        while time.perf_counter() < end:
            with lock:
                ask = asks.pop()
            began = time.perf_counter()
            side.answer([ask], 1)
            found.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def shown(found: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(found, n=100, method="inclusive")
    return {"requests": len(found), "p50": statistics.median(found), "p99": cuts[98], "most": max(found)}


def chat(side: Ours, material: Material, count: int) -> tuple[list[Any], list[int]]:
    """So many answers to the end of the context, begun; their handles, and how many tokens each has."""
    lease = side.engine.registry.lease(side.engine.base.name)
    base, handles, written = side.engine.base, list[Any](), [0] * count
    for number, ask in enumerate(material.asks(count, "chats")):
        room = (base.max_positions or 2048) - len(ask.ids) - lease.version.prefix.length
        how = Sampling(max_new_tokens=room, ignore_end=True, temperature=1.0, seed=number)

        def told(event: Any, number: int = number) -> None:
            written[number] += len(getattr(event, "tokens", ()))

        handles.append(side.engine.submit(lease.version.generate(ask.ids, how), told))
    return handles, written


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--kv-memory", type=int, default=2 * 10**9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(given)
    base = load_base(MODEL, dtype="float32", device="cpu")
    texts = [str(row["text"]) for row in bundled.load("bbc-news/train").rows]
    material = Material(base, LOADS["classify-20"], texts)
    with tempfile.TemporaryDirectory() as folder:
        side = Ours(base, material, Path(folder), kv_memory=asked.kv_memory)
        with side.engine:
            result = measure(side, material, asked.clients, asked.seconds)
    line = {"model": MODEL, "chats": CHATS, "kv_memory": asked.kv_memory, **result, "machine": describe()}
    print(json.dumps(result, indent=1))
    asked.out.parent.mkdir(exist_ok=True)
    with asked.out.open("a") as file:
        file.write(json.dumps(line) + "\n")


def measure(side: Ours, material: Material, clients: Sequence[int], seconds: float) -> dict[str, Any]:
    for ask in material.asks(64, "warm"):
        side.answer([ask], 1)
    found: dict[str, Any] = {"alone": {n: shown(asked_for(side, material, n, seconds)) for n in clients}}
    before, most, stop = resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            most[0] = max(most[0], resident())

    watching = threading.Thread(target=watch)
    watching.start()
    handles, written = chat(side, material, CHATS)
    while min(written) < 8:
        time.sleep(0.1)
    began, so_far = time.perf_counter(), sum(written)
    found["beside"] = {n: shown(asked_for(side, material, n, seconds)) for n in clients}
    found["chat_tokens_per_second"] = (sum(written) - so_far) / (time.perf_counter() - began)
    found["slowest_chat_tokens"] = min(written)
    found["ratio_p99"] = {n: found["beside"][n]["p99"] / found["alone"][n]["p99"] for n in clients}
    for handle in handles:
        handle.cancel()
    stop.set()
    watching.join()
    time.sleep(60)
    return found | {"bytes_before": before, "bytes_most": most[0], "bytes_a_minute_later": resident()}


if __name__ == "__main__":
    main()
