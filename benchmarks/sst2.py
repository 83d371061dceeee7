"""SST-2 with a soft prompt of 20 over three seeds: the accuracy quoted in the README.

``python benchmarks/sst2.py FOLDER`` trains ``results/sst2.toml`` on the folder's ``train.jsonl``,
``validation.jsonl`` and ``test.jsonl`` (fields ``text`` and ``label``) once a seed and writes
``results/sst2.json``. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import softprompt
from softprompt.base.model import Base
from softprompt.config import Config

RESULTS = Path(__file__).parent.parent / "results"


def main() -> None:
    """Run what is missing, write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="with train.jsonl, validation.jsonl and test.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "softprompt-sst2")
    asked = parser.parse_args()
    base = softprompt.load_base("smollm2-135m", dtype=asked.dtype)
    runs = [run(base, settings(asked.folder, seed, asked.work)) for seed in range(asked.seeds)]
    summary = summarise(runs, base)
    (RESULTS / "sst2.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"mean test accuracy {summary['mean_accuracy']:.4f} over {len(runs)} seeds")


def settings(folder: Path, seed: int, work: Path) -> Config:
    """The committed configuration on the given rows."""
    data = {f"data.{split}": folder / f"{split}.jsonl" for split in ("train", "validation", "test")}
    output = {"output.library": work / "prompts", "output.runs": work / "runs"}
    overrides = [f"{key}={value.absolute()}" for key, value in (data | output).items()]
    return softprompt.load_config(
        RESULTS / "sst2.toml", [*overrides, f"seed={seed}", f"name=sst2-seed-{seed}"]
    )


def run(base: Base, config: Config) -> dict[str, Any]:
    """One seed, trained or taken from an earlier run: its card's facts."""
    if (Path(config.output.library) / config.name).exists():
        prompt = softprompt.load_prompt(config.name, base, config.output.library)
    else:
        prompt = softprompt.train(base, config, resume=True, listener=softprompt.Listener(note=print))
    card = prompt.card
    assert card.training is not None
    print(f"seed {config.seed}: {card.scores['test']}", flush=True)
    return {
        "seed": config.seed,
        "scores": card.scores,
        "rows": {split: data.rows for split, data in card.data.items()},
        "digests": {split: data.digest for split, data in card.data.items()},
        "best_step": card.training.best_step,
        "seconds": card.training.seconds,
    }


def summarise(runs: list[dict[str, Any]], base: Base) -> dict[str, Any]:
    """All runs, their mean and spread, and what they were run with."""
    found = [run["scores"]["test"]["accuracy"] for run in runs]
    return {
        "configuration": "results/sst2.toml",
        "base": base.name,
        "fingerprint": base.fingerprint,
        "dtype": str(base.dtype),
        "machine": platform.machine(),
        "mean_accuracy": statistics.mean(found),
        "standard_deviation": statistics.stdev(found) if len(found) > 1 else 0.0,
        "mean_untuned": statistics.mean(run["scores"]["test, untuned"]["accuracy"] for run in runs),
        "runs": runs,
    }


if __name__ == "__main__":
    main()
