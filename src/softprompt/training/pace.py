"""How fast a job goes on this machine: a few of its own steps timed, some of its rows scored.

It knows clocks, steps and rows; it does not know memory, nor what the seconds are asked for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from softprompt.base.packing import TokenRow
from softprompt.config import Config
from softprompt.data.rows import Encoded
from softprompt.evaluation.score import Scores, score
from softprompt.listener import Listener, Report
from softprompt.prefix import Prefix
from softprompt.training.job import Job
from softprompt.training.loop import TrainingRun, fit
from softprompt.training.schedule import Steps
from softprompt.training.threads import threads

__all__ = ["Timing", "scored_tokens", "text_tokens", "timed"]

STEPS = 4
"""Steps that are timed, the first of which does not count."""
PATIENCE = 30.0
"""Seconds after which no further step is timed."""
ROWS = 48
"""Rows that are scored to time scoring."""


@dataclass(frozen=True)
class Timing:
    """Seconds, loading the base left out.

    Attributes:
        how: "measured" or "estimated".
        training: of all steps.
        scoring: of all validations, and of the tests and the untuned base at the end.
        step: of one step.
        token: to score one token.
    """

    how: str
    training: float
    scoring: float
    step: float
    token: float

    @property
    def total(self) -> float:
        return self.training + self.scoring


def timed(job: Job) -> Timing:
    """Take a few real steps, which change the method, score some rows, and extrapolate by tokens."""
    with threads(job.config.train.threads):
        return _timed(job.config, job)


def _timed(config: Config, job: Job) -> Timing:
    rows, train = job.rows, config.train
    steps = Steps(len(rows), train.batch_size, train.epochs, config.seed, train.max_steps, train.min_steps)
    sample = _sample(job.encoded["validation"])
    started = time.monotonic()
    score(job.method.base, job.method.front(), sample)
    per_token = (time.monotonic() - started) / max(1, _tokens(sample))
    splits = {name: encoded for name, encoded in job.encoded.items() if name != "train"}
    learns = bool(steps.total and job.method.trainable_parameters())
    scoring = per_token * scored_tokens(config, splits, steps if learns else None)
    with torch.no_grad():
        front = job.method.front()
    positions = 0 if isinstance(front, Prefix) else len(front)
    if not learns:
        return Timing("measured", 0.0, scoring, 0.0, per_token)
    taken: list[tuple[float, int]] = []
    clock = time.monotonic()

    def watch(report: Report) -> None:
        nonlocal clock
        now = time.monotonic()
        if report.step:
            taken.append((now - clock, report.tokens + positions))
        clock = now

    few = train.model_copy(update={"max_steps": min(STEPS, steps.total), "evaluate_every": STEPS + 1})
    listener = Listener(step=watch, stop=lambda: time.monotonic() - started > PATIENCE)
    run = TrainingRun(job.method, rows, few, config.seed, listener=listener)
    fit(run, lambda: Scores(1, 0.0, (0.0, 0.0)))
    counted = taken[1:] or taken
    rate = statistics.median(seconds / tokens for seconds, tokens in counted)
    training = rate * (text_tokens(rows, steps) + positions * steps.total)
    return Timing("measured", training, scoring, training / steps.total, per_token)


def text_tokens(rows: Sequence[TokenRow], steps: Steps) -> float:
    """Text tokens of all steps."""
    lengths = [len(row.ids) for row in rows]
    return sum(lengths) * steps.total / steps.per_epoch


def scored_tokens(config: Config, splits: Mapping[str, Encoded], steps: Steps | None) -> float:
    """Tokens of all scoring: the start, every validation, and at the end the tests and the untuned base.

    Without steps there is one validation.
    """
    times = 1
    if steps is not None:
        every = config.train.evaluate_every or steps.per_epoch
        times += 1 + steps.total // every + bool(steps.total % every)
    count = {name: _tokens(encoded) for name, encoded in splits.items()}
    return times * count.get("validation", 0) + 2 * count.get("test", 0)


def _tokens(encoded: Encoded) -> int:
    return sum(len(e.input_ids) + len(e.target_ids) for e in encoded.examples)


def _sample(encoded: Encoded) -> Encoded:
    """Rows spread evenly over a split."""
    stride = max(1, len(encoded.examples) // ROWS)
    return replace(encoded, examples=encoded.examples[::stride][:ROWS])
