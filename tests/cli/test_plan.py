"""The verb ``plan``: a table, one clear sentence, and JSON for programs."""

from __future__ import annotations

import re

import pytest

from cli.shell import Shell

CLASSIC = ("plan", "--shape", "llama-7b", "--method", "lora", "--quantisation", "nf4", "--rank", "16",
           "--targets", "q_proj,v_proj", "--batch-size", "4", "--tokens", "512")  # fmt: skip
DATA = ("--set", "data.train=moods.jsonl", "--set", r'data.input="{text}\nMood:"',
        "--set", "data.target= {label}", "--set", 'data.labels=["pos","neg"]')  # fmt: skip


def test_the_classic_question_gets_a_yes_and_by_how_much(shell: Shell) -> None:
    done = shell(*CLASSIC, "--device-memory", "16GB")
    assert done.code == 0
    assert "Fits: needs about 15.5 GB of 16.0 GB, 0.5 GB to spare." in done.out
    assert "With train.accumulation = 2 it needs about 10.1 GB." in done.out
    assert "8,388,608 numbers by lora (0.12% of the base)" in done.out


def test_a_no_says_what_to_change(shell: Shell) -> None:
    done = shell(*CLASSIC, "--device-memory", "12GB")
    assert done.code == 0
    assert "Does not fit: needs about 15.5 GB, 3.5 GB more than a GPU with 12.0 GB holds." in done.out
    assert "With train.accumulation = 2" in done.out


def test_the_courses_job_on_one_small_card_by_its_name(shell: Shell) -> None:
    done = shell("plan", "--shape", "bloom-7b1", "--method", "lora", "--quantisation", "nf4", "--rank", "16",
                 "--targets", "query_key_value", "--batch-size", "4", "--tokens", "128", "--rows", "2000",
                 "--gpu", "t4")  # fmt: skip
    assert done.code == 0
    assert "7,069,016,064 parameters" in done.out
    assert re.search(r"computes in +float32 *\n", done.out)
    assert "7,864,320 numbers by lora" in done.out
    assert "Fits: needs about 11.0 GB of 15.6 GB, 4.7 GB to spare." in done.out


def test_a_job_is_planned_and_told_as_json(shell: Shell) -> None:
    done = shell("plan", "--model", "base", *DATA, "--no-measure", "--json", "--set", "base.dtype=float32",
                 "--set", "train.epochs=3")  # fmt: skip
    assert done.code == 0
    assert done.json["fits"] is True
    assert done.json["trained"] == 640
    assert done.json["steps"] == 6
    assert done.json["timing"] is None
    assert not list(shell.folder.glob("prompts*"))


def test_a_file_is_planned_as_train_would_take_it(shell: Shell) -> None:
    shell.folder.joinpath("job.toml").write_text(
        '[base]\nmodel = "base"\ndevice = "cpu"\n[data]\ntrain = "moods.jsonl"\ninput = "{text}"\n'
        'target = " {label}"\n[train]\nepochs = 1\n',
        encoding="utf-8",
    )
    done = shell("plan", "job.toml", "--set", "train.batch_size=4")
    assert done.code == 0
    for word in (
        "Fits: needs about",
        "steps",
        "measured",
        "training",
        "together",
        "Python and its libraries",
    ):
        assert word in done.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--shape", "llama-9b"), "There is no shape 'llama-9b'"),
        (("--shape", "llama-7b", "--gpu", "t44"), "There is no card 't44' here; did you mean t4?"),
        (("--shape", "llama-7b", "--device-memory", "16 gigs"), "'16 gigs' is no size of memory"),
        (("--model", "base", "--set", "data.train=gone.jsonl"), "There is no file"),
        (("--model", "base", "--method", "full", "--quantisation", "nf4"), "cannot learn quantised weights"),
        (("--model", "base", "--method", "loar"), "did you mean lora"),
        (("--model", "base", "--shape", "llama-7b"), "give one of them"),
        ((), "There is nothing to plan"),
        (("--model", "base", "--tokens", "0"), "at least 2 tokens"),
    ],
)
def test_what_is_wrong_is_one_sentence(shell: Shell, args: tuple[str, ...], said: str) -> None:
    done = shell("plan", *args)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
