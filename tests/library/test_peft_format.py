"""Promise 5, portable: what is written here gives PEFT the same logits, and the other way round."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from library import samples
from softprompt.errors import ArtifactError, WrongBaseError
from softprompt.library.peft_format import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Geometry,
    Learnt,
    check,
    from_front,
    has_place_for,
    read,
    to_front,
    write,
)
from softprompt.prefix import Prefix

CAUSAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": samples.P}


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# What we write, PEFT reads -----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_peft_reads_our_soft_prompt(architecture: str, tmp_path: Path) -> None:
    base = tiny.base(architecture)
    front = samples.soft(base)
    write(tmp_path, from_front(front, base), base.name)
    loaded = peft.PeftModel.from_pretrained(tiny.model(architecture), tmp_path).eval()
    assert torch.equal(loaded.prompt_encoder["default"].embedding.weight, front)
    back = to_front(read(tmp_path)[0], base)
    assert isinstance(back, torch.Tensor)
    assert torch.equal(back, front)
    same(base.next_logits(samples.ROWS, back), samples.peft_logits(loaded))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_peft_reads_our_kv_prefix(architecture: str, tmp_path: Path) -> None:
    base = tiny.base(architecture)
    front = samples.prefix(base)
    write(tmp_path, from_front(front, base), base.name)
    loaded = peft.PeftModel.from_pretrained(tiny.model(architecture), tmp_path).eval()
    same(base.next_logits(samples.ROWS, front), samples.peft_logits(loaded))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prefix_comes_back_as_it_was(architecture: str, tmp_path: Path) -> None:
    base = tiny.base(architecture)
    front = samples.prefix(base)
    write(tmp_path, from_front(front, base), base.name)
    back = to_front(read(tmp_path)[0], base)
    assert isinstance(back, Prefix)
    assert back.digest == front.digest
    assert back.hidden is None


def test_a_prefilled_soft_prompt_can_be_written_as_a_kv_prefix(tmp_path: Path) -> None:
    base = tiny.base()
    front = samples.soft(base)
    write(tmp_path, from_front(base.prefill(front), base), base.name)
    loaded = peft.PeftModel.from_pretrained(tiny.model("llama"), tmp_path).eval()
    same(base.next_logits(samples.ROWS, front), samples.peft_logits(loaded))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize(
    ("make", "config"),
    [(samples.soft, peft.PromptTuningConfig), (samples.prefix, peft.PrefixTuningConfig)],
    ids=["soft", "kv"],
)
def test_our_configuration_is_pefts(architecture: str, make: Any, config: Any, tmp_path: Path) -> None:
    base = tiny.base(architecture)
    name = str(tmp_path / "base")
    base.config.save_pretrained(name)  # PEFT looks for it when it saves
    write(tmp_path / "ours", from_front(make(base), base), name, "abc123")
    about = config(**CAUSAL, base_model_name_or_path=name, revision="abc123")
    samples.peft_folder(tmp_path / "theirs", architecture, about)
    ours, theirs = ((tmp_path / side / CONFIG_FILE).read_text() for side in ("ours", "theirs"))
    if architecture == "opt" and make is samples.soft:  # its embeddings are narrower than its layers
        theirs = theirs.replace('"token_dim": 32', '"token_dim": 24')
    assert ours == theirs.replace(peft.__version__, "0.21.2")


def test_our_weights_file_is_pefts(tmp_path: Path) -> None:
    theirs = samples.peft_folder(tmp_path / "theirs")
    learnt, _ = read(theirs)
    write(tmp_path / "ours", learnt, "some/base")
    assert (tmp_path / "ours" / WEIGHTS_FILE).read_bytes() == (theirs / WEIGHTS_FILE).read_bytes()


# What PEFT writes, we read -----------------------------------------------------------------------


def encoder(**changes: Any) -> Any:
    return peft.PromptEncoderConfig(**CAUSAL, encoder_hidden_size=16, **changes)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.PromptTuningConfig(**CAUSAL),
        lambda: encoder(),
        lambda: encoder(encoder_reparameterization_type="LSTM"),
    ],
    ids=["prompt-tuning", "p-tuning-mlp", "p-tuning-lstm"],
)
def test_pefts_soft_prompts_give_pefts_logits(architecture: str, config: Any, tmp_path: Path) -> None:
    base = tiny.base(architecture)
    wrapped = samples.peft_model(architecture, config())
    wrapped.save_pretrained(tmp_path)
    learnt, about = read(tmp_path)
    assert learnt.kind == "prompt-tuning"
    assert about.peft_type in ("PROMPT_TUNING", "P_TUNING")
    assert torch.equal(learnt.tensor, load_file(tmp_path / WEIGHTS_FILE)["prompt_embeddings"])
    same(base.next_logits(samples.ROWS, to_front(learnt, base)), samples.peft_logits(wrapped))


@pytest.mark.parametrize("projection", [False, True], ids=["plain", "projected"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_pefts_kv_prefix_gives_pefts_logits(architecture: str, projection: bool, tmp_path: Path) -> None:
    base = tiny.base(architecture)
    config = peft.PrefixTuningConfig(**CAUSAL, prefix_projection=projection, encoder_hidden_size=16)
    wrapped = samples.peft_model(architecture, config)
    wrapped.save_pretrained(tmp_path)
    learnt, _ = read(tmp_path)
    assert learnt.kind == "prefix-tuning"
    same(base.next_logits(samples.ROWS, to_front(learnt, base)), samples.peft_logits(wrapped))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_read_as_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = samples.peft_folder(tmp_path)
    tensor = read(folder)[0].tensor.to(dtype)
    save_file({"prompt_embeddings": tensor}, folder / WEIGHTS_FILE)
    again = read(folder)[0].tensor
    assert again.dtype == torch.float32
    assert torch.equal(again, tensor.float())


# A base of another shape -------------------------------------------------------------------------


def test_a_soft_prompt_of_another_width_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"32 numbers wide, but tiny-opt-0 takes 24"):
        to_front(samples.learnt(), tiny.base("opt"))


def test_a_kv_prefix_of_another_shape_is_refused() -> None:
    llama = tiny.base()
    learnt = from_front(samples.prefix(llama), llama)
    with pytest.raises(ArtifactError, match=r"heads 2x8, but tiny-gpt2-0 has 3 layers of .* 4x8"):
        to_front(learnt, tiny.base("gpt2"))


def test_a_prefix_of_another_base_is_not_written() -> None:
    with pytest.raises(WrongBaseError):
        from_front(samples.prefix(tiny.base()), tiny.base("llama", seed=1))


def test_there_is_no_place_for_layers_of_unequal_shapes() -> None:
    base = tiny.base()
    made = samples.prefix(base)
    assert has_place_for(made, base)
    keys = (made.keys[0][:, :, :4], *made.keys[1:])
    values = (made.values[0][:, :, :4], *made.values[1:])
    for k, v in ((keys, values), (keys, made.values), (made.keys[1:], made.values[1:])):
        assert not has_place_for(Prefix(k, v, None, base.fingerprint), base)


def test_a_prefix_meets_a_base_in_the_dtype_of_its_cache() -> None:
    base = tiny.base()
    learnt = from_front(samples.prefix(base), base)
    half = tiny.base("llama", dtype=torch.bfloat16)
    front = to_front(learnt, half)
    assert isinstance(front, Prefix)
    assert front.keys[0].dtype == torch.bfloat16
    assert half.next_logits(samples.ROWS, front).isfinite().all()


# Writing -----------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    learnt = samples.learnt()
    learnt.tensor[1, 2] = torch.nan
    with pytest.raises(ArtifactError, match="1 numbers that are not finite"):
        write(tmp_path, learnt, "some/base")
    assert not list(tmp_path.iterdir())


def test_what_is_written_shares_nothing_with_the_front() -> None:
    front = samples.soft(tiny.base()).requires_grad_()
    learnt = from_front(front, tiny.base())
    assert not learnt.tensor.requires_grad
    assert learnt.tensor.data_ptr() != front.data_ptr()


@pytest.mark.parametrize("kind", ["prompt-tuning", "prefix-tuning"])
def test_nothing_in_front_can_be_kept_too(kind: Any, tmp_path: Path) -> None:
    base = tiny.base()
    width = 32 if kind == "prompt-tuning" else 96
    geometry = Geometry(3, 4, 32) if kind == "prompt-tuning" else Geometry(3, 2, 16)
    write(tmp_path, Learnt(torch.empty(0, width), kind, geometry), base.name)
    front = to_front(read(tmp_path)[0], base)
    same(base.next_logits(samples.ROWS, front), base.next_logits(samples.ROWS, torch.empty(0, 32)))


def test_check_reads_no_weights(tmp_path: Path) -> None:
    folder = samples.peft_folder(tmp_path)
    (folder / WEIGHTS_FILE).write_bytes(
        (folder / WEIGHTS_FILE).read_bytes()[:-4] + b"\x00\x00\xc0\x7f"
    )  # not a number
    assert check(folder) == samples.P
    with pytest.raises(ArtifactError, match="not finite"):
        read(folder)


# Configurations that are no prompt for a decoder ---------------------------------------------------


def changed(folder: Path, **changes: Any) -> Path:
    """A PEFT folder with some fields of its configuration replaced, or taken out by ``...``."""
    samples.peft_folder(folder)
    path = folder / CONFIG_FILE
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": ...}, "the field peft_type is missing"),
        ({"peft_type": "LORA"}, "is a LoRA adapter, not a prompt; prompt tuning, P-tuning, prefix tuning"),
        ({"peft_type": "POLY"}, "is a 'POLY' adapter, not a prompt"),
        ({"peft_type": ["LORA"]}, "adapter, not a prompt"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type is 'SEQ_2_SEQ_LM', but only CAUSAL_LM can be read"),
        ({"task_type": None}, "task_type is nothing, but only CAUSAL_LM can be read"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2, but only 1 can be read"),
        (
            {"num_virtual_token": 4},
            "unknown field 'num_virtual_token' with the value 4; did you mean num_virtual_tokens?",
        ),
        ({"r": 8}, "unknown field 'r' with the value 8; a newer PEFT may have written it"),
        ({"prefix_projection": True}, "unknown field 'prefix_projection'"),
        ({"token_dim": ...}, "the field token_dim is missing"),
        ({"task_type": ...}, "the field task_type is missing"),
        ({"num_layers": ...}, "the field num_layers is missing"),
        ({"modules_to_save": ["lm_head"]}, "a part of the model was trained too"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path is ['x'], not text"),
        ({"num_virtual_tokens": "4"}, "num_virtual_tokens is '4', not a whole number from 0"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens is true, not a whole number"),
        ({"num_virtual_tokens": -1}, "num_virtual_tokens is -1, not a whole number"),
        ({"token_dim": 0}, "token_dim is 0, not a whole number from 1"),
        ({"token_dim": 10**4000}, "not a whole number from 1 to 1,048,576"),
        (
            {"num_virtual_tokens": 2**17},
            "a prompt of 131072 positions and 32 numbers each is beyond all limits",
        ),
        ({"num_virtual_tokens": 2**14, "token_dim": 2**18}, "is beyond all limits"),
        ({"num_virtual_tokens": 5}, "shape [4, 32], but its configuration asks for [5, 32]"),
        ({"token_dim": 64}, "shape [4, 32], but its configuration asks for [4, 64]"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    changed(tmp_path, **changes)
    for door in (read, check):
        with pytest.raises(ArtifactError) as caught:
            door(tmp_path)
        assert said in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    samples.peft_folder(tmp_path, config=peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    path = tmp_path / CONFIG_FILE
    path.write_text(path.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 3'))
    with pytest.raises(ArtifactError, match="token_dim 16 cannot be split over num_attention_heads 3"):
        read(tmp_path)


def test_fields_an_older_peft_did_not_write_may_be_missing(tmp_path: Path) -> None:
    changed(tmp_path, peft_version=..., tokenizer_kwargs=..., modules_to_save=..., auto_mapping=...)
    assert read(tmp_path)[0].positions == samples.P


def test_a_lora_folder_of_peft_is_refused(tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    model: Any = peft.get_peft_model(tiny.model("llama"), config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="is a LoRA adapter, not a prompt"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON (nested too deeply)"),
        (b"[1]", "is not a JSON object"),
        (b'{"peft_type": NaN}', "it holds the number NaN"),
        (b" " * (2**20 + 1), "is larger than 1,048,576 bytes"),
    ],
    ids=["empty", "cut", "bytes", "deep", "list", "nan", "large"],
)
def test_what_is_no_json_object_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        read(tmp_path)
    assert said in str(caught.value)


def no_config(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()


def a_folder_for_weights(folder: Path) -> None:
    no_weights(folder)
    (folder / WEIGHTS_FILE).mkdir()


def a_pipe_for_weights(folder: Path) -> None:
    no_weights(folder)
    os.mkfifo(folder / WEIGHTS_FILE)


def a_pickle(folder: Path) -> None:
    no_weights(folder)
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (no_config, "has no adapter_config.json"),
        (no_weights, "has no adapter_model.safetensors"),
        (a_folder_for_weights, "adapter_model.safetensors is not a file"),
        (a_pipe_for_weights, "adapter_model.safetensors is not a file"),
        (a_pickle, "save_pretrained(folder, safe_serialization=True)"),
    ],
)
def test_a_missing_file_is_named(harm: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    samples.peft_folder(tmp_path)
    harm(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        read(tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize("off", [None, False, {}, []])
def test_a_field_of_tomorrow_that_is_off_changes_nothing(off: Any, tmp_path: Path) -> None:
    learnt, _ = read(changed(tmp_path, a_field_of_tomorrow=off, modules_to_save=off))
    assert learnt.positions == check(tmp_path) == samples.P


def test_a_folder_that_is_not_there_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"There is no folder .*nowhere"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file is not a folder"):
        read(tmp_path / "file")


# Cartridges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_peft_reads_our_prefix_as_a_cartridge(architecture: str, tmp_path: Path) -> None:
    base = tiny.base(architecture)
    front = samples.prefix(base)
    write(tmp_path, replace(from_front(front, base), frozen=1), base.name)
    loaded = peft.PeftModel.from_pretrained(tiny.model(architecture), tmp_path).eval()
    assert loaded.active_peft_config.peft_type == "CARTRIDGE"
    assert loaded.prompt_encoder["default"].num_frozen_tokens == 1
    same(base.next_logits(samples.ROWS, front), samples.peft_logits(loaded))


def test_a_cartridge_that_peft_saved_is_a_prefix_here(tmp_path: Path) -> None:
    base = tiny.base()
    config = peft.CartridgeConfig(**CAUSAL, num_frozen_tokens=2)
    made = peft.get_peft_model(tiny.model("llama"), config).eval()
    made.save_pretrained(tmp_path)
    learnt, _ = read(tmp_path)
    assert (learnt.kind, learnt.frozen, learnt.positions) == ("prefix-tuning", 2, samples.P)
    front = to_front(learnt, base)
    assert isinstance(front, Prefix)
    same(base.next_logits(samples.ROWS, front), samples.peft_logits(made))
