"""Weights in another order: the same model, the base's tensors untouched, the base where that cannot be."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import tiny
from library import samples
from softprompt.base.copies import linear_layers
from softprompt.base.lowrank import ridden
from softprompt.base.model import Base
from softprompt.checkpoints import prepacked as module
from softprompt.checkpoints.prepacked import Packed, prepacked

if not torch.backends.mkldnn.is_available():
    pytest.skip("this torch has no oneDNN", allow_module_level=True)


@torch.no_grad()
def logits(base: Base, prefix_of: Base | None = None) -> Tensor:
    """Logits [B, V] after some rows behind a prefix that may be another base's work."""
    prefix = (prefix_of or base).prefill(samples.soft(base))
    return base.next_logits(samples.ROWS, prefix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_same_logits_up_to_rounding(architecture: str, dtype: torch.dtype) -> None:
    base = tiny.base(architecture, dtype=dtype)
    before = samples.bytes_of(base)
    packed = prepacked(base)
    wanted, found = logits(base), logits(packed)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert float((found - wanted).norm() / wanted.norm()) < tolerance
    assert samples.bytes_of(base) == before
    assert not any(isinstance(m, Packed) for m in base.model.modules())


def test_every_linear_layer_and_the_head_are_packed_over_the_same_weights() -> None:
    base = tiny.base()
    packed = prepacked(base)
    assert not any(type(m) is nn.Linear for m in packed.model.modules())
    for name in (*linear_layers(base), "lm_head"):
        mine, theirs = packed.model.get_submodule(name), base.model.get_submodule(name)
        assert isinstance(mine, Packed)
        assert mine.weight.data_ptr() == theirs.weight.data_ptr()


def test_prefixes_of_the_one_are_read_by_the_other() -> None:
    base = tiny.base()
    packed = prepacked(base)
    assert packed.fingerprint == base.fingerprint
    assert torch.allclose(logits(packed, prefix_of=base), logits(base, prefix_of=packed), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 32), (33, 32), (1, 200, 32), (4, 1, 32), (0, 32)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_any_number_of_rows(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 48, bias=bias).requires_grad_(False)
    x = torch.randn(shape)
    assert torch.allclose(Packed(linear)(x), linear(x), atol=1e-5)


def test_layers_that_carry_changes_are_packed_inside() -> None:
    base = tiny.base("opt")  # with biases
    packed = prepacked(ridden(base))
    assert sum(isinstance(m, Packed) for m in packed.model.modules()) >= len(linear_layers(base))
    assert torch.allclose(logits(packed), logits(base), atol=1e-4)


def test_a_number_type_it_does_not_know_is_left_alone() -> None:
    base = tiny.base(dtype=torch.float64)
    assert prepacked(base) is base


def test_a_model_without_numbers_is_left_alone() -> None:
    model = tiny.model("llama").to("meta")
    base = dataclasses.replace(tiny.base(), model=model)
    assert prepacked(base) is base


def test_packing_that_does_not_give_the_same_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base()
    right = Packed.forward
    monkeypatch.setattr(module.Packed, "forward", lambda self, x: right(self, x) * 1.01)
    assert prepacked(base) is base


def test_a_processor_without_such_products_is_served_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Packed, x: Tensor) -> Tensor:
        raise RuntimeError("mkldnn_linear_pointwise: bf16 path needs a cpu with avx512bw")

    base = tiny.base()
    monkeypatch.setattr(module.Packed, "forward", refuse)
    assert prepacked(base) is base
