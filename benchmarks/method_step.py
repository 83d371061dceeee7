"""A training step of a KV prefix and of LoRA: softprompt's against PEFT's, in one run.

    python benchmarks/method_step.py [--json] [--dtype float32|bfloat16|both] [--methods prefix-tuning,lora]

As in ``train_step.py``: SmolLM2-135M, 16 rows of 8 to 60 tokens whose last two tokens are the label, equal
starting values, AdamW, steps of both sides in turns, medians; memory of each side in a process of its own.
PEFT's side is its usual loop over right-padded rows. The KV prefix has 20 positions, the adapters rank 8
on every linear layer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import peft
import torch
from torch import Tensor, nn

from machine import PeakMemory, describe, seconds
from sides import collate, peft_model
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import load_base
from softprompt.config import LoraConfig, PrefixTuningConfig
from softprompt.methods.build import Material, build_method
from softprompt.prefix import Prefix
from train_step import LEARNING_RATE, MEMORY_STEPS, MODEL, rows_of

POSITIONS, RANK = 20, 8
WORDS = " the review says that"


@dataclass(frozen=True)
class Result:
    """One line of the output; times in seconds a step, memory in bytes beyond the model."""

    method: str
    dtype: str
    speedup: float
    memory_ratio: float
    loss_error: float
    gradient_error: float
    peft_seconds: float
    softprompt_seconds: float
    peft_memory: int
    softprompt_memory: int


@dataclass
class Side:
    """One way to train: a loss, and the tensors that train in the order both sides share."""

    loss: Any
    trained: Sequence[nn.Parameter]
    flat: Any
    """Gradients in this side's order and units -> one vector in the common ones."""
    start: Sequence[Tensor] = ()
    """The values it starts from, in this side's order."""

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, weight_decay=0.0)

    def step(self, rows: Sequence[TokenRow]) -> None:
        """Clear, forward, backward, update."""
        self.optimizer.zero_grad()
        self.loss(rows).backward()
        self.optimizer.step()


def our_side(kind: str, base: Base) -> Side:
    """The method as softprompt trains it."""
    configs = {
        "prefix-tuning": PrefixTuningConfig(front=WORDS, positions=POSITIONS, freeze_first=False),
        "lora": LoraConfig(rank=RANK),
    }
    method = build_method(configs[kind], base, Material(lambda count: "", lambda name: torch.empty(0)))
    trained = method.trainable_parameters()

    def loss(rows: Sequence[TokenRow]) -> Tensor:
        return method.base.nll(rows, method.front()).nll.mean()

    if kind == "lora":
        return Side(loss, trained, _joined, [p.detach().clone() for p in trained])
    front = method.front()
    assert isinstance(front, Prefix)
    start = [t.detach() for t in (*front.keys, *front.values)]

    def flat(gradients: Sequence[Tensor]) -> Tensor:  # what is learnt is counted in spreads of the start
        return _kv_order([g / side.std() for g, side in zip(gradients, start, strict=True)])

    return Side(loss, trained, flat, start)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def _kv_order(tensors: Sequence[Tensor]) -> Tensor:
    """All keys, then all values, each [K, P, D] -> PEFT's [P, L * 2 * K * D]."""
    half = len(tensors) // 2
    sides = torch.stack([t for pair in zip(tensors[:half], tensors[half:], strict=True) for t in pair])
    return sides.permute(2, 0, 1, 3).flatten()


def their_side(kind: str, model: Any, start: Sequence[Tensor]) -> Side:
    """The method as PEFT trains it, from the same starting values."""
    configs: dict[str, Any] = {
        "prefix-tuning": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=POSITIONS),
        "lora": peft.LoraConfig(
            task_type="CAUSAL_LM", r=RANK, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0
        ),
    }
    wrapped: Any = peft.get_peft_model(model, configs[kind]).eval()
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    with torch.no_grad():
        if kind == "prefix-tuning":
            trained[0].copy_(_kv_order(start).view_as(trained[0]))
        else:
            for theirs, ours in zip(trained, start, strict=True):
                theirs.copy_(ours)
    device = trained[0].device
    return Side(lambda rows: wrapped(**collate(rows, device)).loss, trained, _joined)


