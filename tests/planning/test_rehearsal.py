"""What is counted without numbers is what real runs hold: sizes and memory, method by method."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import load_base
from softprompt.config import Config, parse
from softprompt.errors import ConfigError
from softprompt.evaluation.score import target_rows
from softprompt.library.changed import artifact_bytes
from softprompt.methods.build import Material, build_method
from softprompt.planning.artifact import artifact_size
from softprompt.planning.blueprint import draw
from softprompt.planning.kernels import Kernels
from softprompt.planning.ledger import Ledger
from softprompt.planning.rehearsal import Rehearsal, rehearse
from softprompt.training.job import Job
from softprompt.training.loop import TrainingRun, fit
from softprompt.training.run import train

METHODS: dict[str, dict[str, Any]] = {
    "soft": {"kind": "prompt-tuning", "front": "Mood {soft:5}."},
    "labels": {"kind": "prompt-tuning", "init": "labels"},
    "residual": {"kind": "prompt-tuning", "reparametrisation": "residual"},
    "mlp": {"kind": "prompt-tuning", "reparametrisation": "mlp", "init": "random"},
    "prefix": {"kind": "prefix-tuning", "front": "{demos:2}"},
    "projected": {"kind": "prefix-tuning", "init": "random", "positions": 6},
    "lora": {"kind": "lora"},
    "lora-some": {"kind": "lora", "rank": 3, "targets": ["q_proj", "down_proj"], "front": "Mood?"},
    "dora": {"kind": "lora", "dora": True, "rank": 2},
    "ia3": {"kind": "ia3", "front": "Mood?"},
    "full": {"kind": "full", "front": "Mood?"},
}
INDEX_BYTES = 4096
"""Numbers of rows and places, which a real run has on the CPU too and a rehearsal has beside its device."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with its weights, and rows of many lengths."""
    path = tmp_path_factory.mktemp("bases")
    tiny.model("llama").save_pretrained(path / "llama")
    tiny.tokenizer().save_pretrained(path / "llama")
    draw_length = random.Random(0).randint
    rows = [{"text": "abc " * draw_length(2, 12), "label": ("pos", "neg")[i % 2]} for i in range(40)]
    (path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def job(folder: Path, method: dict[str, Any], **more: Any) -> Config:
    return parse(
        {
            "base": {"model": str(folder / "llama"), "dtype": "float32", "device": "cpu"}
            | more.pop("base", {}),
            "data": {
                "train": str(folder / "rows.jsonl"),
                "input": "{text}:",
                "target": " {label}",
                "labels": ["pos", "neg"],
            },
            "method": method,
            "train": {"batch_size": 8, "max_steps": 4, **more},
        }
    )


def planned(config: Config) -> Rehearsal:
    dtype = torch.float32 if config.base.dtype == "float32" else torch.bfloat16
    sketch = draw(config.base.model, dtype=dtype, quantisation=config.base.quantisation)
    return rehearse(config, sketch.base, "cpu")


def held_by_a_real_run(config: Config, base: Base) -> int:
    ledger = Ledger("cpu")
    ledger.ignore((*base.model.parameters(), *base.model.buffers()))
    with ledger:
        found = Job.prepare(base, config)
        rows = target_rows(found.encoded["train"].examples)
        run = TrainingRun(found.method, rows, config.train, config.seed)
        fit(run, lambda: found.score("validation"))
    return sum(ledger.most.values())


@pytest.mark.parametrize("name", METHODS)
def test_memory_is_what_a_real_run_holds(folder: Path, name: str) -> None:
    config = job(folder, METHODS[name])
    real = held_by_a_real_run(config, load_base(config.base.model, dtype="float32"))
    assert sum(planned(config).most.values()) == pytest.approx(real, rel=0.01, abs=INDEX_BYTES)


@pytest.mark.parametrize(
    ("dtype", "train"),
    [
        ("bfloat16", {}),
        ("float32", {"accumulation": 3}),
        ("float32", {"optimizer": "adafactor"}),
        ("bfloat16", {"accumulation": 2, "batch_size": 5}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["soft", "lora", "full"])
def test_memory_follows_the_settings(folder: Path, name: str, dtype: str, train: dict[str, Any]) -> None:
    config = job(folder, METHODS[name], **train, base={"dtype": dtype})
    real = held_by_a_real_run(config, load_base(config.base.model, dtype=dtype))
    found = sum(planned(config).most.values())
    # The heaviest micro-batch is taken to be the last of its step, beside the gradients of the others.
    assert 0.97 * real - INDEX_BYTES < found < 1.12 * real + INDEX_BYTES


@pytest.mark.parametrize("name", METHODS)
def test_trained_numbers_and_artifact_are_exact(folder: Path, name: str, tmp_path: Path) -> None:
    output = {"library": str(tmp_path / "prompts"), "runs": str(tmp_path / "runs")}
    config = parse(job(folder, METHODS[name], max_steps=1).model_dump() | {"output": output, "name": "it"})
    found = planned(config)
    prompt = train(load_base(config.base.model, dtype="float32"), config)
    assert found.trained == prompt.card.trained_parameters
    with Kernels("cpu"):
        assert artifact_size(found.work.method) == artifact_bytes(tmp_path / "prompts" / "it")


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("name", ["soft", "prefix", "lora", "dora", "full"])
def test_every_architecture_has_the_sizes_of_the_real_method(
    architecture: str, name: str, tmp_path: Path
) -> None:
    tiny.CONFIGS[architecture]().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    sketch = draw(str(tmp_path), dtype=torch.float32).base
    real = tiny.base(architecture)
    config = parse({"data": {"input": "x", "target": "y"}, "method": METHODS[name]}).method
    with Kernels("cpu"):
        ours = build_method(
            config, sketch, Material(lambda count: "ab " * count, lambda name: torch.empty(0))
        )
    theirs = build_method(config, real, Material(lambda count: "ab " * count, lambda name: torch.empty(0)))
    sizes = [[tuple(p.shape) for p in method.trainable_parameters()] for method in (ours, theirs)]
    assert sizes[0] == sizes[1]
    assert sketch.layout == real.layout


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_is_counted_as_it_runs(architecture: str, tmp_path: Path) -> None:
    """Forward, backward and reading on: the count on the meta device is that of real tensors."""
    rows = [TokenRow(tuple(5 + i % 80 for i in range(length)), length - 2) for length in (40, 23, 60, 9)]

    def count(base: Base, device: str) -> tuple[int, int]:
        ledger = Ledger(device)
        ledger.ignore((*base.model.parameters(), *base.model.buffers()))
        with ledger:
            front = torch.zeros(7, base.width, device=base.device, requires_grad=True)
            base.nll(rows, front).nll.sum().backward()
            with torch.no_grad():
                base.next_logits(rows, base.prefill(front))
        return sum(ledger.most.values()), ledger.flops

    real = tiny.base(architecture)
    tiny.CONFIGS[architecture]().save_pretrained(tmp_path)
    with Kernels("cpu"):
        bytes_here, flops_here = count(draw(str(tmp_path), dtype=torch.float32).base, "meta")
    bytes_there, flops_there = count(real, "cpu")
    assert flops_here == flops_there
    assert bytes_here == pytest.approx(bytes_there, abs=INDEX_BYTES)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_is_counted_nearly_as_it_runs(folder: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    config = job(folder, METHODS["lora"], base={"quantisation": kind})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes' own, on CPUs
        real = held_by_a_real_run(config, load_base(config.base.model, dtype="float32", quantisation=kind))
    found = sum(planned(config).most.values())
    assert found == pytest.approx(real, rel=0.15)


def test_full_fine_tuning_of_a_quantised_base_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="full fine-tuning cannot learn quantised weights"):
        planned(job(folder, METHODS["full"], base={"quantisation": "nf4"}))


def latent(folder: Path) -> None:
    """Values narrower than keys, and experts."""
    tiny.CONFIGS["deepseek-v3"]().save_pretrained(folder)


def second_embedding(folder: Path) -> None:
    """Each layer looks the words up once more."""
    transformers.Gemma4TextConfig(
        **tiny._LLAMA,
        head_dim=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        vocab_size_per_layer_input=tiny.VOCABULARY,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
    ).save_pretrained(folder)


def routers(folder: Path) -> None:
    """Linear layers of a kind of their own choose the experts."""
    transformers.Llama4TextConfig(
        **tiny._LLAMA, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=16
    ).save_pretrained(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("family", [latent, second_embedding, routers])
def test_what_loads_is_planned(folder: Path, tmp_path: Path, family: Any, device: str, dtype: str) -> None:
    family(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    base = draw(str(tmp_path), dtype=getattr(torch, dtype)).base
    layers = {"kind": "lora", "rank": 2, "targets": ["o_proj"], "front": "Mood?"}
    for method in (layers, {"kind": "prompt-tuning", "front": "Mood {soft:5}."}):
        found = rehearse(job(folder, method, base={"model": str(tmp_path)}), base, device)
        assert found.trained > 0
