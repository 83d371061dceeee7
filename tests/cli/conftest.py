"""A tiny base in a folder, rows to learn from, and a library with one prompt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tiny
from cli.shell import SETTINGS, TEMPLATE, Shell, write_rows
from softprompt.cli.main import run


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
