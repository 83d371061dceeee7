"""Devices and number formats, on whatever machine this is."""

from __future__ import annotations

import pytest
import torch

from softprompt.checkpoints import placement
from softprompt.checkpoints.placement import choose_device, choose_dtype
from softprompt.errors import BaseModelError, ResourceError

CPU = torch.device("cpu")


def fake_cuda(monkeypatch: pytest.MonkeyPatch, *, count: int, capability: tuple[int, int] = (8, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_takes_the_fastest(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, expected: str) -> None:
    fake_cuda(monkeypatch, count=cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "xpu", "", "meta"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(BaseModelError, match="not known: write auto, cpu, cuda"):
        choose_device(name)


def test_absent_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, count=0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="no CUDA device"):
        choose_device("cuda")
    with pytest.raises(ResourceError, match="no MPS device"):
        choose_device("mps")
    fake_cuda(monkeypatch, count=2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ResourceError, match=r"no device cuda:2: its last one is cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("float32", "fp32"), torch.float32),
        (("bfloat16", "bf16"), torch.bfloat16),
        (("float16", "fp16"), torch.float16),
    ],
)
def test_dtypes_by_name(names: tuple[str, ...], dtype: torch.dtype) -> None:
    assert {choose_dtype(name, CPU) for name in names} == {dtype}


def test_an_unknown_dtype() -> None:
    with pytest.raises(BaseModelError, match="'int8' is not known"):
        choose_dtype("int8", CPU)


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False, "cpu_name": "amx_bf16"}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, object], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert choose_dtype("auto", CPU) == dtype


def test_auto_dtype_without_torchs_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert isinstance(placement._cpu_features(), set)
    assert choose_dtype("auto", CPU) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(("capability", "dtype"), [((8, 0), torch.bfloat16), ((7, 5), torch.float32)])
def test_auto_dtype_on_cuda(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    fake_cuda(monkeypatch, count=1, capability=capability)
    assert choose_dtype("auto", torch.device("cuda")) == dtype
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
