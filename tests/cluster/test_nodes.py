"""Two Ray nodes of this machine: what is spread over them is what one process gives, though one dies."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
import ray
from ray.cluster_utils import Cluster

import tiny
from cluster.comparison import plain, settings
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.cluster import cells, prompts, runs
from softprompt.comparison.run import compare
from softprompt.config import BaseConfig
from softprompt.interpretation.inspect import InspectOptions, inspect
from softprompt.interpretation.page import render
from softprompt.library.prompt import Prompt
from softprompt.listener import Listener
from softprompt.training import loop
from softprompt.training.run import train

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of which there are many
    pytest.mark.timeout(600),
]


class Two:
    """A head without cores, and two nodes of one core each."""

    def __init__(self) -> None:
        self._made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes = [self._made.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=self._made.address, log_to_driver=False)
        self._made.wait_for_nodes()

    def close(self) -> None:
        ray.shutdown()
        self._made.shutdown()

    def kill(self) -> None:
        """As if the power were cut."""
        self._made.remove_node(self._nodes.pop(), allow_graceful=False)

    @contextmanager
    def one_dies(self, when: Any) -> Iterator[None]:
        """Kill a node when something is so; afterwards there are two again."""
        killer = threading.Thread(target=self._kill_when, args=(when,))
        killer.start()
        yield
        killer.join(1)
        assert not killer.is_alive(), "what one waits for never came"
        self._nodes.append(self._made.add_node(num_cpus=1))
        self._made.wait_for_nodes()

    def _kill_when(self, when: Any) -> None:
        while not when():
            time.sleep(0.02)
        self.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("nodes")
    tiny.model("llama").save_pretrained(made / "base")
    tiny.tokenizer().save_pretrained(made / "base")
    return made


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(str(folder / "base"), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with pytest.MonkeyPatch.context() as patch:
        source = str(Path(__file__).parent.parent.parent / "src")
        patch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_worker_niceness", "0")
        made = Two()
        try:
            yield made
        finally:
            made.close()


# A search ---------------------------------------------------------------------------------------------


def search(folder: Path, name: str, epochs: int = 3, **sections: Any) -> dict[str, Any]:
    """Three rates, the better half after each validation, then three seeds of the best."""
    for split, first in (("train", 0), ("validation", 1000), ("test", 2000)):
        rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(first, first + 24)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": name,
        "base": {"model": str(folder / "base"), "dtype": "float32", "device": "cpu"},
        "data": {
            **{split: f"{split}.jsonl" for split in ("train", "validation", "test")},
            "input": "{text}",
            "target": ":{label}",
            "labels": ["x", "y", "z"],
        },
        "method": {"front": "Say: {soft:3}", "init": "random"},
        "train": {"epochs": epochs, "batch_size": 8, "threads": 1, "checkpoint_every": 2},
        "search": {"grid": {"train.learning_rate": [1e-5, 0.25, 0.5]}, "seeds": [0, 1, 2]},
        "output": {"library": f"{name}-prompts", "runs": f"{name}-runs"},
        **sections,
    }


def found(prompt: Prompt, library: Path) -> Any:
    """All that a search leaves, without what a clock or a meter said, and where it lies."""
    hashes = {
        str(path.relative_to(library)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(library.rglob("*.safetensors"))
    }
    assert len(hashes) == 3
    assert prompt.card.search is not None
    named = prompt.card.search.model_dump_json().replace(prompt.name, "NAME")
    by_name = {where.replace(prompt.name, "NAME"): digest for where, digest in hashes.items()}
    return by_name, json.loads(named), prompt.card.scores


def test_a_search_over_two_nodes_leaves_what_one_process_leaves(
    two: Two, folder: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    notes = list[str]()
    spread = train(
        base, search(folder, "spread"), listener=Listener(note=notes.append), spread=runs.spread_over()
    )
    usual = train(base, search(folder, "usual"))
    monkeypatch.setitem(loop.PASS_TOKENS, "cpu", 1)  # each run in passes of its own
    alone = train(base, search(folder, "alone"))
    assert found(spread, folder / "spread-prompts") == found(alone, folder / "alone-prompts")
    assert spread.card.search is not None
    assert usual.card.search is not None
    assert spread.card.search.chosen == usual.card.search.chosen
    assert [t.steps for t in spread.card.search.trials] == [t.steps for t in usual.card.search.trials]
    assert [note.partition(":")[0] for note in notes if note.startswith(("Validation", "Chosen"))] == [
        "Validation 1",
        "Validation 2",
        "Chosen",
    ]


def test_a_node_that_dies_costs_a_search_nothing(
    two: Two, folder: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setitem(loop.PASS_TOKENS, "cpu", 1)
    long: dict[str, Any] = {"evaluate_every": 40}
    asked = {
        name: search(folder, name, epochs=40, train=search(folder, name, 40)["train"] | long)
        for name in ("dying", "living")
    }

    def both_are_at_work() -> bool:
        return len(list((folder / "dying-runs").rglob("checkpoint.safetensors"))) > 1

    notes = list[str]()
    with two.one_dies(both_are_at_work):
        dying = train(base, asked["dying"], listener=Listener(note=notes.append), spread=runs.spread_over())
    assert [note for note in notes if "takes it up again" in note], "nothing was lost"
    living = train(base, asked["living"])
    assert found(dying, folder / "dying-prompts") == found(living, folder / "living-prompts")


# A comparison -----------------------------------------------------------------------------------------


def test_a_node_that_dies_costs_a_comparison_no_cell(
    two: Two, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    asked = {}
    for name in ("dying", "living"):
        asked[name] = settings(folder, name)
        asked[name]["train"]["epochs"] = 20
        asked[name]["compare"]["perturb"] = False
        asked[name]["methods"] = asked[name]["methods"][:2]

    def some_are_done_and_both_at_work() -> bool:
        done = len(list((folder / "out" / "dying" / "cells").glob("*.json")))
        return done > 1 and ray.available_resources().get("CPU", 0) == 0

    notes = list[str]()
    with two.one_dies(some_are_done_and_both_at_work):
        dying = compare(asked["dying"], notify=notes.append, spread=cells.spread_over())
    assert [note for note in notes if "takes it up again" in note], "nothing was lost"
    assert dying.finished
    assert plain(dying) == plain(compare(asked["living"]))


# Prompts ----------------------------------------------------------------------------------------------


def test_prompts_looked_into_over_two_nodes_make_the_same_page(
    two: Two, folder: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    method = {"kind": "prefix-tuning", "front": "Say the letter"}
    few: dict[str, Any] = {"search": {}, "output": {"library": "looked", "runs": "looked-runs"}}
    train(base, search(folder, "one", 1, **few))
    train(base, search(folder, "two", 1, **few, seed=5))
    train(base, search(folder, "three", 1, **few, method=method))
    about = BaseConfig(model=str(folder / "base"), dtype="float32", device="cpu")
    options = InspectOptions(rows=12)
    names, done = ["one", "two", "three"], list[tuple[int, int]]()
    listener = Listener(progress=lambda what, n, of: done.append((n, of)) if what == "Prompts" else None)
    spread = inspect(names, base, "looked", options, listener=listener, spread=prompts.spread_over(about))
    alone = inspect(names, base, "looked", options)
    assert spread.to_json() == alone.to_json()
    assert render(spread) == render(alone)
    assert done[-1] == (3, 3)
