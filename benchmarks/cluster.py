"""Two Ray nodes on this machine: what a second one gains, and what the death of one costs.

    python benchmarks/cluster.py [compare] [serve]

A tiny random base, a core a node. ``compare``: the same comparison on one node, on two, and on two of which
one is killed in the middle; all cells must be there, and all numbers alike. ``serve``: two replicas behind
one address; what is warm stays at its home, a library that just fits is loaded once, and of requests sent
while a replica is killed none fails and none is answered by a wrong prompt. One line goes to
``results/cluster.jsonl``. Minutes; needs both cores to itself.
"""
# ruff: noqa: E402  Ray reads its environment as it is imported.

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback only
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's spelling; else all else goes first)
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])

import httpx
import ray
from ray.cluster_utils import Cluster

import tiny
from library import samples
from machine import describe
from serving.api import house
from softprompt.checkpoints.freeze import load_base
from softprompt.cluster import serve as cluster
from softprompt.cluster.cells import spread_over
from softprompt.cluster.door import Door
from softprompt.cluster.replica import ServeSettings
from softprompt.comparison.run import compare
from softprompt.library.folder import Library
from softprompt.library.peft_format import from_front
from softprompt.library.prompt import Prompt, load_prompt

RESULTS = ROOT / "results" / "cluster.jsonl"
PROMPTS = 12
CLIENTS = 8
EPOCHS = 8
NEWS = 1.0
"""Seconds between two things that a replica tells of itself."""


@contextmanager
def nodes(count: int) -> Iterator[tuple[Cluster, list[Any]]]:
    """A head without cores, and nodes of one core each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        each = [made.add_node(num_cpus=1) for _ in range(count)]
        ray.init(address=made.address, log_to_driver=False)
        made.wait_for_nodes()
        yield made, each
    finally:
        ray.shutdown()
        made.shutdown()


# A comparison -----------------------------------------------------------------------------------------


def comparison(folder: Path, base: Path, name: str) -> dict[str, Any]:
    """Four methods of two trials and two seeds: 12 trainings, 8 tests."""
    for split, first in (("train", 0), ("validation", 10_000), ("test", 20_000)):
        rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(first, first + 120)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    return {
        "name": name,
        "base": {"model": str(base), "dtype": "float32"},
        "data": {**paths, "input": "{text}", "target": ":{label}", "labels": {"x": "a", "y": "b", "z": "c"}},
        "train": {"epochs": EPOCHS, "batch_size": 8, "threads": 1},
        "compare": {
            "seeds": [0, 1],
            "trials": 2,
            "folder": str(folder / "out"),
            "latency_requests": 0,
            "alternatives": False,
            "perturb": False,
        },
        "methods": [
            {"name": f"soft-{p}", "method": {"front": f"{{soft:{p}}}"}, "trials": [
                {"train.learning_rate": 0.02}, {"train.learning_rate": 0.05}]}
            for p in (4, 6, 8, 10)
        ],
    }  # fmt: skip


def plain(results: Any) -> Any:
    """All that was found, without what depends on the clock."""
    timed = ("train_seconds", "peak_memory_bytes", "created", "latency_seconds", "seconds")

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in timed}
        return [without(one) for one in value] if isinstance(value, list) else value

    return without(results.model_dump()["methods"])


def warm() -> None:
    """Let every core's worker be up and have imported what it needs: a node that was there before."""

    @ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
    def ready() -> None:
        import softprompt.comparison.run  # noqa: F401

        time.sleep(3)

    ray.get([ready.remote() for _ in range(int(ray.cluster_resources()["CPU"]))])


def compared(folder: Path, base: Path, name: str, *, count: int, kill: bool = False) -> tuple[float, Any]:
    """Seconds of a comparison on so many nodes, and its results."""
    with nodes(count) as (made, each):
        warm()
        settings = comparison(folder, base, name)
        cells = folder / "out" / name / "cells"

        def killing() -> None:
            while len(list(cells.glob("*.json"))) < 4:
                time.sleep(0.1)
            made.remove_node(each[-1], allow_graceful=False)

        if kill:
            threading.Thread(target=killing, daemon=True).start()
        began = time.perf_counter()
        results = compare(settings, notify=lambda said: print(f"  {said}", flush=True), spread=spread_over())
        seconds = time.perf_counter() - began
        assert len(list(cells.glob("*.json"))) == 20, "a cell is missing"
    return seconds, plain(results)


def measured_comparison(folder: Path, base: Path) -> dict[str, Any]:
    one, first = compared(folder, base, "one", count=1)
    two, second = compared(folder, base, "two", count=2)
    dying, third = compared(folder, base, "dying", count=2, kill=True)
    return {
        "cells": 20,
        "one_node_seconds": round(one, 1),
        "two_nodes_seconds": round(two, 1),
        "speed_up": round(one / two, 2),
        "node_killed_seconds": round(dying, 1),
        "same_numbers_on_two": first == second,
        "same_numbers_though_killed": first == third,
    }


# Serving ----------------------------------------------------------------------------------------------


def library(folder: Path, base: Path) -> dict[str, str]:
    """Prompts of one size; what each of them answers."""
    loaded, address = load_base(str(base)), folder / "prompts"
    answers = {}
    for number in range(PROMPTS):
        name = f"prompt-{number}"
        card = samples.bound(loaded, "prompt-tuning", samples.P, name=name)
        Library(address).save(name, from_front(samples.soft(loaded, 100 + number), loaded), card)
        answers[name] = load_prompt(name, loaded, address).generate("some words", max_new_tokens=12)
    return answers


