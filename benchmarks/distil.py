"""What long texts lose when they are learnt into short prefixes, on the real base.

    python benchmarks/distil.py [SOURCE ...] [--positions 16,64] [--called NAME] [--data FOLDER] [--threads 1]

A source is a configuration of ``examples/distil``. Each is distilled as a user would do it, into all lengths
its file names, or those given. Beside them stand the same prefixes before training, the text cut to each
length, a prefix of the middle length trained on the text itself (next tokens, as many steps), nothing and the
whole text. Writes ``results/distil/SOURCE.json``; what is there is not made again, and a run that was killed
goes on from its checkpoint. ``--data`` is the folder of ``ag_news/`` and ``sms_spam/``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from machine import describe
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import load_base
from softprompt.config import Config, load
from softprompt.evaluation.divergence import divergence, kept_share
from softprompt.evaluation.intervals import sampled_ratio
from softprompt.listener import Listener, Report
from softprompt.training.distil import distil, lengths
from softprompt.training.job import Job
from softprompt.training.loop import TrainingRun, fit
from softprompt.training.run import train

ROOT = Path(__file__).parent.parent
RESULTS, EXAMPLES = ROOT / "results" / "distil", ROOT / "examples" / "distil"
SOURCES = ("topics", "spam", "persona", "handbook", "adapter")
TRAINED_FIRST = {"adapter": "news-lora"}
"""The configuration of what a source learns from, where that is a saved prompt."""
CHUNK = 64
"""Tokens of the text in one row of plain next-token training."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", nargs="*", default=SOURCES)
    parser.add_argument("--data", type=Path, default=EXAMPLES)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "distil")
    parser.add_argument("--positions", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--called", help="the results' name; the source's own if none is given")
    parser.add_argument("--without-plain", action="store_true", help="train no prefix on the text itself")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    RESULTS.mkdir(parents=True, exist_ok=True)
    base = load_base(asked.model)
    for source in asked.sources:
        path = RESULTS / f"{asked.called or source}.json"
        if path.exists():
            print(f"{path.stem}: done already")
            continue
        config = _config(source, asked.data, asked.work)
        if asked.positions is not None and config.teacher is not None:
            teacher = config.teacher.model_copy(update={"positions": asked.positions})
            config = config.model_copy(update={"teacher": teacher})
        if source in TRAINED_FIRST and not (asked.work / "prompts" / TRAINED_FIRST[source]).exists():
            train(base, _config(TRAINED_FIRST[source], asked.data, asked.work), resume=True)
        without_plain = asked.without_plain or source in TRAINED_FIRST
        found = _measured(base, config, without_plain=without_plain)
        text = json.dumps({"source": source} | found | {"machine": describe()}, indent=1)
        for folder in (EXAMPLES.absolute(), asked.data.absolute()):
            text = text.replace(f"{folder}/", "")
        path.write_text(text + "\n")


def _config(source: str, data: Path, work: Path) -> Config:
    config = load(EXAMPLES / f"{source}.toml")
    rows = {
        split: str(data / Path(given).relative_to(EXAMPLES.absolute()))
        for split in ("train", "validation", "test")
        if (given := getattr(config.data, split)) is not None
    }
    rows = {
        split: path if Path(path).exists() else getattr(config.data, split) for split, path in rows.items()
    }
    output = config.output.model_copy(
        update={"runs": str(work / "runs"), "library": str(work / "prompts"), "overwrite": True}
    )
    return config.model_copy(update={"data": config.data.model_copy(update=rows), "output": output})


def _measured(base: Base, config: Config, *, without_plain: bool) -> dict[str, Any]:
    def told(report: Report) -> None:
        if report.scores is not None:
            print(f"{config.name} {report.step}/{report.total}: {report.scores.nll:.4f}", flush=True)

    runs = Path(config.output.runs)
    resume = any((runs / one.name).exists() for one in lengths(config))
    listener = Listener(note=print, step=told, progress=lambda *said: print(*said, flush=True))
    began = time.monotonic()
    found = distil(base, config, resume=resume, listener=listener)
    assert found.figures is not None
    took = time.monotonic() - began
    plain = None if without_plain else _next_tokens(base, config)
    seconds = {one.name: one.card.training.seconds for one in found.prompts if one.card.training}
    steps = {one.name: one.card.training.steps for one in found.prompts if one.card.training}
    return {
        "figures": found.figures.to_json(),
        "next_tokens": plain,
        "steps": steps,
        "seconds": {"all": took, "training": seconds},
        "settings": config.model_dump(mode="json", exclude={"output"}),
        "load": os.getloadavg(),
    }


def _next_tokens(base: Base, config: Config) -> dict[str, Any]:
    """A prefix of the middle length trained to go on with the text itself, validated as the others are."""
    several = lengths(config)
    job = Job.prepare(base, several[len(several) // 2], reserve=True)
    assert job.lessons is not None
    ids = job.lessons.teacher.ids
    rows = [TokenRow(ids[at : at + CHUNK], 1) for at in range(0, len(ids), CHUNK)]
    rows *= max(1, len(job.rows) // len(rows))
    run = TrainingRun(job.method, rows, job.config.train, job.config.seed)
    outcome = fit(run, lambda: job.score("validation"))

    held = job.lessons.rows["test"]
    bare, learnt = (divergence(base, [front], held)[0] for front in (job.lessons.bare, job.method.front()))
    return {
        "positions": job.config.method.positions,  # type: ignore[union-attr]
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "nats": sampled_ratio(learnt.nats, learnt.tokens).interval(),
        "kept": kept_share(learnt, bare).interval(),
    }


if __name__ == "__main__":
    main()
