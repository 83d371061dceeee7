"""Do two checkouts answer alike? What one answers, recorded and held against what another does.

    PYTHONPATH=src python benchmarks/same_answers.py record old.json [--real]
    python benchmarks/same_answers.py compare old.json new.json

Recorded are texts, tokens and scores over the tests' tiny architectures and, with ``--real``, the bundled
base, all in fp32: greedily and by seeded draws, with stop strings, penalties and log-probabilities, from the
library, the engine (prompts of every kind mixed in one batch), the HTTP server, written evaluation and
lm_eval's model. Texts and tokens must be equal, numbers to 1e-5. Run ``record`` in each checkout.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import tiny
from harness import asking
from library import samples
from serving.api import house
from softprompt import Engine, load_base
from softprompt.base.model import Base
from softprompt.data.table import Table
from softprompt.evaluation.writing import write_texts
from softprompt.harness import SoftpromptLM
from softprompt.library.prompt import Prompt, answer_together, load_prompt

NEAR = 1e-5
TEXTS = ["rates cut", "a", "the long awaited final is won by the team that nobody had named before", "Hm, hm"]
ROWS = [{"text": text, "options": ["yes", "yes sir", "no"][: 2 + n % 2]} for n, text in enumerate(TEXTS)]
LABELED: list[dict[str, object]] = [
    {"text": text, "label": ["sport", "business"][n % 2]} for n, text in enumerate(TEXTS)
]
TABLE = Table(tuple(LABELED), "these rows")
ALIKE = house.TEMPLATE | {"labels": {"sport": "team", "business": "tea", "tech": "teapot"}}
TEMPLATES: dict[str, dict[str, Any]] = {
    "labels": house.TEMPLATE,
    "alike": ALIKE,
    "calibrated": ALIKE | {"calibrate": True, "normalise": "length", "end_of_text": True},
    "choices": house.TEMPLATE | {"labels": None, "choices": "options", "target": " {choice}"},
    "free": house.FREE,
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"ignore_end": True},
    "drawn": {"temperature": 1.2, "top_p": 0.9, "seed": 5},
    "narrow": {"temperature": 1.0, "top_k": 5, "min_p": 0.1, "seed": 9},
    "penalised": {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    "biased": {"logit_bias": {40: 9.0}, "stop_tokens": (41,)},
    "stopped": {"stop": ("e", "ab", "  "), "ignore_end": True},
}


def fill(base: Base, library: Path) -> dict[str, Prompt]:
    """A prompt of every kind and template."""
    for seed, (name, template) in enumerate(TEMPLATES.items()):
        card = samples.bound(base, "prompt-tuning", samples.P, name=name, template=template)
        Prompt(base, samples.soft(base, seed), card).save(library)
    pairs = samples.prefix(base)
    Prompt(base, pairs, samples.bound(base, "prefix-tuning", pairs.length, name="pairs")).save(library)
    for number, (name, settings) in enumerate(samples.VARIANTS.items()):
        samples.lora(base, name, positions=number, **settings).save(library)
    if base.name.startswith("tiny"):
        samples.full(base, "whole", positions=1).save(library)
    return {one.name: load_prompt(one.name, base, library) for one in library.iterdir()}


def record(base: Base) -> dict[str, Any]:
    """What a base answers, by where it was asked."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        prompts = fill(base, Path(folder))
        names = sorted(prompts)
        for way, how in WAYS.items():
            how = {"max_new_tokens": 20, **how}
            for name in names if way in ("greedy", "drawn") else ("free", "dora"):
                found[f"generate {name} {way}"] = prompts[name].generate(ROWS, **how)
            mixed = [
                (None if n % 4 == 3 else prompts[names[n % len(names)]], text)
                for n, text in enumerate(TEXTS * 4)
            ]
            found[f"together {way}"] = answer_together(mixed, base, **how)
        for name in names:
            if prompts[name].template.compares:
                found[f"classify {name}"] = [prompts[name].classify(row) for row in ROWS]
        scored = [name for name in names if name not in ("choices", "free")]
        for name in scored:
            scores = prompts[name].evaluate(TABLE)
            found[f"evaluate {name}"] = [scores.losses, scores.predictions, scores.confidences]
        found |= served(base, Path(folder), prompts)
        encoded = prompts["labels"].encode(TABLE)
        for stop in ((), ("e",)):
            texts = write_texts(base, prompts["labels"].prefix, encoded, max_new_tokens=24, stop=stop)
            found[f"written {stop}"] = texts
        found |= harnessed(prompts["free"])
    return found


def served(base: Base, library: Path, prompts: dict[str, Prompt]) -> dict[str, Any]:
    """What the engine and its server answer, few rows and small chunks, so that rows come and go."""
    found: dict[str, Any] = {}
    with Engine(base, library, rows=5, chunk=9) as engine:
        asks = [(name, row) for row in ROWS for name in sorted(prompts)]
        random.Random(1).shuffle(asks)
        for way, how in WAYS.items():
            found[f"engine {way}"] = engine.generate(asks, **{"max_new_tokens": 20, **how})
        asked = [(name, row) for row in ROWS for name in sorted(prompts) if prompts[name].template.compares]
        found["engine classify"] = engine.classify(asked)
        with house.client(engine) as client:
            for name in (base.name, "labels", "calibrated", "pairs", "dora"):
                found |= posted(client, base, name)
    return found


