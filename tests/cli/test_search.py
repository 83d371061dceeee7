"""Several rates, fronts and seeds on one command line: what is typed, told and kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.shell import Shell

SHORT = ("--epochs", "2", "--set", "train.batch_size=16", "--test", "test.jsonl")
SEARCH = ("--learning-rate", "0.0001,0.05", "--front", "{soft:3}", "--front", "{soft:5}", "--seeds", "0,1")


def test_rates_fronts_and_seeds_are_tried_and_told(shell: Shell) -> None:
    done = shell.train(*SHORT, *SEARCH)
    assert done.code == 0, done.err
    assert "Trying 4 candidates on seed 0." in done.err
    assert "Validation 1: kept learning_rate" in done.err
    assert re.search(r"Chosen: learning_rate 0\.0\d+ and front \{soft:[35]\} \(\d+\.\d%\)\.", done.err)
    assert "Learning on seed 1." in done.err
    rows = [line for line in done.out.splitlines() if line.startswith("learning_rate")]
    assert len(rows) == 4
    assert sum(line.rstrip().endswith("chosen") for line in rows) == 1
    assert sum(line.rstrip().endswith("dropped") for line in rows) == 2
    assert re.search(r"^ +0  moods(-seed0)? ", done.out, re.MULTILINE)
    assert re.search(r"^ +1  moods(-seed1)? ", done.out, re.MULTILINE)
    said = r"Mean ± standard deviation over seeds: validation \d+\.\d% ± \d+\.\d%, test \d+\.\d% ± \d+\.\d%\."
    assert re.search(said, done.out)
    names = sorted(path.name for path in Path("prompts").iterdir() if path.is_dir())
    assert names in (["moods", "moods-seed0"], ["moods", "moods-seed1"])
    assert all(shell("generate", name, "hi").code == 0 for name in names)


def test_the_progress_is_one_line_for_all(shell: Shell) -> None:
    done = shell.train(*SHORT, "--learning-rate", "0.0001,0.001,0.05", "--set", "search.halving=1")
    steps = [line.split()[1] for line in done.err.splitlines() if line.startswith("step ")]
    assert steps == ["3/12", "6/12", "12/12"]  # the start with the first step, then two validations


def test_the_json_tells_what_was_tried(shell: Shell) -> None:
    card = shell.train(*SHORT, *SEARCH, "--json").json["card"]
    assert [trial["settings"]["method.front"] for trial in card["search"]["trials"]] == [
        "{soft:3}", "{soft:5}", "{soft:3}", "{soft:5}",
    ]  # fmt: skip
    assert [seed["seed"] for seed in card["search"]["seeds"]] == [0, 1]
    assert set(card["search"]["over_seeds"]) == {"validation", "test"}
    chosen = card["search"]["trials"][card["search"]["chosen"]]["settings"]
    assert card["settings"]["train"]["learning_rate"] == chosen["train.learning_rate"]
    assert shell("show", "moods", "--json").json["card"]["search"] == card["search"]


def test_seeds_alone_train_together(shell: Shell) -> None:
    done = shell.train(*SHORT, "--seeds", "0,1,2")
    assert done.code == 0, done.err
    assert "Learning on seeds 0, 1, 2." in done.err
    assert "tried" not in done.out
    assert len(list(Path("prompts").glob("moods*"))) == 3


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--learning-rate", ""), "expected numbers, such as 0.01 or 0.01,0.03, got ''"),
        (("--learning-rate", "0.1,fast"), "expected numbers, such as 0.01 or 0.01,0.03, got '0.1,fast'"),
        (("--learning-rate", "0,0.1"), "search.grid.train.learning_rate: expected a number above 0, got 0.0"),
        (("--learning-rate", "0"), "train.learning_rate: expected a number above 0, got 0.0"),
        (("--seeds", "a"), "expected numbers, such as 0,1,2, got 'a'"),
        (("--seeds", "1,1"), "search.seeds: expected different seeds, got [1, 1]"),
        (
            ("--seeds", "0,1", "--set", "method.kind=text", "--set", "method.front="),
            "search: nothing is trained",
        ),
        (("--set", "search.grid.train.learning_rat=[1]"), "did you mean train.learning_rate?"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(
    shell: Shell, args: tuple[str, ...], said: str
) -> None:
    done = shell.train(*args)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_taken_name_of_a_seed_is_refused_before_the_base_is_loaded(shell: Shell) -> None:
    Path("prompts", "moods-seed1").mkdir(parents=True)
    done = shell.train("--seeds", "0,1", "--model", "nowhere")
    assert done.code == 2
    assert "There is a prompt 'moods-seed1' in prompts already" in done.err


def test_a_stopped_run_goes_on_under_the_name_it_took(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ("--seeds", "0,1", *SHORT)
    with monkeypatch.context() as patch:
        patch.setattr("softprompt.cli.interrupt.Interrupts.asked", lambda self: True)
        stopped = shell.train(*job)
    assert stopped.code == 130
    assert "is saved. To go on from here:" in stopped.err
    done = shell.train(*job, "--resume")
    assert done.code == 0, done.err
    assert "Mean ± standard deviation" in done.out
