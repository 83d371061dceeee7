"""A training step of a soft prompt: softprompt's against PEFT's, in one run.

    python benchmarks/train_step.py [--json] [--dtype float32|bfloat16|both] [--virtual-tokens 20,100]

Both sides hold SmolLM2-135M in memory, start from the same soft prompt and take the same steps
(clear the gradient, forward, backward, AdamW) on the same 16 rows of 8 to 60 tokens, whose last
two tokens are the label. Steps are interleaved, so that a busy machine slows both; times are
medians. PEFT's side is the usual loop: a plain transformers model with its own choice of
attention, rows padded on the right, labels -100 elsewhere.

Memory is measured in a process of its own for each side: the peak while stepping minus what was
held once the model was loaded and all its weights touched (see ``machine.PeakMemory``).

``gemm_fraction`` is the useful work of softprompt's step a second, as a part of what this
machine reaches in bare matrix products, measured just before and after (see
``machine.gemm_rate``). See ``useful_flops`` for what counts as useful.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from machine import PeakMemory, describe, gemm_rate, layer_linears, seconds
from sides import Side, difference, draw_rows, peft_model, peft_side, softprompt_side
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import load_base

MODEL = "smollm2-135m"
ROWS = 16
SHORTEST, LONGEST = 8, 60
LABEL_TOKENS = 2
LEARNING_RATE = 1e-3
MEMORY_STEPS = 3
SEED = 0


@dataclass(frozen=True)
class Result:
    """One line of the output; times in seconds a step, memory in bytes beyond the model."""

    dtype: str
    virtual_tokens: int
    speedup: float
    memory_ratio: float
    gemm_fraction: float
    gradient_error: float
    loss_error: float
    peft_seconds: float
    softprompt_seconds: float
    peft_memory: int
    softprompt_memory: int
    gemm_gflops: float


def rows_of(vocabulary: int) -> list[TokenRow]:
    """The 16 rows both sides train on."""
    draw = random.Random(SEED)
    lengths = [draw.randint(SHORTEST, LONGEST) for _ in range(ROWS)]
    return draw_rows(lengths, vocabulary, LABEL_TOKENS, SEED)


def start_of(embedding: Tensor, count: int) -> Tensor:
    """Soft prompt values ``[P, E]`` of the size of real embeddings: words drawn by seed."""
    picked = torch.randint(len(embedding), (count,), generator=torch.Generator().manual_seed(SEED))
    return embedding[picked.to(embedding.device)].float()


def useful_flops(config: Any, weights: Sequence[Tensor], rows: Sequence[TokenRow], virtual: int) -> int:
    """What a step cannot do without, for real tokens only: no padding, nothing computed twice.

    A multiplication with an addition counts 2. Each of the P + (all text) tokens passes every
    linear map forward and its transpose backward: 4 a weight (frozen weights have no gradient).
    Attention: a query and a key that it sees cost 2 D for the score and 2 D for the value, in
    each head; backward costs twice the forward. The head: forward and backward at labels only.
    """
    lengths = [len(row.ids) for row in rows]
    tokens = virtual + sum(lengths)
    linear = 4 * tokens * sum(w.numel() for w in weights)
    pairs = virtual * (virtual + 1) // 2 + sum(t * virtual + t * (t + 1) // 2 for t in lengths)
    heads = config.num_attention_heads * config.num_hidden_layers
    attention = 3 * 4 * pairs * config.head_dim * heads
    head = 4 * sum(row.scored for row in rows) * config.hidden_size * config.vocab_size
    return int(linear + attention + head)


def measure(base: Any, plain: Any, dtype: str, virtual: int, repeats: int) -> Result:
    """Step both sides in turns, and bring the figures together."""
    rows = rows_of(base.config.vocab_size)
    start = start_of(base.embedding.weight, virtual)
    ours = softprompt_side(base, start, LEARNING_RATE)
    theirs = peft_side(plain, start, LEARNING_RATE)
    apart = difference(ours, theirs, rows)
    weights = layer_linears(base.model)
    tokens = virtual + sum(len(row.ids) for row in rows)
    before = gemm_rate(weights, tokens)
    times = _interleaved(theirs, ours, rows, base.device, repeats)
    rate = max(before, gemm_rate(weights, tokens))
    memory = [_memory_in_a_process(side, dtype, virtual, base.device) for side in ("peft", "softprompt")]
    return Result(
        dtype=dtype,
        virtual_tokens=virtual,
        speedup=times[0] / times[1],
        memory_ratio=memory[1] / memory[0],
        gemm_fraction=useful_flops(base.config, weights, rows, virtual) / times[1] / rate,
        gradient_error=apart.gradient,
        loss_error=apart.loss,
        peft_seconds=times[0],
        softprompt_seconds=times[1],
        peft_memory=memory[0],
        softprompt_memory=memory[1],
        gemm_gflops=rate / 1e9,
    )


def _interleaved(
    theirs: Side, ours: Side, rows: list[TokenRow], device: torch.device, repeats: int
) -> tuple[float, float]:
    """Median seconds of a step of each, taken A B A B after one unmeasured step each."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for side, taken in zip((theirs, ours), times, strict=True):
            taken.append(seconds(partial(side.step, rows), device))
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def _memory_in_a_process(side: str, dtype: str, virtual: int, device: torch.device) -> int:
    """Bytes that ``side`` needs beyond its model, asked of a fresh process."""
    command = [sys.executable, __file__, "--memory-of", side, "--dtype", dtype]
    command += ["--virtual-tokens", str(virtual), "--device", str(device)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def memory_of(side: str, dtype: str, virtual: int, device: str) -> int:
    """Bytes beyond the model that a few steps of ``side`` take in this process."""
    if side == "peft":
        model = peft_model(dtype, torch.device(device))
    else:
        base = load_base(MODEL, dtype=dtype, device=device)
        model = base.model
    embedding = model.get_input_embeddings().weight
    start = start_of(embedding, virtual)
    made = (
        peft_side(model, start, LEARNING_RATE)
        if side == "peft"
        else softprompt_side(base, start, LEARNING_RATE)
    )
    rows = rows_of(len(embedding))
    for weight in model.parameters():
        weight.sum()  # a file mapped into memory counts once it is read
    peak = PeakMemory(embedding.device)
    for _ in range(MEMORY_STEPS):
        made.step(rows)
    return peak.beyond()


def show(result: Result) -> str:
    """Two sentences a person can read."""
    slower = f"PEFT {result.peft_seconds:.2f} s, softprompt {result.softprompt_seconds:.2f} s"
    memory = f"{result.peft_memory / 2**20:.0f} and {result.softprompt_memory / 2**20:.0f} MiB"
    return (
        f"{result.dtype}, {result.virtual_tokens} virtual tokens: a step is {result.speedup:.1f}x as fast "
        f"({slower}) and needs {result.memory_ratio:.2f} of the memory beyond the model ({memory}).\n"
        f"  Useful work runs at {result.gemm_fraction:.0%} of this machine's matrix products "
        f"({result.gemm_gflops:.0f} GFLOP/s). The same step: loss apart by {result.loss_error:.1e}, "
        f"gradient by {result.gradient_error:.1e}."
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "both"], default="both")
    parser.add_argument("--virtual-tokens", default="20,100", help="lengths of soft prompts, by commas")
    parser.add_argument("--repeats", type=int, default=7, help="measured steps of each side")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--memory-of", choices=["peft", "softprompt"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    dtypes = ["float32", "bfloat16"] if asked.dtype == "both" else [asked.dtype]
    lengths = [int(part) for part in asked.virtual_tokens.split(",")]
    if asked.memory_of:
        print(memory_of(asked.memory_of, dtypes[0], lengths[0], asked.device))
        return
    machine = describe()
    if not asked.json:
        print(
            f"{machine['cpu']}, {machine['threads']} threads, device {machine['device']}; "
            f"{', '.join(f'{k} {v}' for k, v in machine['versions'].items())}"
        )
    for dtype in dtypes:
        base = load_base(MODEL, dtype=dtype, device=asked.device)
        plain = peft_model(dtype, base.device)
        for virtual in lengths:
            result = measure(base, plain, dtype, virtual, asked.repeats)
            print(json.dumps({**asdict(result), **machine}) if asked.json else show(result), flush=True)


if __name__ == "__main__":
    main()
