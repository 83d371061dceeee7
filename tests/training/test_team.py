"""Two processes learn what one does: the same losses, gradients, prompts and files, and one voice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from softprompt.comparison.run import compare
from softprompt.config import Config, parse
from softprompt.data.rows import Encoded, Example
from softprompt.errors import ConfigError, TrainingError
from softprompt.evaluation.score import Scores
from softprompt.library.folder import Library
from softprompt.team import ALONE, BUCKET, Team, _buckets
from softprompt.training.distil import distil
from softprompt.training.run import train_many
from teams import environment, together
from training import shared_work
from training.toy import examples

KINDS = ["soft", "key-value", "lora", "full"]


@pytest.fixture(scope="module")
def alone() -> Any:
    return shared_work.learn(KINDS, None, None, False)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("two")
    return [*together(2, shared_work.learn, KINDS, str(folder), None, False), folder]


def close(found: Any, expected: Any) -> bool:
    return bool(torch.allclose(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-5, atol=1e-5))


def test_losses_and_gradients_are_those_of_one_process(alone: Any, of_two: Any) -> None:
    for found in of_two[:2]:
        assert close(found["losses"], alone["losses"])
        assert len(found["gradients"]) == len(alone["gradients"]) > 30
        for mine, expected in zip(found["gradients"], alone["gradients"], strict=True):
            assert close(mine, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learnt_is_what_one_process_learns(kind: str, alone: Any, of_two: Any) -> None:
    for found in of_two[:2]:
        for name, expected in alone["learnt"][kind].items():
            assert close(found["learnt"][kind][name], expected), name
    first, second = (found["learnt"][kind] for found in of_two[:2])
    assert all(torch.equal(first[name], second[name]) for name in first)  # to the bit


def test_validation_is_shared_out_and_all_choose_alike(alone: Any, of_two: Any) -> None:
    first, second, _ = of_two
    assert first["scores"] == second["scores"]
    assert first["outcomes"] == second["outcomes"] == alone["outcomes"]
    for mine, expected in zip(first["scores"], alone["scores"], strict=True):
        same_scores(mine, expected)


def same_scores(found: Scores, expected: Scores) -> None:
    assert found.predictions == expected.predictions
    assert (found.rows, found.accuracy, found.macro_f1) == (
        expected.rows,
        expected.accuracy,
        expected.macro_f1,
    )
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert found.tokens == expected.tokens
    assert found.nll == pytest.approx(expected.nll, abs=1e-5)
    assert found.nll_interval == pytest.approx(expected.nll_interval, abs=1e-5)
    assert found.confidences == pytest.approx(expected.confidences, abs=1e-5)


TEXTS = Encoded(
    tuple(Example((20 + i, 21), (30 + i,) * (1 + i % 3), None, i) for i in range(5)), 0, None, False, ()
)


@pytest.mark.parametrize(
    "encoded", [examples(7, 0), examples(1, 0), TEXTS], ids=["labels", "one row", "text"]
)
def test_shared_scores_are_those_of_one_process(encoded: Encoded) -> None:
    expected = shared_work.scored(encoded)
    for found in together(2, shared_work.scored, encoded):
        same_scores(found, expected)


LAST_BIT = 6e-8


def apart(one: Any, other: Any, kind: str) -> dict[str, float]:
    """How far what was learnt lies apart, each tensor against its size."""
    pairs = ((name, one["learnt"][kind][name], theirs) for name, theirs in other["learnt"][kind].items())
    return {
        name: float((mine - theirs).norm() / theirs.norm().clamp_min(1e-30)) for name, mine, theirs in pairs
    }


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 3)])
def test_a_run_goes_on_with_another_number_of_processes(
    first: int, then: int, tmp_path: Path, alone: Any
) -> None:
    for count, steps, resume in ((first, 4, False), (then, None, True)):
        work = ["soft", "lora"], str(tmp_path), steps, resume
        found = [shared_work.learn(*work)] if count == 1 else together(count, shared_work.learn, *work)
        assert not [one for one in found if isinstance(one, BaseException)]
    whole = shared_work.learn(["soft", "lora"], None, None, False)
    # Adam divides by what may be small, so rounding grows: a start changed in its last bit tells how much.
    rounded = shared_work.learn(["soft", "lora"], None, None, False, LAST_BIT)
    for one in found:
        assert len(one["losses"]) < len(whole["losses"])  # it did go on
        for kind in ("soft", "lora"):
            grown = max(apart(rounded, whole, kind).values())
            assert grown < 2e-5
            assert max(apart(one, whole, kind).values()) < max(1e-5, 2 * grown), kind


# From a configuration -----------------------------------------------------------------------------


def config(folder: Path, **sections: Any) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "rows.jsonl"
    rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    about: dict[str, Any] = {
        "name": "letters",
        "data": {
            "train": str(data),
            "input": "{text}",
            "target": ":{label}",
            "labels": {"x": "a", "y": "b", "z": "c"},
        },
        "method": {"front": "Say: {soft:4}", "init": "random"},
        "train": {"epochs": 1, "learning_rate": 0.1, "batch_size": 8, "checkpoint_every": 1},
        "output": {"library": str(folder / "prompts"), "runs": str(folder / "runs")},
    }
    return parse(about | sections)


def test_a_run_of_two_leaves_the_files_of_one(tmp_path: Path) -> None:
    one, _ = shared_work.train(config(tmp_path / "one"), False)
    two = together(2, shared_work.train, config(tmp_path / "two"), False)
    assert [type(found) for found in two] == [tuple, tuple], two
    assert torch.equal(two[0][1], two[1][1])
    fronts = [Library(tmp_path / who / "prompts").load("letters").learnt for who in ("one", "two")]
    assert close(fronts[1].tensor, fronts[0].tensor)
    listed = [
        sorted(str(path.relative_to(tmp_path / who)) for path in (tmp_path / who).rglob("*"))
        for who in ("one", "two")
    ]
    assert listed[0] == listed[1]
    logs = [(tmp_path / who / "runs/letters/log.jsonl").read_text().splitlines() for who in ("one", "two")]
    for mine, expected in zip(*map(reversed, logs), strict=True):
        found, wanted = json.loads(mine), json.loads(expected)
        assert found.keys() == wanted.keys()
        assert found.get("loss", 0) == pytest.approx(wanted.get("loss", 0), abs=1e-5)
    assert two[0][0]["scores"]["validation"]["nll"] == pytest.approx(
        one["scores"]["validation"]["nll"], abs=1e-5
    )


def test_one_that_asks_to_stop_stops_all_and_a_search_is_shared_too(tmp_path: Path) -> None:
    stopped = together(2, shared_work.train, config(tmp_path), False, 2)
    assert [found[0]["training"]["ended"] for found in stopped] == ["interrupted"] * 2
    resumed = together(2, shared_work.train, config(tmp_path), True)
    assert [found[0]["training"]["ended"] for found in resumed] == ["done"] * 2
    _, front = shared_work.train(config(tmp_path / "whole"), False)
    assert close(resumed[0][1], front)

    search = {"search": {"grid": {"train.learning_rate": [0.03, 0.1]}, "seeds": [0, 1]}}
    expected, front = shared_work.train(config(tmp_path / "search", **search), False)
    found = together(2, shared_work.train, config(tmp_path / "shared", **search), False)
    assert close(found[1][1], front)
    assert found[0][0]["search"]["chosen"] == expected["search"]["chosen"]


def test_a_teacher_is_asked_once_and_all_learn_from_it(tmp_path: Path) -> None:
    taught = {"teacher": {"text": "Say ab: ", "max_new_tokens": 3}}
    expected, front = shared_work.train(config(tmp_path / "one", **taught), False)
    found = together(2, shared_work.train, config(tmp_path / "two", **taught), False)
    assert [type(one) for one in found] == [tuple, tuple], found
    assert torch.equal(found[0][1], found[1][1])
    gradient = shared_work.first_gradient(config(tmp_path / "by one", **taught))
    for shared in together(2, shared_work.first_gradient, config(tmp_path / "by two", **taught)):
        assert (shared - gradient).norm() < 1e-5 * gradient.norm()
    # Adam's first step is as long for the smallest gradient as for the largest: rounding grows in those.
    assert (found[1][1] - front).norm() < 1e-3 * front.norm()
    losses = [about["scores"]["validation"]["nll"] for about in (found[0][0], expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_other_rows_in_one_process_are_refused_in_both() -> None:
    for error in together(2, shared_work.unlike):
        assert isinstance(error, TrainingError)
        assert str(error) == "Process 1 of 2 has other rows than process 0; give all of them the same."


def test_an_error_in_one_ends_the_other() -> None:
    waiting, broken = together(2, shared_work.fails_in_one)
    assert isinstance(broken, ValueError)
    assert isinstance(waiting, TrainingError)
    assert "Another process of this run ended" in str(waiting)


# What a team tells --------------------------------------------------------------------------------


def test_sums_and_words_travel() -> None:
    found = together(3, shared_work.told)
    for rank, one in enumerate(found):
        assert one["rank"] == rank
        assert torch.equal(one["sums"][0], torch.full((3, 2), 6.0))
        assert torch.equal(one["sums"][1], torch.arange(4.0) * 6)
        assert torch.equal(one["handed"]["a"], torch.tensor([1, 2]))
        assert one["handed"]["b"].shape == (0, 3)
        assert one["told"] == {"from": 0, "text": "ä"}
        assert one["any"] == [False, True]
    assert sorted(one["first"] for one in found) == [False, False, True]


def test_shares_are_all_of_the_rows_and_alike_in_size() -> None:
    rows = shared_work.rows_of(11)
    shares = [Team(rank, 3).share(rows, lambda row: len(row.ids)) for rank in range(3)]
    assert sorted(map(id, rows)) == sorted(id(row) for share in shares for row in share)
    sizes = [sum(len(row.ids) for row in share) for share in shares]
    assert max(sizes) - min(sizes) <= max(len(row.ids) for row in rows)
    assert ALONE.share(rows) is rows


def test_a_gradient_is_one_message_unless_it_is_a_models() -> None:
    prompt = [torch.zeros(20, 576), torch.zeros(3)]
    assert [len(bucket) for bucket in _buckets(prompt)] == [2]
    large = [
        torch.zeros(1).expand(BUCKET - 1),
        torch.zeros(1),
        torch.zeros(1),
        torch.zeros(1, dtype=torch.int),
    ]
    assert [len(bucket) for bucket in _buckets(large)] == [2, 1, 1]


# As a user starts it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("typed")
    tiny.model("llama").save_pretrained(path / "base")
    tiny.tokenizer().save_pretrained(path / "base")
    rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "abc"[i % 3]} for i in range(40)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ARGS = [
    *("train", "--data", "rows.jsonl", "--input", "{text}", "--target", ":{label}", "--labels", "a,b,c"),
    *("--model", "base", "--front", "{soft:4}", "--epochs", "1", "--device", "cpu", "--dtype", "float32"),
]


def torchrun(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "softprompt", *args],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_command_under_torchrun(folder: Path) -> None:
    ran = torchrun(folder, *ARGS, "--name", "two")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("What one would type next") == 1
    assert ran.stderr.count("step 0/") == 1
    assert (folder / "prompts/two/adapter_model.safetensors").exists()


def test_a_fault_is_told_once(folder: Path) -> None:
    ran = torchrun(folder, *ARGS, "--name", "bad", "--set", "data.input={nothing}")
    assert ran.returncode != 0
    (said,) = (line for line in ran.stderr.splitlines() if line.startswith("Error: "))  # torchrun has its own
    assert "nothing" in said


def test_verbs_that_need_one_process_say_so() -> None:
    (first, second) = together(2, shared_work.typed, ["list"], [".", "."])
    assert (first, second) == (2, 2)


@pytest.mark.parametrize(
    "work",
    [compare, lambda given: distil(tiny.base(), given), lambda given: train_many(tiny.base(), [given])],
)
def test_what_one_process_does_is_refused_where_there_are_several(
    work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would write the same files, and move each other's folders aside."""
    for name, value in environment(1, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="runs in one process; start it without torchrun"):
        work({"data": {"train": "rows.jsonl", "test": "rows.jsonl", "input": "{a}", "target": "{b}"}})
    assert not list(tmp_path.iterdir())
