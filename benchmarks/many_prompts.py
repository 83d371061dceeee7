"""Many prompts trained through one base: together against one after another, in one run.

    python benchmarks/many_prompts.py [--json] [--dtype float32|bfloat16] [--prompts 8] [--steps 16]

The prompts learn one small job (64 BBC headlines, five topics) on SmolLM2-135M, each with a seed,
a learning rate and a length of its own, so each is another run of a sweep. Half of those that
train alone go before the others and half after, so that a machine that slows down favours neither
side. Time is all of ``fit`` and ``fit_many``: steps and validation, without loading the model.

The two sides must learn the same: ``loss_error`` is the largest relative difference between two
losses of a step, ``vector_error`` between two learnt prompts (of norms). In fp32 both are about
1e-6 after two steps; over more, rounding grows. How much of it that explains is told by a control:
the same prompts alone again, from starts changed by one part in a million (``control_loss_error``,
``control_vector_error``). In bf16 each side rounds in its own order.

The result is added to ``results/many_prompts.jsonl``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from machine import describe, seconds
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.config import parse
from softprompt.evaluation.score import target_rows
from softprompt.listener import Listener, Report
from softprompt.training.job import Job
from softprompt.training.loop import TrainingRun, fit, fit_many

MODEL = "smollm2-135m"
RESULTS = Path(__file__).parent.parent / "results" / "many_prompts.jsonl"
ROWS = 64
NUDGE = 1e-6
JOB = {
    "train": "bundled:bbc-news/train",
    "validation": "bundled:bbc-news/validation",
    "input": "Headline: {text}\nTopic:",
    "target": " {label}",
    "labels": ["business", "entertainment", "politics", "sports", "tech"],
    "train_rows": ROWS,
    "validation_rows": 20,
    "draw": 0,
}


@dataclass(frozen=True)
class Result:
    """One line of the output; seconds of each side as a whole."""

    dtype: str
    prompts: int
    steps: int
    batch_size: int
    virtual_tokens: list[int]
    ratio: float
    one_after_another_seconds: float
    together_seconds: float
    loss_error: float
    vector_error: float
    control_loss_error: float
    control_vector_error: float


@dataclass
class Trained:
    """Some prompts, and the losses of each one's steps."""

    jobs: Sequence[Job]
    losses: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.losses = [[] for _ in self.jobs]

    def run(self, number: int) -> TrainingRun:
        """One of them as the loop takes it."""
        job = self.jobs[number]
        rows = target_rows(job.encoded["train"].examples)

        def note(report: Report) -> None:
            if report.step:
                self.losses[number].append(report.loss)

        listener = Listener(step=note)
        return TrainingRun(job.method, rows, job.config.train, job.config.seed, listener=listener)

    def nudged(self) -> Trained:
        """The same, from starts changed in the sixth place."""
        for number, job in enumerate(self.jobs):
            state = job.method.state()
            start = state["start.soft"]
            noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(number))
            job.method.load_state({**state, "start.soft": start * (1 + NUDGE * noise)})
        return self

    def alone(self, numbers: Sequence[int]) -> None:
        """Train some, one after another."""
        for number in numbers:
            fit(self.run(number), partial(self.jobs[number].score, "validation"))

    def together(self, pass_tokens: int | None) -> None:
        """Train all at once."""
        fit_many(
            [self.run(number) for number in range(len(self.jobs))],
            lambda numbers: [self.jobs[number].score("validation") for number in numbers],
            pass_tokens=pass_tokens,
        )


def learnt(job: Job) -> Tensor:
    """[P, E]: every position of these fronts is learnt."""
    front = job.method.front()
    assert isinstance(front, Tensor)
    return front.detach()


def sweep(base: Base, prompts: int, steps: int, batch_size: int) -> list[Job]:
    """The same job again and again, no two with the same seed, rate and length."""
    jobs = []
    for number in range(prompts):
        method = {"front": f"{{soft:{8 + 4 * (number % 3)}}}", "init": "vocabulary"}
        train = {
            "learning_rate": 0.07 * 1.2**number,
            "batch_size": batch_size,
            "epochs": -(-steps * batch_size // ROWS),
            "max_steps": steps,
            "select": "nll",
        }
        config = {"name": f"prompt-{number}", "seed": number, "data": JOB, "method": method, "train": train}
        jobs.append(Job.prepare(base, parse(config)))
    return jobs


def measure(base: Base, prompts: int, steps: int, batch_size: int, pass_tokens: int | None) -> Result:
    """Train both sides and hold them against each other."""
    apart, joined, control = (Trained(sweep(base, prompts, steps, batch_size)) for _ in range(3))
    base.nll(apart.run(0).rows[:2], apart.jobs[0].method.front())  # the first pass of a process is slow
    half = prompts // 2
    before = seconds(lambda: apart.alone(range(half)), base.device)
    together = seconds(lambda: joined.together(pass_tokens), base.device)
    after = seconds(lambda: apart.alone(range(half, prompts)), base.device)
    control.nudged().alone(range(prompts))
    return Result(
        dtype=str(base.dtype).removeprefix("torch."),
        prompts=prompts,
        steps=steps,
        batch_size=batch_size,
        virtual_tokens=[len(learnt(job)) for job in apart.jobs],
        ratio=(before + after) / together,
        one_after_another_seconds=before + after,
        together_seconds=together,
        loss_error=_loss_error(apart, joined),
        vector_error=_vector_error(apart, joined),
        control_loss_error=_loss_error(apart, control),
        control_vector_error=_vector_error(apart, control),
    )


def _loss_error(a: Trained, b: Trained) -> float:
    flat = [[loss for losses in side.losses for loss in losses] for side in (a, b)]
    apart: list[float] = [abs(x - y) / abs(x) for x, y in zip(*flat, strict=True)]
    return max(apart)


def _vector_error(a: Trained, b: Trained) -> float:
    states = [[learnt(job) for job in side.jobs] for side in (a, b)]
    apart = [float((x - y).norm() / x.norm()) for x, y in zip(*states, strict=True)]
    return max(apart)


def show(result: Result) -> str:
    """Two sentences a person can read."""
    return (
        f"{result.dtype}, {result.prompts} prompts, {result.steps} steps of {result.batch_size} rows each: "
        f"together {result.together_seconds:.1f} s, one after another "
        f"{result.one_after_another_seconds:.1f} s, {result.ratio:.2f}x as fast.\n"
        f"  They learnt the same: losses apart by {result.loss_error:.1e} at most, "
        f"prompts by {result.vector_error:.1e}.\n"
        f"  Alone again from a start changed by {NUDGE:.0e}: losses apart by "
        f"{result.control_loss_error:.1e}, prompts by {result.control_vector_error:.1e}."
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pass-tokens", type=int, help="most positions in one pass")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the line is added")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    base = load_base(MODEL, dtype=asked.dtype, device=asked.device)
    result = measure(base, asked.prompts, asked.steps, asked.batch_size, asked.pass_tokens)
    line = json.dumps({**asdict(result), **describe()})
    with asked.out.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line if asked.json else show(result))


if __name__ == "__main__":
    main()
