"""How a model can be read is found by trying; one that cannot be is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import random
from typing import Any

import pytest
import torch
import transformers
from transformers.models.mamba2 import modeling_mamba2

import tiny
from softprompt.base.kv_pool import Chunk, KVPool
from softprompt.base.layout import ALONE, FLAT, REPEATED, TOLD
from softprompt.base.packing import TokenRow
from softprompt.checkpoints import probe
from softprompt.checkpoints.freeze import freeze
from softprompt.checkpoints.probe import settle
from softprompt.errors import BaseModelError, ResourceError


def test_a_model_that_goes_on_from_no_state_is_refused_by_name() -> None:
    """Mamba's scan of several tokens begins at zero, whatever state it is handed."""
    config = transformers.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(BaseModelError, match=r"mamba model.*8 tokens read at once do not go on from a state"):
        freeze(transformers.AutoModelForCausalLM.from_config(config), tiny.tokenizer(), "tiny-mamba")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("architecture", tiny.WITH_STATES)
def test_layers_that_keep_a_state_have_rows_in_bins_of_their_own(
    architecture: str, dtype: torch.dtype, seed: int
) -> None:
    """Told where they stand: in bfloat16 wrong positions may pass for rounding."""
    assert tiny.base(architecture, seed, dtype).layout is TOLD


def test_a_state_that_is_lost_beyond_what_is_computed_at_once_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, scan = tiny.base("mamba2"), modeling_mamba2.mamba2_chunk_scan

    def forgetful(x: torch.Tensor, *args: Any, initial_states: Any, **options: Any) -> Any:
        return scan(x, *args, initial_states=None if x.shape[1] > 40 else initial_states, **options)

    monkeypatch.setattr(modeling_mamba2, "mamba2_chunk_scan", forgetful)
    with pytest.raises(BaseModelError, match="80 tokens read at once do not go on from a state"):
        settle(base)


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
    assert not layout.inline


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_layout_does_not_depend_on_the_dtype(dtype: torch.dtype) -> None:
    assert tiny.base("llama", dtype=dtype).layout is FLAT
    assert tiny.base("bloom", dtype=dtype).layout is REPEATED


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


# Windows that a configuration hides ---------------------------------------------------------------

WINDOW = 24
LONG = (22, 300, 31, 64, 47, 120, 200, 26, 90, 150, 75, 256)


