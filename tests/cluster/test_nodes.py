"""Two Ray nodes of this machine: what is spread over them is what one process gives, though one dies."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
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
from softprompt.cluster import cells, prompts, runs, tasks
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
        self._warm()

    def close(self) -> None:
        ray.shutdown()
        self._made.shutdown()

    def kill(self) -> None:
        """As if the power were cut."""
        self._made.remove_node(self._nodes.pop(), allow_graceful=False)

    @contextmanager
    def one_dies_at_work(self, notes: Sequence[str]) -> Iterator[None]:
        """Kill a node when both are told to be in the middle of something; afterwards there are two again."""

        def kill() -> None:
            while not [
                said for said in notes if said.startswith("At work: 2 on 2") and said.count("step") == 2
            ]:
                time.sleep(0.02)
            self.kill()

        killer = threading.Thread(target=kill, daemon=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tasks, "_EVERY", 0.0)
            killer.start()
            yield
        assert len(self._nodes) == 1, "they never were at work both"
        self._nodes.append(self._made.add_node(num_cpus=1))
        self._warm()

    def _warm(self) -> None:
        """Let the worker of each node be up, with what it needs imported, so that both begin at once."""
        self._made.wait_for_nodes()

        @ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
        def ready() -> None:
            import softprompt.cluster.cells
            import softprompt.cluster.runs  # noqa: F401

            time.sleep(2)

        ray.get([ready.remote() for _ in self._nodes])


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
    long: dict[str, Any] = {"evaluate_every": 60, "checkpoint_every": 5}
    asked = {
        name: search(folder, name, epochs=60, train=search(folder, name, 60)["train"] | long)
        for name in ("dying", "living")
    }

    notes = list[str]()
    with two.one_dies_at_work(notes):
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
        asked[name]["train"]["epochs"] = 50
        asked[name]["compare"]["perturb"] = False
        asked[name]["methods"] = asked[name]["methods"][1:2]

    notes = list[str]()
    with two.one_dies_at_work(notes):
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
