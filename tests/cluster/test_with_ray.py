"""On a real Ray cluster, of this machine: what is spread over it is what one process would have given."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray")
import ray

import tiny
from cluster.comparison import plain, settings
from library import samples
from serving.api import house
from softprompt.checkpoints.freeze import load_base
from softprompt.cluster import serve as cluster
from softprompt.cluster.cells import spread_over
from softprompt.cluster.door import Door
from softprompt.cluster.ray import connect
from softprompt.cluster.replica import ServeSettings
from softprompt.comparison import cell
from softprompt.comparison.run import compare
from softprompt.errors import ConfigError, ResourceError
from softprompt.library.folder import Library
from softprompt.library.peft_format import from_front
from softprompt.library.prompt import load_prompt

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of which there are many
    pytest.mark.timeout(600),
]
NAMES = [f"prompt-{number}" for number in range(6)]


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """A cluster that lasts for these tests."""
    paths = [str(Path(tiny.__file__).parent), str(Path(__file__).parent.parent.parent / "src")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]))
        connect("local", num_cpus=3, log_to_driver=False)
        try:
            yield
        finally:
            cluster.stop()
            ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ray")
    tiny.model("llama").save_pretrained(made / "base")
    tiny.tokenizer().save_pretrained(made / "base")
    return made


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, str]:
    """Prompts of a library, and what each answers."""
    base, found = load_base(str(folder / "base")), {}
    for number, name in enumerate(NAMES):
        card = samples.bound(base, "prompt-tuning", samples.P, name=name)
        Library(folder / "prompts").save(name, from_front(samples.soft(base, number), base), card)
        found[name] = load_prompt(name, base, folder / "prompts").generate("some words", max_new_tokens=8)
    return found


# Comparisons ------------------------------------------------------------------------------------------


def test_the_same_cells_give_the_same_results_and_are_found_again(
    here: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    alone = compare(settings(folder, "alone"))
    notes: list[str] = []
    spread = compare(settings(folder, "spread"), notify=notes.append, spread=spread_over())
    assert plain(spread) == plain(alone)
    assert spread.finished
    assert any(note.startswith("adapters, ") and "on test" in note for note in notes)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(cell, "fit", never)
    again = compare(settings(folder, "spread"))  # on one machine, what was done on a cluster
    assert plain(again) == plain(alone)


def test_a_fault_of_a_cell_is_told_as_on_one_machine(
    here: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    asked = settings(folder, "faulty")
    asked["methods"] = [
        {"name": "broken", "method": {"front": "{soft:3}", "targets": ["nothing"], "kind": "lora"}},
        {"name": "text", "method": {"kind": "text"}},
    ]
    try:
        alone = compare({**asked, "name": "faulty-alone"})
    except ConfigError:
        pytest.skip("refused before the work")
    spread = compare(asked, spread=spread_over())
    assert [method.trouble for method in spread.methods] == [method.trouble for method in alone.methods]
    assert spread.methods[0].trouble


def test_a_cluster_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance. Please specify.\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        ResourceError, match=r"^There is no Ray cluster at auto \(Could not find .*\); start one"
    ):
        connect("auto")


# Serving ----------------------------------------------------------------------------------------------


def test_a_prompt_stays_at_home_and_no_request_is_lost_with_a_replica(
    here: None, folder: Path, answers: dict[str, str]
) -> None:
    """Two replicas, one of them killed under load: nothing fails, nothing is answered by a wrong prompt."""
    asked = ServeSettings(
        str(folder / "prompts"), {"model": str(folder / "base")}, {"pack": False, "rows": 8}
    )
    door = Door(cluster.start(asked, cluster.ReplicaScale(2, 2, patience=1.0, drain=5.0), "auto"))
    at: dict[str, set[str]] = {name: set() for name in NAMES}
    found: list[bool] = []

    with house.running(door) as url, httpx.Client(base_url=url, timeout=120) as http:

        def ask(name: str) -> str:
            body = {"model": name, "prompt": "some words", "max_tokens": 8, "temperature": 0}
            answer = http.post("/v1/completions", json=body)
            found.append(answer.status_code == 200 and answer.json()["choices"][0]["text"] == answers[name])
            return answer.headers["x-softprompt-replica"].partition(";")[0]

        for name in NAMES * 5:
            at[name].add(ask(name))
        assert all(len(where) == 1 for where in at.values()), "a prompt left its home"
        assert len(set.union(*at.values())) == 2, "one replica has all prompts"

        def kill() -> None:
            time.sleep(0.5)
            named = [
                one for one in ray.util.list_named_actors(all_namespaces=True) if "#replicas#" in one["name"]
            ]
            ray.kill(ray.get_actor(named[0]["name"], named[0]["namespace"]), no_restart=False)

        found.clear()
        killing = threading.Thread(target=kill)
        killing.start()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, NAMES * 40))
        killing.join()
    assert len(found) == 240
    assert all(found)
    assert door.counts["lost"] == 0
