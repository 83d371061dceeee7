"""A stopped or killed run: what was learnt is kept, and a resumed run ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cli.shell import SETTINGS, TEMPLATE, Shell
from softprompt.cli.interrupt import Interrupts

RUN = "import sys; from softprompt.cli.main import main; main()"
JOB = ("train", "--data", "moods.jsonl", "--model", "base", *TEMPLATE, *SETTINGS)
LONG = ("--epochs", "100000", "--set", "train.evaluate_every=5", "--set", "train.schedule=constant")
SHORT = ("--epochs", "20", "--set", "train.evaluate_every=10", "--set", "train.checkpoint_every=4")
WEIGHTS = Path("moods", "adapter_model.safetensors")


def start(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *JOB, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_steps(count: int, process: subprocess.Popen[str]) -> None:
    log = Path("runs", "moods", "log.jsonl")
    end = time.monotonic() + 120
    while not log.exists() or log.read_bytes().count(b"\n") <= count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_once_saves_the_best_so_far(shell: Shell) -> None:
    process = start(*LONG)
    wait_for_steps(7, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Finishing this step" in err
    assert "is saved. To go on from here:\n  softprompt train --data moods.jsonl" in err
    assert "--resume" in err
    assert "softprompt generate moods" in out
    card = shell("show", "moods", "--json").json["card"]
    assert card["training"]["ended"] == "interrupted"
    assert shell("generate", "moods", "hi").code == 0


def test_a_killed_run_resumes_to_the_same_bytes(shell: Shell) -> None:
    assert shell(*JOB, *SHORT, "--library", "whole", "--set", "output.runs=runs-whole").code == 0
    process = start(*SHORT)
    wait_for_steps(13, process)
    process.kill()
    process.communicate()
    assert not Path("prompts", "moods").exists()
    done = shell(*JOB, *SHORT, "--resume")
    assert done.code == 0
    assert "step 10/" not in done.err  # it went on, and did not begin again
    assert Path("prompts", WEIGHTS).read_bytes() == Path("whole", WEIGHTS).read_bytes()


def test_the_first_ctrl_c_asks_and_the_second_stops(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        assert not interrupts.asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr().err.count("press Ctrl-C again") == 1


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_ctrl_c_twice_says_what_is_left(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, has_checkpoint: bool
) -> None:
    def stopped(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    if has_checkpoint:
        Path("runs", "moods").mkdir(parents=True)
        Path("runs", "moods", "checkpoint.safetensors").touch()
    monkeypatch.setattr("softprompt.training.run.train", stopped)
    done = shell(*JOB, "--name", "moods")
    assert done.code == 130
    assert ("--name moods --resume" in done.err) is has_checkpoint
    assert ("nothing is kept" in done.err) is not has_checkpoint
