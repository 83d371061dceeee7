"""A file of tensors from a stranger is believed in nothing, and read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from softprompt.errors import ArtifactError, ResourceError
from softprompt.library import tensor_file
from softprompt.library.tensor_file import (
    add_file,
    check_file,
    copy_tensors,
    read_tensor,
    refuse_changed,
    shapes_of,
    stream,
    write_tensors,
)

NAME, SHAPE = "prompt_embeddings", (3, 4)
TENSOR = torch.arange(12.0).view(SHAPE)


def build(path: Path, header: Any, size: int = 48, length: int | None = None) -> Path:
    """A file with any header and ``size`` bytes of weights."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + b"\0" * size)
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(SHAPE), "data_offsets": [0, 48], **changes}


def read(path: Path, name: str = NAME, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return read_tensor(path, name, shape, hashlib.sha256())


def refused(path: Path) -> str:
    """What ``read_tensor`` says; ``check_file`` says the same."""
    said = []
    for door in (read, check_file):
        with pytest.raises(ArtifactError) as caught:
            door(path, NAME, SHAPE)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert str(path) in said[0]
    return said[0]


def test_a_tensor_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    write_tensors(path, {NAME: TENSOR})
    check_file(path, NAME, SHAPE)
    assert torch.equal(read(path), TENSOR)


@pytest.mark.parametrize("kept", [0, 4, 8, 60, 130])
def test_a_truncated_file_is_damaged(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save_file({NAME: TENSOR}, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "is damaged" in refused(path)


def test_bytes_behind_the_weights_are_damage(tmp_path: Path) -> None:
    assert "is damaged (incomplete metadata" in refused(build(tmp_path / "w", {NAME: entry()}, size=49))


def test_an_oversized_header_is_not_read(tmp_path: Path) -> None:
    path = build(tmp_path / "w", {NAME: entry()}, size=2**25, length=2**24 + 1)
    assert "its header claims 16,777,217 bytes" in refused(path)
    assert "its header claims 9,223,372,036,854,775,808 bytes" in refused(build(path, {}, length=2**63))
    assert "is damaged (invalid header length)" in refused(build(path, {NAME: entry()}, length=2**20))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"not json", "is damaged (invalid JSON in header"),
        (b"[" * 10_000, "is damaged (invalid JSON in header"),
        ([], "is damaged (invalid JSON in header"),
        ({}, "is damaged (incomplete metadata"),
        ({"lora_A": entry()}, "has no tensor prompt_embeddings, only 'lora_A'"),
        (
            {NAME: entry(), "lm_head": entry(data_offsets=[48, 48], shape=[0])},
            "more than a prompt in it, such as the tensor 'lm_head'",
        ),
        ({NAME: 3}, "is damaged (invalid JSON in header"),
        ({NAME: {"dtype": "F32"}}, "is damaged (invalid JSON in header: missing field `shape`"),
        ({NAME: entry(dtype="I32")}, "numbers of the type torch.int32"),
        ({NAME: entry(dtype=["F32"])}, "is damaged (invalid JSON in header"),
        ({NAME: entry(shape=[12])}, "a tensor of shape [12], but its configuration asks for [3, 4]"),
        ({NAME: entry(shape=[1, 3, 4])}, "a tensor of shape [1, 3, 4]"),
        ({NAME: entry(shape="3x4")}, "is damaged (invalid JSON in header"),
        ({NAME: entry(data_offsets=[4, 52])}, "is damaged (invalid offset for tensor"),
        ({NAME: entry(dtype="F16")}, "is damaged (invalid shape, data type, or offset for tensor)"),
        ({"__metadata__": 5, NAME: entry()}, "is damaged (invalid JSON in header"),
    ],
)
def test_a_header_that_lies_is_refused(header: Any, said: str, tmp_path: Path) -> None:
    assert said in refused(build(tmp_path / "w", header))


def test_a_file_without_tensors_is_no_prompt(tmp_path: Path) -> None:
    assert "has no tensor prompt_embeddings, nothing" in refused(build(tmp_path / "w", {}, size=0))