def measure(kind: str, dtype: str, device: str, repeats: int) -> Result:
    """Step both sides in turns, and bring the figures together."""
    base = load_base(MODEL, dtype=dtype, device=device)
    rows = rows_of(base.config.vocab_size)
    ours = our_side(kind, base)
    theirs = their_side(kind, peft_model(dtype, base.device), ours.start)
    losses, gradients = zip(*(_first(side, rows) for side in (ours, theirs)), strict=True)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for side, taken in zip((ours, theirs), times, strict=True):
            taken.append(seconds(partial(side.step, rows), base.device))
    mine, other = (sorted(taken[1:])[len(taken[1:]) // 2] for taken in times)
    memory = [_memory_in_a_process(side, kind, dtype, base.device) for side in ("softprompt", "peft")]
    return Result(
        method=kind,
        dtype=dtype,
        speedup=other / mine,
        memory_ratio=memory[0] / memory[1],
        loss_error=abs(losses[0] - losses[1]) / losses[1],
        gradient_error=float((gradients[0] - gradients[1]).norm() / gradients[1].norm()),
        peft_seconds=other,
        softprompt_seconds=mine,
        peft_memory=memory[1],
        softprompt_memory=memory[0],
    )


def _first(side: Side, rows: Sequence[TokenRow]) -> tuple[float, Tensor]:
    """Loss and gradient before any step."""
    loss = side.loss(rows)
    return float(loss.detach()), side.flat(torch.autograd.grad(loss, list(side.trained)))


def _memory_in_a_process(side: str, kind: str, dtype: str, device: torch.device) -> int:
    command = [sys.executable, __file__, "--memory-of", side, "--methods", kind]
    command += ["--dtype", dtype, "--device", str(device)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def memory_of(side: str, kind: str, dtype: str, device: str) -> int:
    """Bytes beyond the model that a few steps of ``side`` take in this process."""
    base = load_base(MODEL, dtype=dtype, device=device)
    made = our_side(kind, base)
    rows = rows_of(base.config.vocab_size)
    model = base.model
    if side == "peft":
        start = [p.detach().clone() for p in made.trained]
        model = peft_model(dtype, base.device)
        made = their_side(kind, model, start)
        del base
    for weight in model.parameters():
        weight.detach().sum()  # a file mapped into memory counts once it is read
    peak = PeakMemory(made.trained[0].device)
    for _ in range(MEMORY_STEPS):
        made.step(rows)
    return peak.beyond()


def show(result: Result) -> str:
    """Two sentences a person can read."""
    slower = f"PEFT {result.peft_seconds:.2f} s, softprompt {result.softprompt_seconds:.2f} s"
    memory = f"{result.peft_memory / 2**20:.0f} and {result.softprompt_memory / 2**20:.0f} MiB"
    return (
        f"{result.method}, {result.dtype}: a step is {result.speedup:.1f}x as fast ({slower}) and needs "
        f"{result.memory_ratio:.2f} of the memory beyond the model ({memory}).\n"
        f"  The same step: loss apart by {result.loss_error:.1e}, gradient by {result.gradient_error:.1e}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "both"], default="both")
    parser.add_argument("--methods", default="prefix-tuning,lora", help="kinds, by commas")
    parser.add_argument("--repeats", type=int, default=7, help="measured steps of each side")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--memory-of", choices=["peft", "softprompt"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    dtypes = ["float32", "bfloat16"] if asked.dtype == "both" else [asked.dtype]
    kinds = asked.methods.split(",")
    if asked.memory_of:
        print(memory_of(asked.memory_of, kinds[0], dtypes[0], asked.device))
        return
    machine = describe()
    for dtype in dtypes:
        for kind in kinds:
            result = measure(kind, dtype, asked.device, asked.repeats)
            print(json.dumps({**asdict(result), **machine}) if asked.json else show(result), flush=True)


if __name__ == "__main__":
    main()
