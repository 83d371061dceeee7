"""What was found out about a checkpoint comes back as it was, and never for other files than those."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from softprompt.base.model import Base
from softprompt.checkpoints import freeze as module
from softprompt.checkpoints import remembered
from softprompt.checkpoints.freeze import freeze, load_base


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base whose files count as old, and a cache of its own."""
    monkeypatch.setattr(remembered, "_SETTLED", 0.0)
    monkeypatch.setattr(remembered, "cache_root", lambda: tmp_path / "cache")
    _save(tmp_path / "base", seed=0)
    return tmp_path / "base"


def _save(folder: Path, seed: int) -> None:
    tiny.model("llama", seed=seed).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def opened(folder: Path, **options: Any) -> Base:
    return load_base(str(folder), **{"dtype": "float32", "device": "cpu", **options})


def kept(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache" / "found").glob("*"))


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that were fingerprinted and tried out, by name."""
    found: list[str] = []

    def counted(model: Any, tokenizer: Any, name: str) -> Base:
        found.append(name)
        return freeze(model, tokenizer, name)

    monkeypatch.setattr(module, "freeze", counted)
    return found


def logits(base: Base) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = base.model(torch.tensor([[5, 6, 7]])).logits
    return found


def test_a_base_is_tried_out_once(folder: Path, tries: list[str]) -> None:
    first, again = opened(folder), opened(folder)
    assert len(tries) == 1
    assert (again.fingerprint, again.layout) == (first.fingerprint, first.layout)
    assert again.config._attn_implementation == first.config._attn_implementation == "softprompt"
    assert not again.model.training
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    assert torch.equal(logits(again), logits(first))


def test_other_weights_of_equal_size_and_time_are_other_files(folder: Path, tries: list[str]) -> None:
    first, weights = opened(folder), folder / "model.safetensors"
    about = weights.stat()
    _save(folder.parent / "other", seed=1)
    shutil.copyfile(folder.parent / "other" / "model.safetensors", weights)
    os.utime(weights, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    second = opened(folder)
    assert len(tries) == 2
    assert second.fingerprint != first.fingerprint
    assert opened(folder).fingerprint == second.fingerprint
    assert len(tries) == 2


@pytest.mark.parametrize("change", ["versions", "code"])
def test_other_code_finds_out_anew(
    change: str, folder: Path, tries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder)
    if change == "versions":
        monkeypatch.setattr(remembered, "version", lambda package: "99")
    else:
        times = remembered._times
        monkeypatch.setattr(
            remembered, "_times", lambda p: (0, 0, 0, 0) if p.name == "probe.py" else times(p)
        )
    opened(folder)
    assert len(tries) == 2


def test_each_number_format_has_its_own(folder: Path, tries: list[str]) -> None:
    for dtype in ("float32", "bfloat16", "float32", "bfloat16"):
        assert opened(folder, dtype=dtype).dtype == getattr(torch, dtype)
    assert len(tries) == 2
    assert len(kept(folder)) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda about: "",
        lambda about: "[]",
        lambda about: json.dumps(about)[:-9],
        lambda about: json.dumps(about | {"finding": None}),
        lambda about: json.dumps(about | {"finding": about["finding"] | {"layout": "guessed"}}),
        lambda about: json.dumps(about | {"finding": about["finding"] | {"layout": 3}}),
        lambda about: json.dumps(about | {"finding": about["finding"] | {"fingerprint": "sha256:12"}}),
        lambda about: json.dumps(about | {"finding": about["finding"] | {"more": "x"}}),
        lambda about: json.dumps(about | {"stamp": "0" * 64}),
    ],
)
def test_a_damaged_memory_is_none(damage: Any, folder: Path, tries: list[str]) -> None:
    first = opened(folder)
    (path,) = kept(folder)
    whole = path.read_text()
    path.write_text(damage(json.loads(whole)))
    assert opened(folder).fingerprint == first.fingerprint
    assert len(tries) == 2
    assert path.read_text() == whole


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(model: Any, tokenizer: Any, name: str) -> Base:
        (folder / "config.json").touch()
        return freeze(model, tokenizer, name)

    monkeypatch.setattr(module, "freeze", slow)
    opened(folder)
    assert kept(folder) == []


def test_nor_is_one_that_has_just_been_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_SETTLED", 60.0)
    opened(folder)
    assert kept(folder) == []


def test_a_cache_that_cannot_be_written_is_done_without(folder: Path, tries: list[str]) -> None:
    (folder.parent / "cache").write_text("in the way")
    assert opened(folder).fingerprint == opened(folder).fingerprint
    assert len(tries) == 2
