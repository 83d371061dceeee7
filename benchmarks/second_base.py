"""Topics and sentiment on a base of one's own, such as Gemma 3 270M as a .gguf file, with default settings.

    python benchmarks/second_base.py MODEL --called gemma-3-270m-q4_k_m --sst2 FOLDER [--set A.B=C]

MODEL is whatever ``--model`` takes; it is neither part of the project nor fetched by it. The topics are the
recipe ``bbc-topics`` as it stands; the sentiment is that of film reviews (SST-2), 200 training rows of the
folder's ``train.jsonl``, 100 to choose by and 200 to test, and no other setting. Writes
``results/second_base.json`` after each; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import softprompt
from machine import describe
from softprompt.base.model import Base
from softprompt.config import Config, load, parse

RESULTS = Path(__file__).parent.parent / "results" / "second_base.json"


def main() -> None:
    """Run what is missing, write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--called", required=True, help="its name in the results")
    parser.add_argument("--sst2", type=Path, required=True, help="train.jsonl, validation.jsonl, test.jsonl")
    parser.add_argument("--only", choices=("bbc-topics", "sst2"))
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "softprompt-second-base")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    base = softprompt.load_base(asked.model)
    about = {"base": asked.called, "fingerprint": base.fingerprint, "layout": base.layout.name}
    about |= {"dtype": str(base.dtype), **describe()}
    for config in jobs(asked.sst2, asked.work, asked.assignments):
        if asked.only in (None, config.name):
            told = run(base, config)
            runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.exists() else {}
            found = {**about, "runs": runs | {config.name: told}}
            RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def jobs(sst2: Path, work: Path, assignments: list[str]) -> list[Config]:
    """The recipe, and the reviews."""
    places = [f"output.library={work / 'prompts'}", f"output.runs={work / 'runs'}"]
    rows = {split: str(sst2.absolute() / f"{split}.jsonl") for split in ("train", "validation", "test")}
    reviews = {
        "name": "sst2",
        "data": rows
        | {"train_rows": 200, "validation_rows": 100, "test_rows": 200}
        | {"input": "Review: {text}\nSentiment:", "target": " {label}", "labels": ["negative", "positive"]},
    }
    return [load("bbc-topics", [*places, *assignments]), parse(reviews, [*places, *assignments])]


def run(base: Base, config: Config) -> dict[str, Any]:
    """What a card tells of one job, trained now or taken from an earlier run."""
    if (Path(config.output.library) / config.name).exists():
        card = softprompt.load_prompt(config.name, base, config.output.library).card
    else:
        card = softprompt.train(base, config, resume=True, listener=softprompt.Listener(note=print)).card
    assert card.training is not None
    print(config.name, card.scores["test"], flush=True)
    settings = {part: card.settings[part] for part in ("seed", "method", "train")}
    return {
        "scores": {split: card.scores[split] for split in ("validation", "test", "test, untuned")},
        "rows": {split: data.rows for split, data in card.data.items()},
        "positions": card.positions,
        "steps": card.training.steps,
        "best_step": card.training.best_step,
        "seconds": card.training.seconds,
        "settings": settings,
    }


if __name__ == "__main__":
    main()
