"""What a run of LoRA or full fine-tuning leaves: an artifact bound to the frozen base, not its copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import softprompt
import tiny
from library import samples
from softprompt.config import Config, parse
from softprompt.data.sources import read
from softprompt.library.prompt import Prompt

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 2},
    "dora": {"kind": "lora", "rank": 2, "dora": True, "targets": ["q_proj", "down_proj"]},
    "full": {"kind": "full"},
    "behind words": {"kind": "lora", "rank": 2, "front": "Say: "},
}
each_method = pytest.mark.parametrize("method", METHODS)


def config(folder: Path, method: str) -> Config:
    rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "abc"[i % 3]} for i in range(24)]
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse(
        {
            "name": "letters",
            "data": {
                "train": str(source),
                "validation": str(source),
                "test": str(source),
                "input": "{text}",
                "target": ":{label}",
                "labels": ["a", "b", "c"],
            },
            "method": METHODS[method],
            "train": {"epochs": 2, "learning_rate": 0.01, "batch_size": 8},
            "output": {"library": str(folder / "prompts"), "runs": str(folder / "runs")},
        }
    )


def trained(folder: Path, method: str) -> Prompt:
    return softprompt.train(tiny.base(), config(folder, method))


@each_method
def test_the_card_names_the_frozen_base(method: str, tmp_path: Path) -> None:
    base = tiny.base()
    before = samples.bytes_of(base)
    prompt = trained(tmp_path, method)
    assert samples.bytes_of(base) == before
    assert prompt.base.fingerprint != base.fingerprint
    assert prompt.card.base.fingerprint == base.fingerprint
    assert prompt.card.base.quantisation == "none"
    assert prompt.card.kind == METHODS[method]["kind"]
    assert prompt.card.positions == len(METHODS[method].get("front", ""))  # a letter is a token
    assert prompt.change is not None
    assert prompt.card.trained_parameters == sum(t.numel() for t in prompt.change.tensors.values())
    assert prompt.card.scores["test"]["nll"] < prompt.card.scores["test, untuned"]["nll"]


@each_method
def test_the_artifact_scores_and_answers_as_the_run_did(method: str, tmp_path: Path) -> None:
    prompt = trained(tmp_path, method)
    again = softprompt.load_prompt("letters", tiny.base(), tmp_path / "prompts")
    assert torch.equal(samples.logits(again), samples.logits(prompt))
    scores = again.evaluate(read(str(tmp_path / "rows.jsonl"))).summary()
    assert scores["nll"] == pytest.approx(prompt.card.scores["test"]["nll"], rel=1e-6)
    assert again.generate(["1 x", "2 y"]) == prompt.generate(["1 x", "2 y"])


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_the_artifact_gives_others_the_same_loss(method: str, tmp_path: Path) -> None:
    prompt = trained(tmp_path, method)
    folder = tmp_path / "prompts" / "letters"
    theirs: Any = (
        transformers.AutoModelForCausalLM.from_pretrained(folder)
        if method == "full"
        else peft.PeftModel.from_pretrained(tiny.model("llama"), folder)
    )
    row = samples.ROWS[1]
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids, labels=ids).loss
        found = prompt.base.nll([row], prompt.front).nll.mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
