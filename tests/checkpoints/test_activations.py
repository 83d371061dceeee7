"""Activations are exchanged only for the same function, and on a copy of the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.bloom.modeling_bloom import BloomGelu

import tiny
from softprompt.checkpoints.activations import _same_in_one
from softprompt.checkpoints.freeze import freeze


@pytest.mark.parametrize("spelt_out", [BloomGelu(), ACT2FN["gelu_new"], ACT2FN["gelu_fast"]])
def test_a_gelu_spelt_out_is_known_by_its_values(spelt_out: nn.Module) -> None:
    found = _same_in_one(spelt_out.eval())
    assert isinstance(found, nn.GELU)
    x = torch.randn(1000, dtype=torch.float64)
    torch.testing.assert_close(found(x), spelt_out(x))


@pytest.mark.parametrize(
    "name", ["gelu", "silu", "gelu_pytorch_tanh", "quick_gelu", "relu2", "mish", "linear"]
)
def test_others_stay_as_they_are(name: str) -> None:
    assert _same_in_one(ACT2FN[name]) is None


@pytest.mark.parametrize("architecture", ["bloom", "gpt2"])
def test_the_users_own_model_keeps_its_modules(architecture: str) -> None:
    model = tiny.model(architecture)
    before = [type(module) for module in model.modules()]
    base = freeze(model, tiny.tokenizer(), "tiny")
    assert [type(module) for module in model.modules()] == before
    assert any(isinstance(module, nn.GELU) for module in base.model.modules())
    shared = {t.data_ptr() for t in model.parameters()}
    assert {t.data_ptr() for t in base.model.parameters()} == shared
