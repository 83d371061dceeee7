"""Bases in 4 and 8 bits: what is stored, that gradients flow through, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import softprompt
import tiny
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.quantise import quantised
from softprompt.errors import ConfigError, ResourceError

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

ROWS = [TokenRow(tuple(range(3, 15)), 4), TokenRow((5, 6, 7, 8), 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny"
    tiny.model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def load(folder: Path, quantisation: str, dtype: str = "float32") -> Base:
    return softprompt.load_base(str(folder), quantisation=quantisation, dtype=dtype, device="cpu")


def plain_copy(base: Base) -> Any:
    """The same model with its 4-bit weights written out in full, the others as in the checkpoint."""
    import bitsandbytes as bnb

    model = tiny.model("llama")
    for name, module in base.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            model.get_submodule(name).weight = nn.Parameter(weight.float(), requires_grad=False)
    return model


def test_nf4_has_the_loss_and_gradient_of_its_weights_written_out(folder: Path) -> None:
    base = load(folder, "nf4")
    written = softprompt.freeze(plain_copy(base), tiny.tokenizer(), "written")
    found = []
    for one in (base, written):
        front = one.embed(one.encode("abcd")).requires_grad_()
        loss = one.nll(ROWS, front).nll.sum()
        loss.backward()
        assert front.grad is not None
        found += [loss.detach(), front.grad]
    assert torch.allclose(found[0], found[2], rtol=1e-4)
    assert (found[1] - found[3]).norm() <= 1e-4 * found[3].norm()
    assert found[3].norm() > 0


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_what_is_not_quantised_is_what_the_checkpoint_holds(
    kind: str, architecture: str, tmp_path: Path
) -> None:
    model = tiny.model(architecture)
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    wanted = dict(model.named_parameters())
    plain = {n: p for n, p in load(tmp_path, kind).model.named_parameters() if p.is_floating_point()}
    assert any(n.endswith(("embed_tokens.weight", "wte.weight")) for n in plain)
    assert not any(n.endswith(("q_proj.weight", "c_attn.weight")) for n in plain)
    for name, parameter in plain.items():
        assert torch.equal(parameter, wanted[name]), name


def test_reading_does_not_change_a_byte_of_nf4_weights(folder: Path) -> None:
    base = load(folder, "nf4", "bfloat16")
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    assert any(p.dtype == torch.uint8 for p in before.values())
    with torch.no_grad():
        base.nll(ROWS, base.embed(base.encode("abcd")))
    assert all(torch.equal(before[name], p) for name, p in base.model.named_parameters())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_is_near_the_plain_one_and_another_base(folder: Path, kind: str) -> None:
    plain, base = load(folder, "none"), load(folder, kind)
    wanted, found = (one.nll(ROWS, one.embed(one.encode("ab"))).nll for one in (plain, base))
    assert (found - wanted).abs().mean() < {"nf4": 1.0, "int8": 0.1}[kind]
    assert base.fingerprint != plain.fingerprint


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_is_the_same_in_every_number_format(folder: Path, kind: str) -> None:
    bases = {name: load(folder, kind, name) for name in ("float32", "bfloat16", "float16")}
    assert len({base.fingerprint for base in bases.values()}) == 1
    for name, base in bases.items():
        kinds = {parameter.dtype for parameter in base.model.parameters()}
        assert kinds == {getattr(torch, name), torch.uint8 if kind == "nf4" else torch.int8}


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match="cannot be computed with on mps"):
        quantised("nf4", torch.float32, torch.device("mps"))
    with pytest.raises(ConfigError, match="is none, nf4 or int8, not 'fp4'"):
        quantised("fp4", torch.float32, torch.device("cpu"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ResourceError, match=r"needs the package bitsandbytes.*softprompt\[quantised\]"):
        quantised("nf4", torch.float32, torch.device("cpu"))
