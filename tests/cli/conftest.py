"""A tiny base in a folder, rows to learn from, and a shell that runs command lines in this process."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny
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


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bases of one shape, ``base`` and ``other``."""
    folder = tmp_path_factory.mktemp("bases")
    for seed, name in enumerate(("base", "other")):
        tiny.model("llama", seed=seed).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def trained(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with one prompt, ``moods``."""
    folder = tmp_path_factory.mktemp("trained")
    _furnish(folder, bases)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = ("--data", "moods.jsonl", "--test", "test.jsonl", "--model", "base", "--epochs", "1")
        assert run(["train", *data, *TEMPLATE, *SETTINGS]) == 0
    return folder / "prompts"


@pytest.fixture
def shell(
    tmp_path: Path, bases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    _furnish(tmp_path, bases)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOFTPROMPT_DEBUG", raising=False)
    return Shell(tmp_path, capsys)


@pytest.fixture
def taught(shell: Shell, trained: Path) -> Shell:
    """A shell beside a library that holds ``moods``."""
    shutil.copytree(trained, shell.folder / "prompts")
    return shell


def _furnish(folder: Path, bases: Path) -> None:
    for name in ("base", "other"):
        (folder / name).symlink_to(bases / name)
    write_rows(folder / "moods.jsonl", 40)
    write_rows(folder / "test.jsonl", 12)
