"""One checkpoint has one fingerprint; anything that would make a saved prompt wrong gives another."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from softprompt.checkpoints.fingerprint import fingerprint


@pytest.fixture
def model() -> Any:
    return tiny.model("llama")


@pytest.fixture
def tokenizer() -> Any:
    return copy.deepcopy(tiny.tokenizer())


def test_it_is_stable_and_reads_only(model: Any, tokenizer: Any) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = fingerprint(model, tokenizer)
    assert first.startswith("sha256:")
    assert len(first) == 71
    assert fingerprint(model, tokenizer) == first
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_saving_and_half_precision_keep_it(architecture: str, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny.model(architecture)
    expected = fingerprint(model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert fingerprint(again, AutoTokenizer.from_pretrained(tmp_path)) == expected


def test_padding_and_truncation_are_not_part_of_it(model: Any, tokenizer: Any) -> None:
    expected = fingerprint(model, tokenizer)
    tokenizer(["a", "a long text"], padding=True, truncation=True, max_length=4)
    assert fingerprint(model, tokenizer) == expected


def test_attention_and_training_mode_are_not_part_of_it(model: Any, tokenizer: Any) -> None:
    expected = fingerprint(model, tokenizer)
    model.train().requires_grad_(False)
    model.set_attn_implementation("eager")
    assert fingerprint(model, tokenizer) == expected


def test_every_tensor_counts(model: Any, tokenizer: Any) -> None:
    seen = {fingerprint(model, tokenizer)}
    for parameter in model.parameters():
        with torch.no_grad():
            kept = parameter.view(-1)[-1].clone()
            parameter.view(-1)[-1] += 1
            seen.add(fingerprint(model, tokenizer))
            parameter.view(-1)[-1] = kept
    assert len(seen) == 1 + len(list(model.parameters()))


def test_another_seed_another_name(tokenizer: Any) -> None:
    assert fingerprint(tiny.model("llama", seed=1), tokenizer) != fingerprint(tiny.model("llama"), tokenizer)


def test_what_shapes_do_not_tell_counts(model: Any, tokenizer: Any) -> None:
    expected = fingerprint(model, tokenizer)
    for change in (
        {"num_attention_heads": 8},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ):
        other = copy.deepcopy(model)
        for key, value in change.items():
            setattr(other.config, key, value)
        assert fingerprint(other, tokenizer) != expected


def test_the_tokenizer_counts(model: Any, tokenizer: Any) -> None:
    seen = {fingerprint(model, tokenizer)}
    word = copy.deepcopy(tokenizer)
    word.add_tokens(["business"])
    seen.add(fingerprint(model, word))
    special = copy.deepcopy(tokenizer)
    special.pad_token = "</s>"
    seen.add(fingerprint(model, special))
    split = copy.deepcopy(tokenizer)
    split.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    seen.add(fingerprint(model, split))
    assert len(seen) == 4


def test_large_tensors_are_sampled_in_every_column(tokenizer: Any) -> None:
    """A change of one column shows although most elements are skipped."""

    class Wide(torch.nn.Module):
        def __init__(self, changed: int | None) -> None:
            super().__init__()
            table = torch.zeros(4096, 96)
            if changed is not None:
                table[:, changed] = 1
            self.table = torch.nn.Parameter(table)
            self.config = tiny.model("llama").config

    names = {fingerprint(Wide(column), tokenizer) for column in (None, *range(0, 96, 7))}
    assert len(names) == 15


def test_tied_weights_and_recomputed_buffers_count_once(tokenizer: Any) -> None:
    tied = tiny.model("gpt2")
    expected = fingerprint(tied, tokenizer)
    assert tied.lm_head.weight is tied.transformer.wte.weight
    rotary = tiny.model("llama")
    before = fingerprint(rotary, tokenizer)
    rotary.model.rotary_emb.inv_freq += 1
    assert fingerprint(rotary, tokenizer) == before
    assert expected != before


def test_it_is_quick(tokenizer: Any) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(64)))  # 67M parameters
    model.config = tiny.model("llama").config
    fingerprint(model, tokenizer)
    began = time.process_time()
    fingerprint(model, tokenizer)
    assert time.process_time() - began < 1
