"""A file of many tensors from a stranger is believed in nothing, and read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from softprompt.errors import ArtifactError, ResourceError
from softprompt.library import weights_file
from softprompt.library.weights_file import add_file, copy_tensors, shapes_of, stream, write_tensors

TENSORS = {
    "b": torch.arange(12.0).view(3, 4),
    "a": torch.arange(6).to(torch.bfloat16),
    "none": torch.empty(0, 5),
    "one": torch.tensor(2.5, dtype=torch.float64),
    "flags": torch.tensor([True, False]),
}


def entry(start: int, end: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end], **changes}


def build(path: Path, header: Any, size: int) -> Path:
    """A file with any header and ``size`` bytes of weights."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * size)
    return path


def test_the_file_is_the_safetensors_librarys(tmp_path: Path) -> None:
    write_tensors(tmp_path / "ours", TENSORS)
    save_file(TENSORS, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_come_back_in_their_own_types(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w", TENSORS)
    digest = hashlib.sha256()
    back = dict(stream(tmp_path / "w", digest))
    assert back.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert shapes_of(tmp_path / "w") == {name: tuple(t.shape) for name, t in TENSORS.items()}
    assert digest.hexdigest() == hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest()


def test_what_is_written_needs_no_order_in_memory(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).view(3, 4).T.requires_grad_()
    write_tensors(tmp_path / "w", {"t": tensor})
    assert torch.equal(load_file(tmp_path / "w")["t"], tensor)


def test_a_copy_is_the_same_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w", {"made": "elsewhere"})
    whole, copied = hashlib.sha256(), hashlib.sha256()
    copy_tensors(tmp_path / "w", tmp_path / "copy", copied)
    add_file(tmp_path / "w", whole)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "w").read_bytes()
    assert copied.hexdigest() == whole.hexdigest()


@pytest.mark.parametrize(
    ("header", "size", "said"),
    [
        ({"a": 3}, 4, "describes 'a' in no known way"),
        ({"a": entry(0, 4, more=1)}, 4, "describes 'a' in no known way"),
        ({"a": entry(0, 4, shape=[-1])}, 4, "describes 'a' in no known way"),
        ({"a": entry(0, 4, shape=[True])}, 4, "describes 'a' in no known way"),
        ({"a": entry(0, 4, shape=[1] * 9)}, 4, "describes 'a' in no known way"),
        ({"a": entry(0, 4, data_offsets=[0])}, 4, "describes 'a' in no known way"),
        ({"a": entry(0, 4, data_offsets=[0.0, 4.0])}, 4, "describes 'a' in no known way"),
        ({"a": entry(0, 4, dtype="F8_E4M3")}, 4, "numbers of the type 'F8_E4M3'"),
        ({"a": entry(0, 4, dtype=["F32"])}, 4, "numbers of the type"),
        ({"a": entry(0, 4, shape=[2])}, 4, "the size of 'a' is not what its header says"),
        ({"a": entry(0, 4, shape=[2**40, 2**40])}, 4, "the size of 'a' is not what its header says"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "its size is not what its header says"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "its size is not what its header says"),
        ({"a": entry(4, 8)}, 8, "its size is not what its header says"),
        ({"a": entry(0, 4)}, 8, "its size is not what its header says"),
        ({"a": entry(0, 8)}, 4, "its size is not what its header says"),
        ({"a\x1b[31m" + "x" * 200: 3}, 4, r"describes 'a\x1b[31mxxx"),
    ],
)
def test_a_header_that_lies_is_refused(header: Any, size: int, said: str, tmp_path: Path) -> None:
    path = build(tmp_path / "w", header, size)
    for read in (
        shapes_of,
        lambda file: list(stream(file, hashlib.sha256())),
        lambda file: copy_tensors(file, tmp_path / "copy", hashlib.sha256()),
    ):
        with pytest.raises(ArtifactError) as caught:
            read(path)
        assert said in str(caught.value)
        assert str(path) in str(caught.value)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("kept", [0, 4, 8, 60, 300])
def test_a_truncated_file_is_damaged(kept: int, tmp_path: Path) -> None:
    write_tensors(tmp_path / "whole", TENSORS)
    (tmp_path / "w").write_bytes((tmp_path / "whole").read_bytes()[:kept])
    with pytest.raises(ArtifactError, match="is damaged"):
        shapes_of(tmp_path / "w")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1.0, torch.nan])}, tmp_path / "w")
    with pytest.raises(ArtifactError, match=r"the tensor a has 1 of 2 numbers that are not finite"):
        list(stream(tmp_path / "w", hashlib.sha256()))
    with pytest.raises(ArtifactError, match="not finite"):
        copy_tensors(tmp_path / "w", tmp_path / "copy", hashlib.sha256())
    with pytest.raises(ArtifactError, match="not finite; train it again"):
        write_tensors(tmp_path / "v", {"a": torch.tensor([torch.inf])})


def test_numbers_too_large_for_what_is_wanted_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "w")
    with pytest.raises(ArtifactError, match="not finite"):
        list(stream(tmp_path / "w", hashlib.sha256(), torch.float32))


def test_one_tensor_is_read_at_a_time(tmp_path: Path) -> None:
    """A file cut off behind its first tensor after it was opened gives that tensor still."""
    write_tensors(tmp_path / "w", {"a": torch.ones(4), "b": torch.ones(2**20)})
    tensors = stream(tmp_path / "w", hashlib.sha256())
    assert next(tensors)[0] == "a"
    with (tmp_path / "w").open("r+b") as file:
        file.truncate(2**16)
    with pytest.raises(ArtifactError, match="became shorter"):
        next(tensors)


def test_a_folder_that_is_not_there_is_a_disk_fault(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="Cannot write"):
        write_tensors(tmp_path / "nowhere" / "w", TENSORS)


def test_nothing_here_can_unpickle() -> None:
    source = Path(str(weights_file.__file__)).read_text()
    assert "torch.load" not in source
    assert "pickle" not in source
