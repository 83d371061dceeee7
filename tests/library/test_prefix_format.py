"""Prefixes of layers that differ are kept as they are, and read behind as they were learnt."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import softprompt
import tiny
from library import samples
from softprompt.base.model import Base
from softprompt.errors import ArtifactError, WrongBaseError
from softprompt.library import formats, prefix_format
from softprompt.library.folder import Library
from softprompt.library.model_card import model_card
from softprompt.library.peft_format import CONFIG_FILE, WEIGHTS_FILE
from softprompt.library.prompt import Prompt
from softprompt.methods.prefix_tuning import PrefixTuning, Ways
from softprompt.prefix import Prefix

DIFFERENT = ("qwen3-next", "lfm2", "deepseek-v3", "gemma4")
"""Layers with states, layers that convolve, keys wider than values, some that share those of others."""


def learnt(base: Base) -> Prompt:
    """A KV prefix from a text, every number of it a little moved."""
    with torch.no_grad():
        method = PrefixTuning(base, Ways(base.prefill(base.embed(base.encode("say: abc"))), 1))
    samples.shaken(method.trainable_parameters(), seed=3)
    with torch.no_grad():
        front = method.front()
    return Prompt(base, front, samples.bound(base, "prefix-tuning", front.length, name="kv"))


@pytest.mark.parametrize("family", DIFFERENT)
def test_what_was_saved_is_read_behind_as_it_was_learnt(family: str, tmp_path: Path) -> None:
    base = tiny.base(family)
    prompt = learnt(base)
    prompt.save(tmp_path)
    again = softprompt.load_prompt("kv", base, tmp_path)
    assert torch.equal(samples.logits(again), samples.logits(prompt))
    with torch.no_grad():
        untouched = base.next_logits(samples.ROWS, base.prefill(base.embed(base.encode("say: abc"))))
    assert not torch.allclose(samples.logits(prompt), untouched, atol=1e-3)
    artifact = Library(tmp_path).load("kv")
    assert (artifact.payload.kind, artifact.payload.positions) == ("prefix-tuning", 8)
    assert isinstance(prompt.front, Prefix)
    assert artifact.payload.numbers == sum(t.numel() for t in (*prompt.front.keys, *prompt.front.values))
    assert formats.check(tmp_path / "kv") == 8
    assert Library(tmp_path).list()[0].fault is None
    with pytest.raises(ArtifactError, match="a prefix of layers that differ, not a prompt as PEFT has it"):
        _ = artifact.learnt


@pytest.mark.parametrize("family", DIFFERENT)
def test_rows_behind_it_and_bare_ones_in_one_batch_are_as_alone(family: str, tmp_path: Path) -> None:
    base = tiny.base(family)
    prompt = learnt(base)
    texts = ("a text", "b", "another, which is longer")
    asked = [(one, text) for text in texts for one in (prompt, None)]
    together = softprompt.answer_together(asked, base, max_new_tokens=5)
    assert together == [softprompt.answer_together([pair], base, max_new_tokens=5)[0] for pair in asked]
    assert together[::2] != together[1::2]


def test_peft_refuses_it_and_the_readme_does_not_promise_it(tmp_path: Path) -> None:
    learnt(tiny.base("lfm2")).save(tmp_path)
    with pytest.raises((KeyError, ValueError), match=prefix_format.TYPE):
        peft.PeftConfig.from_pretrained(str(tmp_path / "kv"))
    said = (tmp_path / "kv" / "README.md").read_text(encoding="utf-8")
    assert "softprompt alone reads it" in said
    assert "PeftModel" not in said
    assert "library_name: softprompt" in said
    Library(tmp_path).rename("kv", "other")
    assert "PeftModel" not in (tmp_path / "other" / "README.md").read_text(encoding="utf-8")
    assert "PeftModel" in model_card(Library(tmp_path).card("other"))


def test_it_starts_another_run_and_is_trained_from_a_configuration(tmp_path: Path) -> None:
    base = tiny.base("lfm2")
    rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    job: dict[str, Any] = {
        "name": "one",
        "data": {
            "train": str(tmp_path / "rows.jsonl"),
            "input": "{text}",
            "target": ":{label}",
            "labels": "auto",
        },
        "method": {"kind": "prefix-tuning", "front": "say: a b c d"},
        "train": {"epochs": 2, "learning_rate": 0.1, "batch_size": 4, "threads": 1},
        "output": {"library": str(tmp_path / "prompts"), "runs": str(tmp_path / "runs")},
    }
    one = softprompt.train(base, job)
    assert one.card.scores["validation"]["nll"] < one.card.scores["validation, untuned"]["nll"]
    again = softprompt.load_prompt("one", base, tmp_path / "prompts")
    assert torch.equal(samples.logits(again), samples.logits(one))
    method = {"kind": "prefix-tuning", "init": "artifact", "init_artifact": str(tmp_path / "prompts" / "one")}
    two = softprompt.train(
        base, job | {"name": "two", "method": method, "train": {**job["train"], "max_steps": 1}}
    )
    assert two.card.positions == one.card.positions


def test_another_base_is_refused(tmp_path: Path) -> None:
    prompt = learnt(tiny.base("lfm2"))
    assert isinstance(prompt.front, Prefix)
    payload = prefix_format.LayeredPrefix.of(prompt.front, prompt.base)
    for other in ("llama", "qwen3-next"):
        with pytest.raises(ArtifactError, match=r"The prefix and .* differ in .*load the base"):
            payload.meet(tiny.base(other))
    with pytest.raises(WrongBaseError):
        prefix_format.LayeredPrefix.of(prompt.front, dataclasses.replace(prompt.base, fingerprint="x"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keys.1": None}, "does not hold keys and values of 8 positions"),
        ({"keys.1": torch.ones(2, 7, 8)}, "does not hold keys and values of 8 positions"),
        ({"other": torch.ones(2)}, "does not hold keys and values of 8 positions"),
        ({"keys.1": torch.full((2, 8, 8), torch.nan)}, "not finite"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    learnt(tiny.base("lfm2")).save(tmp_path)
    path = tmp_path / "kv" / WEIGHTS_FILE
    tensors = {**load_file(path), **change}
    save_file({name: t for name, t in tensors.items() if t is not None}, path)
    with pytest.raises(ArtifactError, match=said):
        prefix_format.read(tmp_path / "kv")
    about = json.loads((tmp_path / "kv" / CONFIG_FILE).read_text())
    (tmp_path / "kv" / CONFIG_FILE).write_text(json.dumps(about | {"num_virtual_tokens": 0}))
    with pytest.raises(ArtifactError, match="not a whole number from 1"):
        prefix_format.check(tmp_path / "kv")


def test_a_model_whose_layers_are_alike_is_kept_as_pefts(tmp_path: Path) -> None:
    learnt(tiny.base()).save(tmp_path)
    assert peft.PeftConfig.from_pretrained(str(tmp_path / "kv")).peft_type == "PREFIX_TUNING"
