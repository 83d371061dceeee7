"""What ``batch_invariant`` keeps and costs: bits alone and among 31 others, seconds with and without it.

    python benchmarks/batch_invariant.py [--dtype bfloat16] [--repeats 5] [--tokens 64]

SmolLM2-135M, each request behind a soft prompt of its own (20 random vectors), texts of 5 to 36 tokens. First
every eighth of 32 greedy requests is answered alone and among the others, in both ways, and words and
likelihoods are held against each other. Then both ways take turns at three loads: 32 requests, one request,
and the first token behind texts of 500 tokens; ``--repeats 0`` leaves that out. Adds a line to
``results/batch_invariant.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from machine import describe
from softprompt.base.lowrank import ridden
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.checkpoints.prepacked import prepacked
from softprompt.generation.request import Event, GenerateRequest, TextDelta
from softprompt.generation.sampler import Sampling
from softprompt.generation.scheduler import Scheduler

RESULTS = Path(__file__).parent.parent / "results" / "batch_invariant.jsonl"
REQUESTS, POSITIONS = 32, 20
Said = list[tuple[int, float | None]]


def requests(base: Base, lengths: Sequence[int], tokens: int) -> list[GenerateRequest]:
    """Greedy requests behind prompts of their own, with so long texts."""
    draw, found = random.Random(0), []
    for number, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(number)
        vectors = torch.randn(POSITIONS, base.width, generator=generator).to(base.dtype) * 0.05
        with torch.no_grad():
            prefix = base.prefill(vectors)
        ids = tuple(draw.randrange(100, len(base.tokenizer) - 100) for _ in range(length))
        how = Sampling(max_new_tokens=tokens, ignore_end=True, logprobs=0)
        found.append(GenerateRequest(model=base, prefix=prefix, ids=ids, sampling=how))
    return found


def said(base: Base, asked: Sequence[GenerateRequest], batch_invariant: bool) -> list[Said]:
    """Tokens and likelihoods of requests that are answered together."""
    told: list[Said] = [[] for _ in asked]

    def tell(number: int, event: Event) -> None:
        if isinstance(event, TextDelta):
            told[number] += [(token.id, token.logprob) for token in event.tokens]

    Scheduler(base, batch_invariant=batch_invariant).run_all(asked, tell)
    return told


def kept(base: Base, asked: Sequence[GenerateRequest], batch_invariant: bool) -> dict[str, int]:
    """Of how many requests the words, and the bits, are the same alone and among all."""
    together, some = said(base, asked, batch_invariant), range(0, len(asked), 8)
    alone = {n: said(base, [asked[n]], batch_invariant)[0] for n in some}
    return {
        "asked": len(some),
        "words": sum([token for token, _ in alone[n]] == [token for token, _ in together[n]] for n in some),
        "bits": sum(alone[n] == together[n] for n in some),
    }


def seconds(base: Base, asked: Sequence[GenerateRequest], batch_invariant: bool) -> float:
    begun = time.perf_counter()
    said(base, asked, batch_invariant)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    base = prepacked(ridden(load_base("smollm2-135m", dtype=asked.dtype, device="cpu")))
    lengths = [5 + number for number in range(REQUESTS)]
    found = {
        way: kept(base, requests(base, lengths, asked.tokens), on)
        for way, on in (("usual", False), ("batch_invariant", True))
    }
    for way, same in found.items():
        print(
            f"{way}: of {same['asked']} the same words {same['words']}, the same bits {same['bits']}",
            flush=True,
        )
    loads = {
        "32 requests": requests(base, [30] * REQUESTS, asked.tokens),
        "one request": requests(base, [30], asked.tokens),
        "texts of 500": requests(base, [500] * 4, 1),
    }
    times: dict[str, dict[str, list[float]]] = {}
    for name, load in loads.items() if asked.repeats else ():
        times[name] = {"usual": [], "batch_invariant": []}
        for turn in range(asked.repeats + 1):
            for way, on in (("usual", False), ("batch_invariant", True)):
                took = seconds(base, load, on)
                times[name][way] += [took] if turn else []  # the first turn warms up
        shares = [b / a for a, b in zip(times[name]["usual"], times[name]["batch_invariant"], strict=True)]
        usual = statistics.median(times[name]["usual"])
        print(
            f"{name}: {usual:.2f} s, batch_invariant {statistics.median(shares):.2f} times that", flush=True
        )
    line = {"dtype": asked.dtype, "tokens": asked.tokens, "same": found, "seconds": times, **describe()}
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