def test_what_the_header_says_beside_is_ignored_as_elsewhere(tmp_path: Path) -> None:
    path = build(tmp_path / "w", {NAME: entry(more=1)})
    assert torch.equal(read(path), load_file(path)[NAME])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float, tmp_path: Path) -> None:
    tensor = TENSOR.clone()
    tensor[1, 1] = bad
    save_file({NAME: tensor}, tmp_path / "w")
    with pytest.raises(ArtifactError, match="has 1 of 12 numbers that are not finite"):
        read(tmp_path / "w")


def test_numbers_too_large_for_fp32_are_refused(tmp_path: Path) -> None:
    save_file({NAME: torch.full(SHAPE, 1e300, dtype=torch.float64)}, tmp_path / "w")
    with pytest.raises(ArtifactError, match="not finite"):
        read(tmp_path / "w")


def test_another_hash_means_changed(tmp_path: Path) -> None:
    save_file({NAME: TENSOR}, tmp_path / "w")
    digest = hashlib.sha256()
    read_tensor(tmp_path / "w", NAME, SHAPE, digest)
    refuse_changed(tmp_path / "w", digest, hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest())
    with pytest.raises(ArtifactError, match="was changed or damaged since it was saved"):
        refuse_changed(tmp_path / "w", digest, "0" * 64)


# Many tensors -----------------------------------------------------------------------------------

TENSORS = {
    "b": torch.arange(12.0).view(3, 4),
    "a": torch.arange(6).to(torch.bfloat16),
    "none": torch.empty(0, 5),
    "one": torch.tensor(2.5, dtype=torch.float64),
    "flags": torch.tensor([True, False]),
}


def number(start: int, end: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end], **changes}


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
        ({"a": 3}, 4, "invalid JSON in header"),
        ({"a": number(0, 4, shape=[-1])}, 4, "invalid JSON in header"),
        ({"a": number(0, 4, shape=[True])}, 4, "invalid JSON in header"),
        ({"a": number(0, 4, shape=[1] * 9)}, 4, "'a' has 9 dimensions"),
        ({"a": number(0, 4, data_offsets=[0])}, 4, "invalid JSON in header"),
        ({"a": number(0, 4, data_offsets=[0.0, 4.0])}, 4, "invalid JSON in header"),
        ({"a": number(0, 4, dtype="F8_E4M3", shape=[4])}, 4, "numbers of the type 'F8_E4M3'"),
        ({"a": number(0, 4, dtype=["F32"])}, 4, "invalid JSON in header"),
        ({"a": number(0, 4, shape=[2])}, 4, "invalid shape, data type, or offset"),
        ({"a": number(0, 4, shape=[2**40, 2**40])}, 4, "overflow computing buffer size"),
        ({"a": number(0, 4), "b": number(0, 4)}, 4, "invalid offset for tensor"),
        ({"a": number(0, 4), "b": number(8, 12)}, 12, "invalid offset for tensor"),
        ({"a": number(4, 8)}, 8, "invalid offset for tensor"),
        ({"a": number(0, 4)}, 8, "file not fully covered"),
        ({"a": number(0, 8)}, 4, "file not fully covered"),
        ({"a": number(0, 4, dtype="F\x1b[31m" + "x" * 200)}, 4, "unknown variant `F‹U+001B›[31mxxx"),
        ({"a\x1b[31m": number(4, 8)}, 8, "invalid offset for tensor `a‹U+001B›[31m`"),
    ],
)
def test_many_tensors_of_a_header_that_lies_are_refused(
    header: Any, size: int, said: str, tmp_path: Path
) -> None:
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
def test_a_truncated_file_of_many_tensors_is_damaged(kept: int, tmp_path: Path) -> None:
    write_tensors(tmp_path / "whole", TENSORS)
    (tmp_path / "w").write_bytes((tmp_path / "whole").read_bytes()[:kept])
    with pytest.raises(ArtifactError, match="is damaged"):
        shapes_of(tmp_path / "w")


def test_a_tensor_with_numbers_that_are_not_finite_is_refused(tmp_path: Path) -> None:
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
    source = Path(str(tensor_file.__file__)).read_text()
    assert "torch.load" not in source
    assert "pickle" not in source.replace("unpickled", "")