def posted(client: Any, base: Base, name: str) -> dict[str, Any]:
    """Completions of token ids and chats over HTTP, with log-probabilities, whole and streamed."""
    ids = [base.encode(text) for text in TEXTS[2:]]
    bodies: list[dict[str, Any]] = [
        {"prompt": ids, "max_tokens": 8, "temperature": 0, "logprobs": 3, "echo": True},
        {"prompt": ids[0], "max_tokens": 8, "temperature": 1.0, "seed": 3, "n": 3, "logprobs": 2},
        {"prompt": ids, "max_tokens": 12, "temperature": 0, "stop": ["e", "a"]},
        {"prompt": ids[0], "max_tokens": 6, "seed": 4, "stream": True, "logprobs": 1},
    ]
    found: dict[str, Any] = {}
    for number, body in enumerate(bodies):
        answer = client.post("/v1/completions", json={"model": name, **body})
        if body.get("stream"):
            lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
            found[f"http {name} {number}"] = [json.loads(line)["choices"] for line in lines]
        else:
            said = answer.json()
            found[f"http {name} {number}"] = [said.get("choices", said), said.get("usage")]
    if base.tokenizer.chat_template:
        chat = {"messages": [{"role": "user", "content": TEXTS[2]}], "max_tokens": 8, "temperature": 0}
        said = client.post("/v1/chat/completions", json={"model": name, **chat, "logprobs": True}).json()
        found[f"http {name} chat"] = [said.get("choices", said), said.get("usage")]
    said = client.post("/v1/classify", json={"model": name, "input": ROWS}).json()
    found[f"http {name} classify"] = said.get("data", said)
    return found


def harnessed(prompt: Prompt) -> dict[str, Any]:
    """What lm_eval's model answers."""
    lm = SoftpromptLM(prompt, seed=5)
    pairs = [(text, f" {word}") for text in TEXTS for word in ("yes", "no", "perhaps so")]
    options: list[dict[str, Any]] = [
        {"until": ["e", " a"], "max_gen_toks": 16},
        {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5, "top_k": 20},
    ]
    return {
        "harness scores": lm.loglikelihood(asking.requests("loglikelihood", *pairs), disable_tqdm=True),
        "harness rolling": lm.loglikelihood_rolling(
            asking.requests("loglikelihood_rolling", *((text,) for text in TEXTS)), disable_tqdm=True
        ),
        **{
            f"harness written {number}": lm.generate_until(
                asking.requests("generate_until", *((text, how) for text in TEXTS)), disable_tqdm=True
            )
            for number, how in enumerate(options)
        },
    }


def differences(one: Any, other: Any, where: str) -> tuple[list[str], float]:
    """Where two recordings differ, and the greatest difference of two numbers that should be equal."""
    if isinstance(one, float) and isinstance(other, float):
        gap = 0.0 if one == other or (math.isnan(one) and math.isnan(other)) else abs(one - other)
        return ([] if gap <= NEAR * max(1.0, abs(one)) else [f"{where}: {one} and {other}"]), gap
    if isinstance(one, dict) and isinstance(other, dict):
        if list(one) != list(other):
            return [f"{where}: {list(one)} and {list(other)}"], 0.0
        found = [differences(one[key], other[key], f"{where} / {key}") for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        found = [differences(*pair, f"{where} {n}") for n, pair in enumerate(zip(one, other, strict=True))]
    else:
        return ([] if one == other else [f"{where}: {one!r} and {other!r}"]), 0.0
    return [line for lines, _ in found for line in lines], max((gap for _, gap in found), default=0.0)


def leaves(value: Any) -> int:
    """How many texts and numbers a recording holds."""
    if isinstance(value, dict | list):
        return sum(map(leaves, value.values() if isinstance(value, dict) else value))
    return 1


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--real", action="store_true", help="the bundled base, too")
    recording.add_argument("--only", nargs="*", default=list(tiny.ARCHITECTURES))
    comparing = verbs.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    asked = parser.parse_args(given)
    if asked.verb == "record":
        torch.set_num_threads(1)
        bases = [tiny.base(name) for name in asked.only]
        bases += [house.base()]
        bases += [load_base("smollm2-135m", dtype="float32", device="cpu")] if asked.real else []
        found = {}
        for base in bases:
            found[base.name] = record(base)
            print(base.name, leaves(found[base.name]), flush=True)
        asked.out.write_text(json.dumps(found))
        return 0
    old, new = (json.loads(path.read_text()) for path in (asked.old, asked.new))
    lines, gap = differences(old, new, "")
    print(*lines[:40], sep="\n")
    print(f"{leaves(old):,} values held, {len(lines)} differ; the greatest gap of two numbers is {gap:.2g}")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
