"""What people get wrong: each fault ends with code 2, a sentence on stderr, no traceback and nothing lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cli.shell import TEMPLATE, Shell
from softprompt.errors import DivergedError

ROWS = ("train", "--model", "base", "--data", "moods.jsonl", "--name", "fresh")

TRAINING = {
    "missing file": (
        ["train", "--data", "no.jsonl", "--model", "base", *TEMPLATE],
        "There is no file",
    ),
    "missing configuration": (["train", "no.toml"], "There is no configuration file"),
    "data as configuration": (["train", "moods.jsonl"], "--data moods.jsonl"),
    "nothing at all": (["train"], "There is nothing to learn from"),
    "no template": (list(ROWS), "data.input"),
    "empty file": (["train", "--model", "base", "--data", "empty.jsonl", *TEMPLATE], "is empty"),
    "bad line": (["train", "--model", "base", "--data", "bad.jsonl", *TEMPLATE], "line 2 is not JSON"),
    "missing column": (
        [*ROWS, "--input", "{txt}", "--target", " {label}"],
        "no column 'txt'",
    ),
    "label outside the list": (
        [*ROWS, "--input", "{text}", "--target", " {label}", "--labels", "pos,bad"],
        "'neg' in column 'label' is not one of",
    ),
    "one label": ([*ROWS, "--input", "{text}", "--target", " {label}", "--labels", "pos"], "two labels"),
    "unknown key": ([*ROWS, *TEMPLATE, "--set", "train.epoch=3"], "did you mean train.epochs?"),
    "bad set": ([*ROWS, *TEMPLATE, "--set", "epochs"], "expected KEY=VALUE"),
    "bad value": ([*ROWS, *TEMPLATE, "--set", "train.epochs=many"], "train.epochs"),
    "learning rate fast": ([*ROWS, *TEMPLATE, "--learning-rate", "fast"], "expected numbers"),
    "learning rate 0": ([*ROWS, *TEMPLATE, "--learning-rate", "0"], "train.learning_rate"),
    "unknown model": ([*ROWS[:1], *ROWS[3:], *TEMPLATE, "--model", "./bse"], "was not found"),
    "hub without network": (
        [*ROWS[:1], *ROWS[3:], *TEMPLATE, "--model", "some-owner/some-model"],
        "There is no network",
    ),
    "name as path": ([*ROWS, *TEMPLATE, "--name", "../out"], "name"),
    "unknown verb": (["trian"], "did you mean train?"),
    "unknown option": (["train", "--dta", "x"], "did you mean --data?"),
    "unknown fetch": (["models", "--fetch", "gpt-99"], "No bundled base"),
}

USING = {
    "unknown prompt": (["generate", "mood", "hi"], "did you mean moods?"),
    "no library": (["show", "moods", "--library", "elsewhere"], "the library elsewhere is not there"),
    "no text": (["generate", "moods"], "There is nothing to answer"),
    "bad row": (["generate", "moods", "--row", "hello"], "expected COLUMN=VALUE"),
    "missing column": (["generate", "moods", "--row", "txt=hi"], "no column 'text'"),
    "no file": (["generate", "moods", "--file", "no.txt"], "There is no file no.txt"),
    "empty file": (["generate", "moods", "--file", "empty.jsonl"], "is empty"),
    "bad sampling": (["generate", "moods", "hi", "--top-p", "7"], "top_p must be"),
    "wrong base": (["generate", "moods", "hi", "--model", "other"], "was learnt on base"),
    "bad device": (["generate", "moods", "hi", "--device", "tpu"], "The device 'tpu' is not known"),
    "no rows": (["eval", "moods", "no.jsonl"], "There is no file"),
    "unlabelled rows": (["eval", "moods", "plain.jsonl"], "no column 'label'"),
    "existing name": (
        [*ROWS, *TEMPLATE, "--name", "moods"],
        "There is a prompt 'moods' in prompts already",
    ),
    "existing import": (["import", "prompts/moods", "--name", "moods"], "exists already"),
    "import of nothing": (["import", "no-folder", "--name", "x", "--model", "base"], "There is no folder"),
    "import without base": (["import", "peft", "--name", "x"], "name it with --model"),
    "import on other shapes": (["import", "peft", "--name", "x", "--model", "wide"], "has no config.json"),
    "import as path": (["import", "peft", "--name", "../x", "--model", "base"], "is no name for a prompt"),
    "export over a file": (["export", "moods", "moods.jsonl"], "is no folder"),
    "export into other work": (["export", "moods", "."], "holds other files"),
}


@pytest.fixture
def cluttered(taught: Shell) -> Shell:
    """A shell beside a prompt and files of every bad kind."""
    for name, text in {
        "empty.jsonl": "",
        "bad.jsonl": '{"text": "a", "label": "pos"}\n{"text": \n',
        "plain.jsonl": '{"text": "a"}\n',
    }.items():
        Path(name).write_text(text, encoding="utf-8")
    assert taught("export", "moods", "peft").code == 0
    Path("wide").mkdir()
    return taught


def state(folder: Path) -> dict[str, str]:
    """A hash of every file under ``folder``; the log of a run that never began does not count."""
    files = [file for file in folder.rglob("*") if file.is_file() and "runs" not in file.parts]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize(("args", "words"), [*TRAINING.values(), *USING.values()], ids=[*TRAINING, *USING])
def test_a_fault_is_a_sentence_and_nothing_is_lost(cluttered: Shell, args: list[str], words: str) -> None:
    before = state(cluttered.folder)
    done = cluttered(*args)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("Error: ")
    assert words in done.err
    assert "Traceback" not in done.err
    assert done.err.count("\n") <= 3
    assert state(cluttered.folder) == before

    told = cluttered(*args, "--json")
    assert told.code == 2
    assert words in told.json["error"]["message"]
    assert told.json["error"]["type"].endswith(("Error", "NoSuchOption", "BadParameter"))


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "softprompt.json"])
def test_a_damaged_artifact_is_named(taught: Shell, file: str) -> None:
    path = Path("prompts", "moods", file)
    path.write_bytes(path.read_bytes()[:-9])
    done = taught("generate", "moods", "hi")
    assert done.code == 2
    assert file in done.err
    assert done.err.count("\n") == 1


def test_a_folder_that_may_not_be_written_is_named(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    done = shell.train("--epochs", "1")
    assert done.code == 2
    assert "you may not write there; choose another folder" in done.err


def test_a_full_disk_outside_the_library_is_a_sentence(
    taught: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("softprompt.cli.show._facts", refuse)
    done = taught("show", "moods")
    assert done.code == 2
    assert "no space left" in done.err


def test_a_run_away_loss_is_a_sentence(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: Any, **options: Any) -> None:
        raise DivergedError("Training diverged at step 3; lower train.learning_rate.")

    monkeypatch.setattr("softprompt.training.run.fit_trials", diverge)
    done = shell.train()
    assert done.code == 2
    assert "Error: Training diverged at step 3; lower train.learning_rate." in done.err
    assert "Traceback" not in done.err


def test_our_own_faults_ask_for_a_report(taught: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr("softprompt.cli.show._facts", fail)
    done = taught("show", "moods")
    assert done.code == 1
    assert done.err == (
        "Error: ZeroDivisionError (division by zero): this is a fault in softprompt; run again with "
        "SOFTPROMPT_DEBUG=1 for the traceback.\n"
    )
    monkeypatch.setenv("SOFTPROMPT_DEBUG", "1")
    assert "Traceback" in taught("show", "moods").err


def test_too_little_memory_is_a_sentence(taught: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("softprompt.cli.show._facts", fail)
    done = taught("show", "moods")
    assert done.code == 2
    assert "not enough memory" in done.err


def test_a_closed_pipe_is_quiet(taught: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*args: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("softprompt.cli.faults._close_quietly", lambda: None)
    monkeypatch.setattr("softprompt.cli.show._facts", closed)
    assert (taught("show", "moods").code, taught("show", "moods").err) == (1, "")


def test_ctrl_c_ends_with_130(taught: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("softprompt.cli.show._facts", interrupt)
    assert taught("show", "moods").code == 130


def test_a_card_cannot_steer_the_terminal(taught: Shell) -> None:
    path = Path("prompts", "moods", "softprompt.json")
    card = json.loads(path.read_text(encoding="utf-8"))
    card["base"]["name"] = "\x1b[2Jbase\x07"
    path.write_text(json.dumps(card), encoding="utf-8")
    for verb in (["list"], ["show", "moods"], ["generate", "moods", "hi"]):
        done = taught(*verb)
        assert "base" in done.out + done.err
        assert not {"\x1b", "\x07"} & set(done.out + done.err)


def test_only_the_environment_of_the_tests_is_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # tests/conftest.py; else a fault above would ask the hub


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "--lr", "0.1"], "did you mean --learning-rate?"),
        (["train", "--learning_rate", "0.1"], "did you mean --learning-rate?"),
        (["train", "--Epochs", "1"], "did you mean --epochs?"),
        (["train", "--base-model", "x"], "did you mean --model?"),
        (["plan", "--base-model", "x"], "did you mean --model?"),
        (["train", "--gpu", "0"], "did you mean --device?"),
        (["train", "--warmup", "0.1"], "give it as --set train.warmup=VALUE"),
        (["train", "--rank", "4"], "give it as --set method.rank=VALUE"),
        (["train", "--bath-size", "4"], "did you mean --batch-size?"),
        (["generate", "moods", "--max-tokens", "4"], "did you mean --max-new-tokens?"),
        (["list", "--dir", "x"], "did you mean --library?"),
        (["list", "--warmup", "1"], "see softprompt list --help"),
    ],
)
def test_a_flag_of_another_name_leads_to_the_right_one(shell: Shell, args: list[str], words: str) -> None:
    done = shell(*args)
    assert done.code == 2
    assert words in done.err
