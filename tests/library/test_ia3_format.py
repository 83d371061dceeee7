"""Vectors written here are read by PEFT and give its loss, gradient and logits; those it wrote do so here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import reference
import softprompt
import tiny
from library import samples
from softprompt.base.packing import TokenRow
from softprompt.config import Ia3Config, parse
from softprompt.errors import ArtifactError, ConfigError
from softprompt.library import formats
from softprompt.library.peft_format import CONFIG_FILE, WEIGHTS_FILE
from softprompt.methods.build import Material, build_method

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")

TRAINED = [TokenRow(tuple(range(3, 15)), 4), TokenRow((5, 6, 7, 8), 1), TokenRow((9, 4, 30, 31, 7), 2)]
NOTHING = Material(lambda k: "", lambda name: torch.empty(0))


def written(folder: Path, prompt: Any, base_name: str = "some/base") -> Path:
    folder.mkdir(exist_ok=True)
    formats.payload(prompt.base, prompt.front, prompt.change).write(folder, base_name, "abc")
    return folder


def theirs(folder: Path, architecture: str = "llama", **options: Any) -> Any:
    """A model of PEFT's with vectors that matter, saved in ``folder``."""
    options = {"target_modules": "all-linear", "feedforward_modules": []} | options
    config = peft.IA3Config(task_type="CAUSAL_LM", **options)
    wrapped: Any = peft.get_peft_model(tiny.model(architecture), config).eval()
    samples.shaken([p for n, p in wrapped.named_parameters() if "ia3_" in n], seed=5)
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_peft_reads_ours_and_we_read_peft_s(architecture: str, tmp_path: Path) -> None:
    prompt = samples.ia3(tiny.base(architecture))
    folder = written(tmp_path / "ours", prompt)
    loaded = peft.PeftModel.from_pretrained(tiny.model(architecture), folder).eval()
    found = samples.logits(prompt)
    torch.testing.assert_close(found, samples.peft_logits(loaded), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, tiny.base(architecture).next_logits(samples.ROWS, prompt.front))
    model = theirs(tmp_path / "theirs", architecture)
    met = formats.read(tmp_path / "theirs").payload.meet(tiny.base(architecture))
    with torch.no_grad():
        mine = met.base.next_logits(samples.ROWS, met.front)
    torch.testing.assert_close(mine, samples.peft_logits(model), rtol=1e-5, atol=1e-5)


def test_the_files_are_pefts(tmp_path: Path) -> None:
    name = str(tmp_path / "base")
    prompt = samples.ia3(tiny.base())
    prompt.base.config.save_pretrained(name)
    written(tmp_path / "ours", prompt, name)
    loaded = peft.PeftModel.from_pretrained(tiny.model("llama"), tmp_path / "ours")
    loaded.save_pretrained(str(tmp_path / "theirs"))
    mine, other = ((tmp_path / side / WEIGHTS_FILE).read_bytes() for side in ("ours", "theirs"))
    assert mine == other
    found, wanted = (json.loads((tmp_path / side / CONFIG_FILE).read_text()) for side in ("ours", "theirs"))
    for about in (found, wanted):
        about["target_modules"].sort()  # a set, to PEFT
        del about["revision"]
    assert found == wanted


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_loss_and_gradient_are_pefts_and_the_base_stays(architecture: str) -> None:
    base = tiny.base(architecture)
    before = samples.bytes_of(base)
    method = build_method(Ia3Config(), base, NOTHING)
    plain = base.nll(TRAINED, method.front()).nll
    found = method.base.nll(TRAINED, method.front()).nll
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)  # vectors of one change nothing
    samples.shaken(method.trainable_parameters(), seed=3)
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules="all-linear", feedforward_modules=[])
    other: Any = peft.get_peft_model(tiny.model(architecture), config).eval()
    named = {n.replace(".ia3_l.default", ".ia3_l"): p for n, p in other.named_parameters() if p.requires_grad}
    assert named.keys() == {f"base_model.model.{name}" for name in method.state()}
    with torch.no_grad():
        for name, vector in method.state().items():
            named[f"base_model.model.{name}"].copy_(vector[:, None])
    wanted = reference.padded_loss(other, TRAINED)
    wanted.backward()
    found = method.base.nll(TRAINED, method.front()).nll.mean()
    found.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for name, parameter in zip(method.state(), method.trainable_parameters(), strict=True):
        grad = named[f"base_model.model.{name}"].grad
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, grad[:, 0], rtol=1e-3, atol=1e-5)
    assert samples.bytes_of(base) == before


def test_what_cannot_be_done_exactly_is_refused(tmp_path: Path) -> None:
    theirs(tmp_path / "inputs", feedforward_modules=["down_proj"], target_modules=["q_proj", "down_proj"])
    with pytest.raises(ArtifactError, match="what some layers take is multiplied"):
        formats.read(tmp_path / "inputs")
    about = tmp_path / "inputs" / CONFIG_FILE
    about.write_text(json.dumps(json.loads(about.read_text()) | {"feedforward_modules": None}))
    with pytest.raises(ArtifactError, match="more than vectors for the outputs"):
        formats.read(tmp_path / "inputs")
    other = formats.read(written(tmp_path / "ours", samples.ia3(tiny.base()))).payload
    for use in (other.meet, other.ride):
        with pytest.raises(ArtifactError, match="load the base they were learnt on"):
            use(tiny.base("gpt2"))
    with pytest.raises(ConfigError, match="has no such linear layer"):
        build_method(Ia3Config(targets=["nothing"]), tiny.base(), NOTHING)


def test_it_is_trained_saved_and_answers_as_it_was_scored(tmp_path: Path) -> None:
    rows = [{"text": f"{i} {'xy'[i % 2]}", "label": "xy"[i % 2]} for i in range(24)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = tiny.base()
    config = parse(
        {
            "name": "vectors",
            "data": {"train": str(file), "input": "{text}", "target": ":{label}", "labels": "auto"},
            "method": {"kind": "ia3"},
            "train": {"epochs": 4, "learning_rate": 0.05, "batch_size": 8, "select": "nll"},
            "output": {"library": str(tmp_path / "prompts"), "runs": str(tmp_path / "runs")},
        }
    )
    made = softprompt.train(base, config)
    again = softprompt.load_prompt("vectors", base, tmp_path / "prompts")
    assert again.card.kind == "ia3"
    assert again.card.training is not None
    assert again.card.training.best_step > 0
    assert again.classify("7 y") == made.classify("7 y")
    assert again.evaluate(rows).nll < again.bare().evaluate(rows).nll
