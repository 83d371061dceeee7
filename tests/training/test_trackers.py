"""A run followed by a tracker: the same numbers as in its own log, and sentences where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import softprompt
import tiny
from softprompt.config import parse
from softprompt.errors import ConfigError, ResourceError
from softprompt.training.trackers import PROJECT

ROWS = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(12)]


def learn(folder: Path, **more: Any) -> None:
    settings: dict[str, Any] = {
        "input": "{text}:",
        "target": " {label}",
        "labels": "auto",
        "epochs": 2,
        "batch_size": 4,
    }
    output = {"library": str(folder / "prompts"), "runs": str(folder / "runs")}
    softprompt.train(tiny.base(), ROWS, name="followed", output=output, **settings | more)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tracker_is_told_what_the_log_says(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    learn(tmp_path, report_to=["tensorboard"])
    folder = tmp_path / "runs" / "followed"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = events.EventAccumulator(str(folder / PROJECT)).Reload()
    told = {event.step: event.value for event in seen.Scalars("loss")}
    assert told == {line["step"]: pytest.approx(line["loss"]) for line in log if "loss" in line}
    validated = {event.step: event.value for event in seen.Scalars("validation/accuracy")}
    assert validated == {
        line["step"]: pytest.approx(line["scores"]["accuracy"]) for line in log if "scores" in line
    }


def test_a_tracker_that_is_not_there_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="comet_ml, which is not installed; install the package comet-ml"):
        learn(tmp_path, report_to=["comet_ml"])
    assert not (tmp_path / "runs" / "followed").exists()


def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="follows one run"):
        learn(tmp_path, report_to=["tensorboard"], seeds=[0, 1])
    with pytest.raises(ConfigError, match=r"train\.report_to"):
        learn(tmp_path, report_to=["tensorbord"])
    with pytest.raises(ConfigError, match="not a comparison"):
        softprompt.compare(ROWS, test=ROWS, input="{text}", target=" {label}", report_to=["tensorboard"])


def test_a_run_that_nobody_follows_is_called_as_before() -> None:
    written = parse({"data": {"input": "i", "target": "t"}}).model_dump(mode="json")
    assert "report_to" not in written["train"]
