"""How long a job will take: some of its own steps timed, or its products counted and divided by a rate.

It knows clocks, steps and rows; it does not know memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import load_base
from softprompt.config import Config
from softprompt.data.rows import Encoded
from softprompt.evaluation.score import Scores, score
from softprompt.listener import Listener, Report
from softprompt.planning.rehearsal import Rehearsal
from softprompt.planning.workload import Workload
from softprompt.prefix import Prefix
from softprompt.training.job import Job
from softprompt.training.loop import TrainingRun, fit
from softprompt.training.schedule import Steps

__all__ = ["Timing", "estimate", "matrix_rate", "measure"]

STEPS = 4
"""Steps that are timed, the first of which does not count."""
PATIENCE = 30.0
"""Seconds after which no further step is timed."""
ROWS = 48
"""Rows that are scored to time scoring."""
EFFICIENCY = 0.4
"""The share of the rate of bare matrix products that a step is taken to reach: 0.3 to 0.65 was measured."""
_SQUARE = {"cuda": 8192}
"""Width of the product that is timed: on a GPU one of the usual 1,024 is over before it has begun."""


@dataclass(frozen=True)
class Timing:
    """Seconds, loading the base left out.

    Attributes:
        how: "measured" or "estimated".
        training: of all steps.
        scoring: of all validations, and of the tests and the untuned base at the end.
        step: of one step.
    """

    how: str
    training: float
    scoring: float
    step: float

    @property
    def total(self) -> float:
        return self.training + self.scoring


def measure(config: Config, notify: Callable[[str], None]) -> Timing:
    """Take a few real steps on the job's own rows, score some of them, and extrapolate by tokens.

    Raises:
        BaseModelError: the base cannot be loaded.
        DataError: the rows are wrong.
    """
    about = config.base
    base = load_base(
        about.model,
        revision=about.revision,
        dtype=about.dtype,
        device=about.device,
        quantisation=about.quantisation,
        trust_remote_code=about.trust_remote_code,
        notify=notify,
    )
    job = Job.prepare(base, config)
    notify("Timing a few steps")
    before = torch.get_num_threads()
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    try:
        return _timed(config, job)
    finally:
        torch.set_num_threads(before)


def _timed(config: Config, job: Job) -> Timing:
    rows = job.rows
    train = config.train
    steps = Steps(len(rows), train.batch_size, train.epochs, config.seed, train.max_steps, train.min_steps)
    sample = _sample(job.encoded["validation"])
    started = time.monotonic()
    score(job.method.base, job.method.front(), sample)
    per_token = (time.monotonic() - started) / max(1, _tokens(sample))
    splits = {name: encoded for name, encoded in job.encoded.items() if name != "train"}
    scoring = per_token * _scored(config, splits, steps)
    with torch.no_grad():
        front = job.method.front()
    positions = 0 if isinstance(front, Prefix) else len(front)
    if not steps.total or not job.method.trainable_parameters():
        return Timing("measured", 0.0, scoring, 0.0)
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
    training = rate * (_read(rows, steps) + positions * steps.total)
    return Timing("measured", training, scoring, training / steps.total)


def estimate(config: Config, found: Rehearsal, rate: float, reading: float = 0.0) -> Timing | None:
    """From the products that were counted, at ``rate`` FLOP a second; None where the steps are not known.

    The count comes to about 4 a weight and token where the base's weights are frozen, and to 6 where
    they train (Kaplan et al. 2020): forward 2, backward 2 for the activations and 2 for the weights.

    Args:
        config: the job.
        found: what was counted.
        rate: of products.
        reading: seconds in which the device reads all weights once, which a micro-batch does twice and
            cannot be faster than.
    """
    work: Workload = found.work
    if work.steps is None:
        return None
    useful = EFFICIENCY * rate
    total = work.steps.total if found.step_tokens else 0
    training = found.step_flops / max(1, found.step_tokens) * _read(work.rows, work.steps) / useful
    training = max(training, 2 * reading * config.train.accumulation * total)
    scored = _scored(config, work.splits, work.steps)
    scoring = found.read_flops / max(1, found.read_tokens) * scored / useful
    return Timing("estimated", training if total else 0.0, scoring, training / total if total else 0.0)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a large matrix product, in about a second."""
    width = _SQUARE.get(device.type, 1024)
    square = torch.ones(width, width, device=device, dtype=dtype)
    times: list[float] = []
    began = time.monotonic()
    while len(times) < 3 or time.monotonic() - began < 0.5:
        started = time.perf_counter()
        float((square @ square)[0, 0])  # asking for a number waits for the device
        times.append(time.perf_counter() - started)
    return float(2 * width**3 / min(times))


def _read(rows: Sequence[TokenRow], steps: Steps) -> float:
    """Text tokens of all steps."""
    lengths = [len(row.ids) for row in rows]
    return sum(lengths) * steps.total / steps.per_epoch


def _scored(config: Config, splits: dict[str, Encoded], steps: Steps) -> float:
    """Tokens of all scoring: the start, every validation, and at the end the tests and the untuned base."""
    every = config.train.evaluate_every or steps.per_epoch
    times = 1 + steps.total // every + bool(steps.total % every) + 1
    count = {name: _tokens(encoded) for name, encoded in splits.items()}
    return times * count.get("validation", 0) + 2 * count.get("test", 0)


def _tokens(encoded: Encoded) -> int:
    return sum(len(e.input_ids) + len(e.target_ids) for e in encoded.examples)


def _sample(encoded: Encoded) -> Encoded:
    """Rows spread evenly over a split."""
    stride = max(1, len(encoded.examples) // ROWS)
    return replace(encoded, examples=encoded.examples[::stride][:ROWS])
