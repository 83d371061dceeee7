"""Every configuration that is no prompt for a decoder is refused in one sentence, by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest

import tiny
from library import samples
from softprompt.errors import ArtifactError
from softprompt.library.peft_format import CONFIG_FILE, WEIGHTS_FILE, check, read


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
        ({"peft_type": "CARTRIDGE"}, "is a 'CARTRIDGE' adapter, not a prompt"),
        ({"peft_type": ["LORA"]}, "adapter, not a prompt"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "is a prompt for 'SEQ_2_SEQ_LM'; only those for CAUSAL_LM"),
        ({"task_type": None}, "is a prompt for nothing"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2, but only 1 can be read"),
        ({"num_virtual_token": 4}, "unknown field 'num_virtual_token'; did you mean num_virtual_tokens?"),
        ({"r": 8}, "unknown field 'r'; a newer PEFT may have written it"),
        ({"prefix_projection": False}, "unknown field 'prefix_projection'"),
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


def test_a_folder_that_is_not_there_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"There is no folder .*nowhere"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file is not a folder"):
        read(tmp_path / "file")
