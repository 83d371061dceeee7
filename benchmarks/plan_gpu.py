"""The classic case on a real GPU: a 7B-shaped model by QLoRA under a cap of 16 GB, measured against its plan.

    python benchmarks/plan_gpu.py [--json] [--shape llama-7b] [--cap 16GB] [--batch-size 4] [--tokens 512]
    python benchmarks/plan_gpu.py --shape bloom-7b1 --targets query_key_value --tokens 128

Needs one CUDA device and ``pip install 'softprompt[lora,quantised]'``. No file of a model is needed: the
weights are random, made and stored in NF4 one layer at a time, so that the model never stands there in 16
bits. The cap is ``torch.cuda.set_per_process_memory_fraction``: a step that needs more fails as it would on a
smaller card. What is compared is what torch allocated; the plan's line for CUDA itself is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from machine import PeakMemory, describe, resident
from softprompt.base.attention import IMPLEMENTATION, register
from softprompt.base.layout import PACKED
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.placement import choose_dtype
from softprompt.checkpoints.quantise import keep_differentiable
from softprompt.config import Config, parse
from softprompt.data.rows import Encoded, Example
from softprompt.evaluation.score import score
from softprompt.listener import Listener, Report
from softprompt.methods.build import Material, build_method
from softprompt.planning.plan import Plan, plan
from softprompt.planning.shapes import SHAPES
from softprompt.planning.sizes import parse_size
from softprompt.training.loop import TrainingRun, fit

STEPS = 4
SCORED = 4  # one token in so many


class Words:
    """All of a tokenizer that is asked for here."""

    eos_token_id = 2
    all_special_ids = (0, 1, 2)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 100 for letter in text]}


def random_base(shape: str, device: torch.device, dtype: torch.dtype) -> Base:
    """A frozen base of random weights, its linear layers in NF4 with double quantisation."""
    import transformers
    from bitsandbytes.nn import Linear4bit, Params4bit

    config = transformers.AutoConfig.for_model(**SHAPES[shape])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            weight = torch.randn(module.weight.shape, dtype=torch.bfloat16, device=device) * 0.02
            layer = Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=dtype,
                compress_statistics=True,
                quant_type="nf4",
                device="meta",
            )
            layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
            owner, _, local = name.rpartition(".")
            layer = layer.to(device)
            layer.bias = module.bias  # filled below
            setattr(model.get_submodule(owner), local, layer)
            del weight
    fill(model, device)
    keep_differentiable(model)
    model.eval().requires_grad_(False)
    register()
    model.set_attn_implementation(IMPLEMENTATION)
    return Base(model, Words(), shape, "random", PACKED)


def fill(model: Any, device: torch.device) -> None:
    """Give every tensor that is still without numbers some: norms ones, the rest small noise."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                filled = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                filled = filled.normal_(std=0.02) if filled.dim() > 1 else filled.fill_(1.0)
                setattr(module, name, nn.Parameter(filled, requires_grad=False))
    if any(buffer.is_meta for buffer in model.buffers()):
        backbone = getattr(model, model.base_model_prefix)
        backbone.rotary_emb = type(backbone.rotary_emb)(model.config).to(device)


def settings(asked: argparse.Namespace) -> Config:
    """The tutorials' QLoRA job."""
    return parse(
        {
            "base": {"model": f"shape:{asked.shape}", "quantisation": "nf4"},
            "data": {"input": "{text}", "target": " {target}"},
            "method": {"kind": "lora", "rank": asked.rank, "targets": asked.targets.split(",")},
            "train": {"batch_size": asked.batch_size, "accumulation": asked.accumulation},
        }
    )


def measured(config: Config, tokens: int, base: Base, steps: int = STEPS) -> tuple[int, float]:
    """The most bytes allocated while training, and seconds of a step."""
    method = build_method(config.method, base, Material(lambda count: "", lambda name: base.embed([])))
    scored_from = tokens - tokens // SCORED
    words = base.embedding.weight.shape[0]
    batch = config.train.batch_size
    draw = torch.randint(3, words, (steps * batch, tokens)).tolist()
    rows = [TokenRow(tuple(ids), scored_from) for ids in draw]
    examples = tuple(Example(r.ids[:scored_from], r.ids[scored_from:], None, 0) for r in rows[:batch])
    held_out = Encoded(examples, 0, None, False, ())
    clock: list[float] = []

    def watch(report: Report) -> None:
        if base.device.type == "cuda":
            torch.cuda.synchronize()
        clock.append(time.monotonic())

    held = _held(base.device)
    memory = PeakMemory(base.device)
    train = config.train.model_copy(update={"epochs": 1, "evaluate_every": steps})
    run = TrainingRun(method, rows, train, 0, listener=Listener(step=watch))
    fit(run, lambda: score(method.base, method.front(), held_out))
    return held + memory.beyond(), min(b - a for a, b in pairwise(clock))


def _held(device: torch.device) -> int:
    """Bytes of tensors on the card; on a CPU of the whole process."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()


def show(result: dict[str, Any]) -> str:
    """Two sentences a person can read."""
    gigabytes = {name: f"{result[name] / 1e9:.2f} GB" for name in ("planned", "measured", "base", "cap")}
    return (
        f"{result['shape']} by QLoRA under a cap of {gigabytes['cap']}: planned {gigabytes['planned']} of "
        f"tensors, measured {gigabytes['measured']} ({result['error']:+.1%}), of which the base "
        f"{gigabytes['base']}.\nA step of {result['batch_size']} x {result['tokens']} tokens took "
        f"{result['step_seconds']:.2f} s; torch had reserved {result['reserved'] / 1e9:.2f} GB."
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-7b")
    parser.add_argument("--cap", default="16GB", help="what this process may allocate")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cuda:0", help="cpu only rehearses: its figures mean nothing")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", default="q_proj,v_proj")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    device, cap = torch.device(asked.device), parse_size(asked.cap)
    on_card = device.type == "cuda"
    if on_card and not torch.cuda.is_available():
        raise SystemExit("This check needs a CUDA device, and this machine has none that torch can use.")
    config = settings(asked)
    planned: Plan = plan(config, measure=False, device_memory=cap, tokens=asked.tokens, rows=asked.steps)
    tensors = sum(part.bytes for part in planned.parts if not part.name.startswith("CUDA"))
    if on_card:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap / whole), device)
    base = random_base(asked.shape, device, choose_dtype("auto", device))
    held = _held(device)
    most, seconds = measured(config, asked.tokens, base, asked.steps)
    result = {
        "shape": asked.shape,
        "cap": cap,
        "batch_size": asked.batch_size,
        "accumulation": asked.accumulation,
        "tokens": asked.tokens,
        "planned": tensors,
        "planned_base": sum(part.bytes for part in planned.parts if part.name.startswith("base")),
        "base": held,
        "measured": most,
        "error": tensors / most - 1,
        "reserved": torch.cuda.max_memory_reserved() if on_card else 0,
        "step_seconds": seconds,
        "dtype": planned.dtype,
        "says_fits": planned.fits,
        **describe(),
    }
    print(json.dumps(result) if asked.json else show(result))


if __name__ == "__main__":
    main()
