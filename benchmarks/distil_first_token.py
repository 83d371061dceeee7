"""Time to the first token of a long document in the engine: read with the question, and learnt into a prefix.

    python benchmarks/distil_first_token.py PROMPT [--library FOLDER] [--tokens 3000] [--requests 5]

PROMPT is a distilled prompt of the library; which document it learnt does not matter for time. The document
is the handbook of ``examples/distil``, repeated to so many tokens. Requests of both kinds take turns, alone,
through an engine as the server has it; medians count. Writes ``results/distil/first_token.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch

from machine import describe
from softprompt.checkpoints.freeze import load_base
from softprompt.serving.engine import Engine

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "distil"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt")
    parser.add_argument("--library", default=str(ROOT / "runs" / "distil" / "prompts"))
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    base = load_base("smollm2-135m")
    text = (EXAMPLES / "handbook.txt").read_text(encoding="utf-8")
    ids = base.encode(text)
    document = base.decode((ids * (asked.tokens // len(ids) + 1))[: asked.tokens])
    lines = (EXAMPLES / "handbook.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [str(json.loads(line)["question"]) for line in lines[: asked.requests]]
    taken: dict[str, list[float]] = {"learnt": [], "read": []}
    with Engine(base, asked.library) as engine:
        engine.generate(
            [(asked.prompt, questions[0]), (None, questions[0])], max_new_tokens=1
        )  # not timed cold
        for question in questions:
            whole = f"{document}\n\nQuestion: {question}\nAnswer:"
            for kind, request in (("learnt", (asked.prompt, question)), ("read", (None, whole))):
                began = time.perf_counter()
                engine.generate([request], max_new_tokens=1)
                taken[kind].append(time.perf_counter() - began)
                print(f"{kind}: {taken[kind][-1]:.2f} s", flush=True)
    read, learnt = (statistics.median(taken[kind]) for kind in ("read", "learnt"))
    about = {"tokens": asked.tokens, "requests": asked.requests, "load": os.getloadavg()}
    found = about | {"read": read, "learnt": learnt, "times_faster": read / learnt, "machine": describe()}
    path = ROOT / "results" / "distil" / "first_token.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
