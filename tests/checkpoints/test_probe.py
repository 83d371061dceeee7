"""How a model can be read is found by trying; one that cannot be is refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers

import tiny
from softprompt.base.layout import FLAT, PADDED
from softprompt.checkpoints.freeze import freeze
from softprompt.checkpoints.probe import settle
from softprompt.errors import BaseModelError, ResourceError


def test_a_recurrent_model_is_refused_by_name() -> None:
    config = transformers.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(BaseModelError, match="mamba"):
        freeze(transformers.AutoModelForCausalLM.from_config(config), tiny.tokenizer(), "tiny-mamba")


class Deaf:
    """A model that does not heed the positions it is told."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        return self._model(**inputs)

    @property
    def model(self) -> Any:
        def backbone(**inputs: Any) -> Any:
            return self._model.model(**{k: v for k, v in inputs.items() if k != "position_ids"})

        return backbone


def test_a_model_that_ignores_positions_is_not_packed() -> None:
    base = tiny.base("llama")
    assert settle(base).layout is FLAT
    try:
        layout = settle(dataclasses.replace(base, model=Deaf(base.model))).layout
    except BaseModelError:
        return
    assert layout is PADDED


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_layout_does_not_depend_on_the_dtype(dtype: torch.dtype) -> None:
    assert tiny.base("llama", dtype=dtype).layout is FLAT
    assert tiny.base("bloom", dtype=dtype).layout is PADDED


def test_a_model_that_fails_without_a_word_is_refused_all_the_same() -> None:
    class Mute(Deaf):
        def __call__(self, **inputs: Any) -> Any:
            raise ValueError

    base = tiny.base("llama")
    with pytest.raises(BaseModelError, match="ValueError: no message"):
        settle(dataclasses.replace(base, model=Mute(base.model)))


def test_a_lack_of_memory_is_not_held_against_the_model() -> None:
    class Full(Deaf):
        def __call__(self, **inputs: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nOf which")

    base = tiny.base("llama")
    with pytest.raises(ResourceError, match=r"^There is not enough memory to read tiny-llama-0: .*\.$"):
        settle(dataclasses.replace(base, model=Full(base.model)))


@pytest.mark.parametrize(
    "config",
    [
        lambda: transformers.GPTNeoConfig(
            vocab_size=97,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=16,
            max_position_embeddings=64,
        ),
        lambda: transformers.DogeConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            keep_window_size=16,
            max_position_embeddings=64,
        ),
    ],
    ids=["gpt-neo", "doge"],
)
def test_a_window_that_short_rows_cannot_show_is_refused_by_its_name(config: Any) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config())
    with pytest.raises(BaseModelError, match=r"looks back 16 positions .* \((keep_)?window_size\)"):
        freeze(model.eval(), tiny.tokenizer(), "tiny")
