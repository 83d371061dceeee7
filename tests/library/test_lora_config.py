"""A LoRA's configuration from a stranger: what cannot be done exactly is refused in one sentence, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest

from softprompt.errors import ArtifactError
from softprompt.library.lora_config import build_lora_config, read_lora_config

SETTINGS = {"rank": 4, "alpha": 8.0, "targets": ["v_proj", "q_proj"], "rslora": True, "dora": False}


def changed(folder: Path, **changes: Any) -> Path:
    """A configuration as PEFT writes it, with some fields replaced, or taken out by ``...``."""
    path = folder / "adapter_config.json"
    values = build_lora_config(SETTINGS, "some/base", "abc", transposed=False) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    return path


def test_settings_come_back(tmp_path: Path) -> None:
    about, settings = read_lora_config(changed(tmp_path))
    assert settings == SETTINGS | {"targets": ["q_proj", "v_proj"]}
    assert about["base_model_name_or_path"] == "some/base"
    assert about["revision"] == "abc"


def test_pefts_own_defaults_can_be_read(tmp_path: Path) -> None:
    peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    _, settings = read_lora_config(tmp_path / "adapter_config.json")
    assert settings == {"rank": 8, "alpha": 8.0, "targets": ["q_proj"], "rslora": False, "dora": False}


def test_peft_reads_what_is_written(tmp_path: Path) -> None:
    changed(tmp_path)
    found: Any = peft.LoraConfig.from_pretrained(str(tmp_path))
    assert (found.r, found.lora_alpha, found.use_rslora, found.use_dora) == (4, 8, True, False)
    assert set(found.target_modules) == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    "changes",
    [
        {"task_type": None},
        {"lora_dropout": 0.1},
        {"fan_in_fan_out": True},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"inference_mode": False},
        {"lora_alpha": 2.5},
        {"modules_to_save": []},
        {"peft_version": "9.9"},
        {"a_field_of_tomorrow": None},
        {"a_field_of_tomorrow": False},
        {"use_dora": ..., "use_rslora": ..., "lora_bias": ..., "peft_version": ...},
    ],
)
def test_what_changes_nothing_is_accepted(changes: dict[str, Any], tmp_path: Path) -> None:
    read_lora_config(changed(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bias": "all"}, "bias is 'all', so biases of the model were trained too"),
        ({"lora_bias": True}, "so its adapters have biases"),
        ({"modules_to_save": ["lm_head"]}, "so a part of the model was trained too"),
        ({"rank_pattern": {"q_proj": 2}}, "so its layers have different ranks"),
        ({"alpha_pattern": {"q_proj": 2}}, "so its layers are scaled differently"),
        ({"layers_to_transform": [0]}, "so only some layers are adapted"),
        ({"layers_to_transform": 0}, "so only some layers are adapted"),
        ({"layers_pattern": "layers"}, "so only some layers are adapted"),
        ({"exclude_modules": ["q_proj"]}, "left out by a rule"),
        ({"init_lora_weights": "pissa"}, "a base whose weights were changed when it began"),
        ({"init_lora_weights": "pissa_niter_4"}, "a base whose weights were changed when it began"),
        ({"init_lora_weights": "olora"}, "a base whose weights were changed when it began"),
        ({"init_lora_weights": "loftq"}, "a base whose weights were changed when it began"),
        ({"init_lora_weights": 1}, "a base whose weights were changed when it began"),
        ({"loftq_config": {"loftq_bits": 4}}, "a base whose weights were changed when it began"),
        ({"trainable_token_indices": [1]}, "so embeddings of the model were trained too"),
        ({"target_parameters": ["experts"]}, "outside of linear layers"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "so it repeats layers of the model"),
        ({"alora_invocation_tokens": [5]}, "so it acts only behind certain tokens"),
        ({"use_qalora": True}, "more than LoRA, rsLoRA and DoRA do"),
        ({"velora_config": {"rank": 1}}, "more than LoRA, rsLoRA and DoRA do"),
        ({"rank_patern": {"a": 1}}, "field 'rank_patern' with the value {'a': 1}; did you mean rank_pattern"),
        ({"wholly_new": 3}, "unknown field 'wholly_new' with the value 3; a newer PEFT may have written it"),
        ({"wholly_new": True}, "a newer PEFT may have written it"),
        ({"task_type": "SEQ_CLS"}, "is an adapter for 'SEQ_CLS'; only those for CAUSAL_LM"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3, not text"),
        ({"r": 0}, "r is 0, not a whole number from 1 to 65,536"),
        ({"r": 10**9}, "not a whole number from 1"),
        ({"r": True}, "r is true, not a whole number"),
        ({"r": "8"}, "r is '8', not a whole number"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', not a number"),
        ({"lora_alpha": 1e300}, "not a number from 0 to 1,048,576"),
        ({"use_dora": 1}, "use_dora is 1, not true or false"),
        ({"target_modules": r".*q_proj|(a+)+$"}, "target_modules is the pattern"),
        ({"target_modules": None}, "not a list of names"),
        ({"target_modules": []}, "not a list of names"),
        ({"target_modules": [3]}, "not a list of names"),
        ({"target_modules": ["x" * 301]}, "not a list of names"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_exactly_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = changed(tmp_path, **changes)
    with pytest.raises(ArtifactError) as caught:
        read_lora_config(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"r": NaN}', b" " * (2**20 + 1)])
def test_what_is_no_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        read_lora_config(tmp_path / "adapter_config.json")