@contextmanager
def served(folder: Path, base: Path, budget: int | None) -> Iterator[tuple[str, Door]]:
    settings = ServeSettings(
        str(folder / "prompts"),
        {"model": str(base)},
        {"rows": 8, "queue": 64, "pack": False} | ({} if budget is None else {"budget": budget}),
    )
    scale = cluster.ReplicaScale(2, 2, patience=1.0, drain=5.0)
    door = Door(cluster.start(settings, scale, "auto"))
    try:
        with house.running(door) as url:
            time.sleep(2 * NEWS)  # until the replicas have told what they may hold
            yield url, door
    finally:
        cluster.stop()


class Tally:
    """What came of requests, from many threads."""

    def __init__(self, url: str, answers: dict[str, str]) -> None:
        self.at: dict[str, Counter[str]] = {name: Counter() for name in answers}
        self.loads: dict[str, int] = {}
        self.failed = self.wrong = self.right = 0
        self.seconds: list[float] = []
        self._url, self._answers, self._lock = url, answers, threading.Lock()
        self._http = httpx.Client(base_url=url, timeout=120)

    def ask(self, name: str) -> None:
        body = {"model": name, "prompt": "some words", "max_tokens": 12, "temperature": 0}
        began = time.perf_counter()
        try:
            answer = self._http.post("/v1/completions", json=body)
        except httpx.HTTPError:
            answer = None
        took = time.perf_counter() - began
        with self._lock:
            self.seconds.append(took)
            if answer is None or answer.status_code != 200:
                self.failed += 1
                return
            right = answer.json()["choices"][0]["text"] == self._answers[name]
            self.right += right
            self.wrong += not right
            replica, _, loads = answer.headers["x-softprompt-replica"].partition("; loads=")
            self.at[name][replica] += 1
            self.loads[replica] = max(self.loads.get(replica, 0), int(loads))

    @property
    def at_home(self) -> float:
        """The share of requests that were answered where most of their prompt's were."""
        return sum(max(c.values(), default=0) for c in self.at.values()) / max(1, self.right + self.wrong)


def killed_in_the_middle(url: str, answers: dict[str, str], draw: random.Random) -> Tally:
    """600 requests of 8 clients, while a replica is killed."""
    tally, names = Tally(url, answers), list(answers)

    def killing() -> None:
        while len(tally.seconds) < 150:
            time.sleep(0.01)
        victims = [
            one for one in ray.util.list_named_actors(all_namespaces=True) if "#replicas#" in one["name"]
        ]
        ray.kill(ray.get_actor(victims[0]["name"], victims[0]["namespace"]), no_restart=False)

    thread = threading.Thread(target=killing)
    thread.start()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(tally.ask, [draw.choice(names) for _ in range(600)]))
    thread.join()
    return tally


def measured_serving(folder: Path, base: Path) -> dict[str, Any]:
    answers, draw = library(folder, base), random.Random(0)
    with nodes(2):
        with served(folder, base, None) as (url, door):
            warm_up = Tally(url, answers)
            for name in answers:
                warm_up.ask(name)
            warm = Tally(url, answers)
            began = time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(warm.ask, [draw.choice(list(answers)) for _ in range(400)]))
            rate = 400 / (time.perf_counter() - began)
            dying = killed_in_the_middle(url, answers, draw)
            again = door.counts["sent again"]
        size = _bytes(base, folder)
        with served(folder, base, size * (PROMPTS // 2)) as (url, _):
            cold = Tally(url, answers)
            for turn in range(5):
                for name in sorted(answers, key=lambda _: draw.random()):
                    cold.ask(name)
                del turn
    took = sorted(warm.seconds)
    return {
        "warm": {
            "requests": len(took),
            "at_home": round(warm.at_home, 4),
            "requests_a_second": round(rate, 1),
            "p50_ms": round(1000 * took[len(took) // 2], 1),
            "p99_ms": round(1000 * took[int(0.99 * len(took))], 1),
        },
        "replica_killed": {
            "requests": len(dying.seconds),
            "failed": dying.failed,
            "wrong": dying.wrong,
            "sent_again": again,
            "longest_ms": round(1000 * max(dying.seconds)),
        },
        "cold_and_exactly_full": {
            "requests": len(cold.seconds),
            "prompts": PROMPTS,
            "loads": sum(cold.loads.values()),
            "failed": cold.failed,
            "wrong": cold.wrong,
        },
    }


def _bytes(base: Path, folder: Path) -> int:
    """What a prompt takes in memory."""
    prompt: Prompt = load_prompt("prompt-0", load_base(str(base)), folder / "prompts")
    return prompt.prefix.nbytes


def main() -> None:
    parts = sys.argv[1:] or ["compare", "serve"]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        base = folder / "base"
        tiny.model("llama").save_pretrained(base)
        tiny.tokenizer().save_pretrained(base)
        line: dict[str, Any] = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **describe()}
        line["versions"]["ray"] = ray.__version__
        if "compare" in parts:
            line["compare"] = measured_comparison(folder, base)
            print(json.dumps(line["compare"], indent=1), flush=True)
        if "serve" in parts:
            line["serve"] = measured_serving(folder, base)
            print(json.dumps(line["serve"], indent=1), flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
