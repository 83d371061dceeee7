"""The flags vLLM is started with: words a shell leaves alone, and bases that are refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import tiny
from softprompt.cli.main import run
from softprompt.errors import BaseModelError
from softprompt.vllm.flags import MIDDLEWARE, engine_fields, flags, refuse_base


def test_no_word_falls_apart_in_a_shell(tmp_path: Path) -> None:
    base = replace(tiny.base(), name="base")
    words = flags(engine_fields(base, "/a store", library="/my prompts", fingerprint="x"))
    assert not any(
        set(word) & set(" \t\n'*?[\\`$") - {"\\"} for word in words if word != str(base.model.name_or_path)
    )
    told = json.loads(words[words.index("--kv-transfer-config") + 1])
    assert told["kv_connector_extra_config"] == {
        "store": "/a store",
        "library": "/my prompts",
        "fingerprint": "x",
    }
    assert words[-2:] == ["--middleware", MIDDLEWARE]
    assert "--disable-hybrid-kv-cache-manager" in words
    assert not any("speculative" in word for word in words)


def test_the_verb_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.model("llama").save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "prompts").mkdir()
    asked = ["vllm-args", str(tmp_path / "prompts"), "--base", str(tmp_path / "base"), "--dtype", "float32"]
    assert run(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["--model", str(tmp_path / "base")]
    assert lines[lines.index("--dtype") + 1] == "float32"


@pytest.mark.parametrize(
    ("change", "why"),
    [({"is_quantized": True}, "few bits"), ({"name_or_path": "/nowhere"}, "no folder"), ({}, "keep a state")],
)
def test_a_base_that_vllm_cannot_hold_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], why: str
) -> None:
    config = SimpleNamespace(layer_types=["full_attention", "linear_attention"])
    model = SimpleNamespace(**{"config": config, "name_or_path": str(tmp_path), **change})
    with pytest.raises(BaseModelError, match=f"tiny-llama-0 cannot be served by vLLM.*{why}"):
        refuse_base(replace(tiny.base(), model=model))