def hidden_window(architecture: str) -> Any:
    """A random model that masks by a window of 24 positions, of which its configuration speaks elsewhere."""
    common: dict[str, Any] = {
        "vocab_size": tiny.VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    made: dict[str, Any] = {
        "gpt-neo": lambda: transformers.GPTNeoConfig(
            **common,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=WINDOW,
        ),
        "doge": lambda: transformers.DogeConfig(
            **common,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            keep_window_size=WINDOW,
        ),
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made[architecture]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.2 / parameter.std())
            if name.endswith(".A"):  # which keys Doge keeps; zeros in a fresh model
                parameter.normal_()
    return model


def test_losses_and_gradients_heed_a_hidden_window() -> None:
    model = hidden_window("gpt-neo")
    plain = copy.deepcopy(model)
    base = freeze(model, tiny.tokenizer(), "tiny-gpt-neo")
    assert base.layout is ALONE
    draw = random.Random(0)
    rows = [TokenRow(tuple(draw.choices(range(4, tiny.VOCABULARY), k=length)), 1) for length in LONG]
    soft = torch.randn(5, base.width).mul_(0.3).requires_grad_()
    losses = base.nll(rows, soft).per_row()
    (gradient,) = torch.autograd.grad(losses.sum(), soft)
    expected, wanted = [], torch.zeros_like(soft)
    for row in rows:
        ids = torch.tensor(row.ids)
        embedded = torch.cat([soft, plain.get_input_embeddings()(ids)])
        logits = plain(inputs_embeds=embedded[None], use_cache=False).logits[0, len(soft) : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
        wanted += torch.autograd.grad(loss, soft)[0]
        expected.append(loss.detach())
    torch.testing.assert_close(losses.detach(), torch.stack(expected), rtol=1e-5, atol=0)
    assert (gradient - wanted).norm() / wanted.norm() < 1e-4


def test_answers_of_rows_of_all_lengths_heed_a_hidden_window() -> None:
    model = hidden_window("gpt-neo")
    plain = copy.deepcopy(model)
    base = freeze(model, tiny.tokenizer(), "tiny-gpt-neo")
    draw = random.Random(1)
    texts = [tuple(draw.choices(range(4, tiny.VOCABULARY), k=length)) for length in (22, 90, 31, 50)]
    pool, nothing = KVPool(base), base.prefill(base.embed(()))
    opened = [pool.open(nothing, 128) for _ in texts]
    slots = [slot for slot in opened if slot is not None]
    with torch.no_grad():
        pool.read([Chunk(slot, ids[:-1]) for slot, ids in zip(slots, texts, strict=True)])
        last = pool.read([Chunk(slot, ids[-1:]) for slot, ids in zip(slots, texts, strict=True)])
        expected = [plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in texts]
    torch.testing.assert_close(base.head.logits(torch.cat(last)), torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_a_model_whose_tokens_read_what_follows_them_is_refused_by_its_reason() -> None:
    model = hidden_window("doge")
    ids = torch.arange(60)[None] % 20 + 4  # words again and again: of equal ones it keeps any
    with torch.no_grad():  # the reason is true of the plain model, too
        whole, part = (model(input_ids=some, use_cache=False).logits[0, 29] for some in (ids, ids[:, :30]))
    assert (whole - part).norm() / part.norm() > 1e-3
    with pytest.raises(BaseModelError, match=r"doge model.*more than 24 tokens a token reads what follows"):
        freeze(model, tiny.tokenizer(), "tiny-doge")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("span", [40, 39, 41])
def test_one_position_more_or_less_in_a_window_shows(dtype: torch.dtype, span: int) -> None:
    torch.manual_seed(0)
    config = tiny.CONFIGS["mistral"]()
    config.sliding_window = 40
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.2 / parameter.std())
    base = freeze(model.to(dtype), tiny.tokenizer(), "tiny-mistral-40")
    assert base.layout is FLAT
    far = probe._Far.of(base, probe._Short.of(base).prefix)
    base.config.sliding_window = span  # of which our masks are made; the expected ones were before
    assert (far.disagreement(base) <= probe.TOLERANCE[dtype]) == (span == 40)


def test_numbers_of_a_configuration_that_are_no_windows_are_left_out() -> None:
    about = {
        "vocab_size": 97,
        "eos_token_id": [5, 6],
        "deep": {"list": [7, {"span": 8}], "on": True, "x": "9"},
    }
    assert sorted(probe._numbers(about)) == [("list", 7), ("span", 8)]


@pytest.mark.parametrize("family", ["gemma4", "llama4"])
def test_models_whose_configuration_or_backbone_is_called_otherwise_are_read(family: str) -> None:
    common: dict[str, Any] = {
        "vocab_size": tiny.VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    made: dict[str, Any] = {
        "gemma4": lambda: transformers.Gemma4TextConfig(
            **common,
            global_head_dim=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            vocab_size_per_layer_input=tiny.VOCABULARY,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=0,
        ),
        "llama4": lambda: transformers.Llama4TextConfig(
            **common, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=16
        ),
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made[family]()).eval()
    plain = copy.deepcopy(model)
    base = freeze(model, tiny.tokenizer(), f"tiny-{family}")
    draw = random.Random(0)
    rows = [TokenRow(tuple(draw.choices(range(4, tiny.VOCABULARY), k=length)), 1) for length in (22, 90, 31)]
    found = base.nll(rows, base.embed(())).per_row()
    for row, loss in zip(rows, found, strict=True):
        ids = torch.tensor(row.ids)
        logits = plain(input_ids=ids[None], use_cache=False).logits[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0, check_stride=False)
