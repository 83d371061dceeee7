"""Runs command lines in this process, and writes the rows they learn from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from softprompt.cli.main import run

TEXTS = ("a good film", "bad bad food", "a nice place", "an awful day")
SETTINGS = ("--set", "base.dtype=float32", "--set", "data.validation_rows=8")
TEMPLATE = ("--input", r"{text}\nMood:", "--target", " {label}", "--labels", "pos,neg")


@dataclass(frozen=True)
class Done:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs ``softprompt`` in ``folder``, where a base called ``base`` and two files of rows lie."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capture = folder, capture

    def __call__(self, *args: str) -> Done:
        self._capture.readouterr()
        code = run(args)
        said = self._capture.readouterr()
        return Done(code, said.out, said.err)

    def train(self, *args: str) -> Done:
        data = ("--data", "moods.jsonl", "--model", "base")
        return self("train", *data, *TEMPLATE, *SETTINGS, *args)


def write_rows(path: Path, count: int) -> None:
    rows = [{"text": f"{TEXTS[i % 4]} {i}", "label": ("pos", "neg")[i % 2]} for i in range(count)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
