"""The prompt-tuning cookbook's own job, whole: two soft prompts on one base, by softprompt and by PEFT.

    python benchmarks/cookbook.py [--json] [--epochs 6] [--hidden 1024] [--layers 24]

The base has the shape of bloomz-560m (24 layers of 1024, a vocabulary of 250,880) and random
fp32 weights: time does not depend on their values. Each soft prompt has 4 virtual tokens; the
first learns from 50 texts as long as the cookbook's role prompts, the second from 25 as long as
its quotes, for 6 epochs, in batches of 8, with the loss on the whole text and AdamW at 3e-3. The
tokens are random too; only how many there are matters here.

PEFT's side is what the cookbook's trainer does: every batch padded to its longest text, the
prompt repeated into each row, the head at every position. Both sides see the same batches in the
same order, in turns, and are compared on the first batch before anything is learnt.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from machine import describe, seconds
from sides import Side, difference, draw_rows, peft_side, softprompt_side
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import freeze

VIRTUAL_TOKENS = 4
BATCH = 8
LEARNING_RATE = 3e-3
SEED = 0

ROLES = (
    *(32, 40, 53, 61, 65, 67, 70, 71, 72, 72, 73, 77, 77, 78, 78, 79, 79, 81, 81, 83, 85, 85, 85, 85, 89),
    *(91, 92, 92, 92, 92, 95, 97, 97, 98, 99, 101, 102, 102, 102, 103, 104, 105, 113, 114, 116, 129, 130),
    *(131, 157, 210),
)
"""Tokens of each of 50 role prompts: 92 on average."""

QUOTES = (7, 7, 8, 12, 13, 14, 14, 14, 16, 18, 19, 19, 20, 21, 22, 22, 24, 24, 25, 25, 29, 33, 36, 36, 46)
"""Tokens of each of 25 quotes: 21 on average."""


@dataclass(frozen=True)
class Result:
    """One job on both sides; times in seconds for all its steps."""

    job: str
    rows: int
    steps: int
    speedup: float
    peft_seconds: float
    softprompt_seconds: float
    loss_error: float
    gradient_error: float


def base_model(hidden: int, layers: int, vocabulary: int) -> Any:
    """A random model of bloomz-560m's shape."""
    torch.manual_seed(SEED)
    shape = {"hidden_size": hidden, "n_layer": layers, "n_head": hidden // 64, "vocab_size": vocabulary}
    return BloomForCausalLM(BloomConfig(**shape)).eval()


def no_words() -> Any:
    """A tokenizer for a base that is only given token ids."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, "?")), unk_token="?")


def batches(rows: Sequence[TokenRow], epochs: int) -> Iterator[list[TokenRow]]:
    """Every row once an epoch, in an order drawn anew each time."""
    draw = random.Random(SEED)
    for _ in range(epochs):
        order = draw.sample(list(rows), len(rows))
        for first in range(0, len(order), BATCH):
            yield order[first : first + BATCH]


def start_of(width: int, seed: int) -> Tensor:
    """``[4, E]`` random values of the size of the model's own embeddings."""
    return 0.02 * torch.randn(VIRTUAL_TOKENS, width, generator=torch.Generator().manual_seed(seed))


def compare(
    job: str, rows: list[TokenRow], theirs: Side, ours: Side, epochs: int, tell: Callable[[str], None]
) -> Result:
    """Run one job on both sides, batch by batch in turns, so that a busy machine slows both."""
    apart = difference(ours, theirs, next(batches(rows, 1)))
    device = ours.soft.device
    peft_seconds = our_seconds = 0.0
    steps = 0
    for batch in batches(rows, epochs):
        peft_seconds += seconds(partial(theirs.step, batch), device)
        our_seconds += seconds(partial(ours.step, batch), device)
        steps += 1
        tell(f"{job}, step {steps}: PEFT {peft_seconds:.0f} s so far, softprompt {our_seconds:.0f} s")
    return Result(
        job=job,
        rows=len(rows),
        steps=steps,
        speedup=peft_seconds / our_seconds,
        peft_seconds=peft_seconds,
        softprompt_seconds=our_seconds,
        loss_error=apart.loss,
        gradient_error=apart.gradient,
    )


def show(result: Result) -> str:
    return (
        f"{result.job}: {result.rows} rows, {result.steps} steps. PEFT {result.peft_seconds:.0f} s, "
        f"softprompt {result.softprompt_seconds:.0f} s: {result.speedup:.2f}x as fast. "
        f"First step: loss apart by {result.loss_error:.1e}, gradient by {result.gradient_error:.1e}."
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a job, and one for both")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=1024, help="width of the base, a multiple of 64")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=250880)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    tell: Callable[[str], None] = (
        (lambda said: None) if asked.json else (lambda said: print(said, flush=True))
    )
    plain = base_model(asked.hidden, asked.layers, asked.vocabulary).to(asked.device)
    base = freeze(copy.deepcopy(plain), no_words(), "bloomz-560m's shape")
    total = [0.0, 0.0]
    for seed, (job, lengths) in enumerate((("roles", ROLES), ("quotes", QUOTES))):
        rows = draw_rows(lengths, asked.vocabulary, None, seed)
        start = start_of(asked.hidden, seed)
        theirs = peft_side(plain, start, LEARNING_RATE)
        ours = softprompt_side(base, start, LEARNING_RATE)
        result = compare(job, rows, theirs, ours, asked.epochs, tell)
        total = [total[0] + result.peft_seconds, total[1] + result.softprompt_seconds]
        print(json.dumps({**asdict(result), **describe()}) if asked.json else show(result), flush=True)
    both = {
        "job": "both",
        "speedup": total[0] / total[1],
        "peft_seconds": total[0],
        "softprompt_seconds": total[1],
    }
    said = f"Both: PEFT {total[0]:.0f} s, softprompt {total[1]:.0f} s: {both['speedup']:.2f}x as fast."
    print(json.dumps({**both, **describe()}) if asked.json else said)


if __name__ == "__main__":
    main()
