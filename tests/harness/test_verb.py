"""``softprompt eval --harness`` scores a saved prompt on a task, as ``eval`` does on the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.conftest import bases, shell, taught, trained
from cli.shell import Shell
from harness import asking
from softprompt.data.sources import read

__all__ = ["bases", "shell", "taught", "trained"]


@pytest.fixture
def task(taught: Shell) -> str:
    rows = [dict(row) for row in read(str(taught.folder / "test.jsonl")).rows]
    return asking.write_task(
        taught.folder,
        rows,
        output_type="multiple_choice",
        doc_to_text="{{text}}\nMood:",
        doc_to_choice=[" pos", " neg"],
        doc_to_target="{{['pos', 'neg'].index(label)}}",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )


def test_eval_runs_a_task_and_gives_the_accuracy_of_the_rows(taught: Shell, task: str) -> None:
    rows = taught("eval", "moods", "test.jsonl", "--untuned", "--json", "--dtype", "float32").json["scores"]
    done = taught(
        "eval", "moods", "--harness", task, "--include-path", ".", "--untuned", "--json", "--dtype", "float32"
    )
    assert done.code == 0
    for which in ("learnt", "untuned"):
        assert done.json["harness"][which][task]["acc"] == rows[which]["accuracy"]
    shown = taught("eval", "moods", "--harness", task, "--include-path", ".", "--rows", "3")
    assert shown.code == 0
    assert "acc" in shown.out
    assert "learnt" in shown.out


@pytest.mark.parametrize(
    "wrong", [(), ("test.jsonl", "--harness", "mine"), ("test.jsonl", "--include-path", ".")]
)
def test_rows_or_tasks_but_not_both(taught: Shell, wrong: tuple[str, ...]) -> None:
    done = taught("eval", "moods", *wrong)
    assert done.code == 2
    assert "either rows to score or --harness TASK" in " ".join(done.err.split())


def test_an_unknown_folder_is_one_sentence(taught: Shell) -> None:
    done = taught("eval", "moods", "--harness", "mine", "--include-path", str(Path("absent")))
    assert done.code == 2
    assert "no folder absent of tasks" in done.err
