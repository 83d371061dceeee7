"""A blueprint has the sizes of the base it describes, and is made of what is on this machine only."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from softprompt.checkpoints.load import open_model
from softprompt.errors import BaseModelError
from softprompt.planning.blueprint import draw
from softprompt.planning.shapes import SHAPES

PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "bloom-560m": 559_214_592,
    "bloomz-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "llama-7b": 6_738_415_616,
    "bloom-7b1": 7_069_016_064,
    "mistral-7b": 7_241_732_096,
    "llama3-8b": 8_030_261_248,
    "llama-13b": 13_015_864_320,
    "llama-70b": 68_976_648_192,
}
"""What the model cards say, in full."""


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_published_number_of_parameters(name: str) -> None:
    assert draw(f"shape:{name}", dtype=torch.bfloat16).parameters == PUBLISHED[name]


@pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "bloom"])
def test_weights_take_the_bytes_of_the_loaded_model(architecture: str, kind: str, tmp_path: Path) -> None:
    if kind != "none":
        pytest.importorskip("bitsandbytes")
    tiny.model(architecture).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = open_model(str(tmp_path), dtype="float32", device="cpu", quantisation=kind).model
    found = draw(str(tmp_path), dtype=torch.float32, quantisation=kind)
    assert found.linear_bytes + found.other_bytes == _held(loaded)
    assert found.here


def _held(model: Any) -> int:
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            nested = state.state2
            parts = (state.absmax, state.code, state.offset, nested.absmax, nested.code)
            tensors |= {id(t): t for t in parts}
        scales = getattr(parameter, "SCB", None)
        if scales is not None:
            tensors[id(scales)] = scales
    return sum(t.numel() * t.element_size() for t in tensors.values())


def test_nf4_of_a_7b_model_by_hand() -> None:
    found = draw("shape:llama-7b", dtype=torch.bfloat16, quantisation="nf4")
    numbers = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    scales = numbers // 64 + 4 * numbers // (64 * 256)
    assert found.linear_bytes == numbers // 2 + scales + 32 * 7 * 4 * (16 + 256 + 1)
    head_and_words, norms, frequencies = 2 * 2 * 32000 * 4096, 2 * 65 * 4096, 2 * 4 * 64
    assert found.other_bytes == head_and_words + norms + frequencies


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    tiny.CONFIGS["llama"]().save_pretrained(tmp_path)
    found = draw(str(tmp_path), dtype=torch.float32)
    assert not found.here
    assert found.guessed_tokens
    assert len(found.base.encode("twelve chars")) == 3
    assert found.parameters == sum(p.numel() for p in tiny.model("llama").parameters())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("shape:lama-7b", "did you mean llama-7b"),
        ("shape:", "There is no shape ''"),
        ("nobody/has-this", "planning downloads nothing"),
        ("llama-7b", "did you mean shape:llama-7b"),
        ("no/such/folder/at/all", "planning downloads nothing"),
    ],
)
def test_what_is_not_here_is_refused_in_a_sentence(source: str, said: str) -> None:
    with pytest.raises(BaseModelError, match=r"^There is no .*[:?]") as fault:
        draw(source, dtype=torch.float32)
    assert said in str(fault.value)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        '{"model_type": "no-such-thing"}',
        '{"model_type": "t5"}',
        '{"model_type": "llama", "num_hidden_layers": 100000000}',
        '{"model_type": "llama", "hidden_size": -4}',
        '{"model_type": "llama", "hidden_size": "wide"}',
        '{"model_type": "llama", "auto_map": {"AutoConfig": "evil.Config"}, "num_attention_heads": 0}',
    ],
)
def test_a_strange_config_is_refused_in_a_sentence(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(BaseModelError) as fault:
        draw(str(tmp_path), dtype=torch.float32)
    assert "\n" not in str(fault.value)


def test_no_code_of_a_model_is_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    about = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(BaseModelError):
        draw(str(tmp_path), dtype=torch.float32)
