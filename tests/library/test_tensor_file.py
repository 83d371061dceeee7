"""A weights file from a stranger is believed in nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from softprompt.errors import ArtifactError
from softprompt.library import tensor_file
from softprompt.library.tensor_file import check_file, read_tensor, tensor_bytes

NAME, SHAPE = "prompt_embeddings", (3, 4)
TENSOR = torch.arange(12.0).view(SHAPE)


def build(path: Path, header: Any, size: int = 48, length: int | None = None) -> Path:
    """A file with any header and ``size`` bytes of weights."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + b"\0" * size)
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(SHAPE), "data_offsets": [0, 48], **changes}


def refused(path: Path) -> str:
    """What ``read_tensor`` says; ``check_file`` says the same."""
    said = []
    for door in (read_tensor, check_file):
        with pytest.raises(ArtifactError) as caught:
            door(path, NAME, SHAPE)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert str(path) in said[0]
    return said[0]


def test_a_tensor_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(tensor_bytes(NAME, TENSOR))
    check_file(path, NAME, SHAPE)
    assert torch.equal(read_tensor(path, NAME, SHAPE), TENSOR)


def test_what_is_written_is_fp32_and_contiguous(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(tensor_bytes(NAME, TENSOR.T.to(torch.bfloat16).requires_grad_()))
    assert torch.equal(read_tensor(path, NAME, (4, 3)), TENSOR.T)


@pytest.mark.parametrize("kept", [0, 4, 8, 60, 130])
def test_a_truncated_file_is_damaged(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(tensor_bytes(NAME, TENSOR)[:kept])
    assert "is damaged" in refused(path)


def test_bytes_behind_the_weights_are_damage(tmp_path: Path) -> None:
    assert "its size is not what its header says" in refused(build(tmp_path / "w", {NAME: entry()}, size=49))


def test_an_oversized_header_is_not_read(tmp_path: Path) -> None:
    path = build(tmp_path / "w", {NAME: entry()}, size=2**21, length=2**20 + 1)
    assert "its header claims 1,048,577 bytes" in refused(path)
    assert "its header is cut off" in refused(build(tmp_path / "v", {NAME: entry()}, length=2**63))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"not json", "is not valid JSON"),
        (b"[" * 10_000, "is not valid JSON"),
        ([], "is not a JSON object"),
        ({}, "has no tensor prompt_embeddings, nothing"),
        ({"lora_A": entry()}, "has no tensor prompt_embeddings, only 'lora_A'"),
        ({NAME: entry(), "lm_head": entry()}, "more than a prompt in it, such as the tensor 'lm_head'"),
        ({NAME: 3}, "describes prompt_embeddings in no known way"),
        ({NAME: {"dtype": "F32"}}, "describes prompt_embeddings in no known way"),
        ({NAME: entry(more=1)}, "describes prompt_embeddings in no known way"),
        ({NAME: entry(dtype="I64")}, "numbers of the type 'I64'"),
        ({NAME: entry(dtype=["F32"])}, "numbers of the type"),
        ({NAME: entry(shape=[12])}, "a tensor of shape [12], but its configuration asks for [3, 4]"),
        ({NAME: entry(shape=[1, 3, 4])}, "a tensor of shape [1, 3, 4]"),
        ({NAME: entry(shape="3x4")}, "a tensor of shape 3x4"),
        ({NAME: entry(data_offsets=[4, 52])}, "its size is not what its header says"),
        ({NAME: entry(dtype="F16")}, "its size is not what its header says"),
    ],
)
def test_a_header_that_lies_is_refused(header: Any, said: str, tmp_path: Path) -> None:
    assert said in refused(build(tmp_path / "w", header))


def test_safetensors_has_the_last_word(tmp_path: Path) -> None:
    path = build(tmp_path / "w", {"__metadata__": 5, NAME: entry()})
    with pytest.raises(ArtifactError, match="is damaged"):
        read_tensor(path, NAME, SHAPE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float, tmp_path: Path) -> None:
    tensor = TENSOR.clone()
    tensor[1, 1] = bad
    save_file({NAME: tensor}, tmp_path / "w")
    with pytest.raises(ArtifactError, match="holds 1 of 12 numbers that are not finite"):
        read_tensor(tmp_path / "w", NAME, SHAPE)


def test_numbers_too_large_for_fp32_are_refused(tmp_path: Path) -> None:
    save_file({NAME: torch.full(SHAPE, 1e300, dtype=torch.float64)}, tmp_path / "w")
    with pytest.raises(ArtifactError, match="not finite"):
        read_tensor(tmp_path / "w", NAME, SHAPE)


def test_another_hash_means_changed(tmp_path: Path) -> None:
    save_file({NAME: TENSOR}, tmp_path / "w")
    with pytest.raises(ArtifactError, match="was changed or damaged since it was saved"):
        read_tensor(tmp_path / "w", NAME, SHAPE, "0" * 64)


def test_nothing_here_can_unpickle() -> None:
    source = Path(str(tensor_file.__file__)).read_text()
    assert "torch.load" not in source
    assert "pickle" not in source.replace("unpickled", "")
