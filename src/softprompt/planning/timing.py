"""How long a job will take: some of its own steps timed, or its products counted and divided by a rate.

It knows clocks, steps and rows; it does not know memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from softprompt.checkpoints.freeze import load_base
from softprompt.config import Config
from softprompt.planning.rehearsal import Rehearsal
from softprompt.planning.workload import Workload
from softprompt.training.job import Job
from softprompt.training.pace import Timing, scored_tokens, text_tokens, timed

__all__ = ["Timing", "estimate", "matrix_rate", "measure"]

EFFICIENCY = 0.4
"""The share of the rate of bare matrix products that a step is taken to reach: 0.3 to 0.65 was measured."""
_SQUARE = {"cuda": 8192}
"""Width of the product that is timed: on a GPU one of the usual 1,024 is over before it has begun."""


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
    return timed(job)


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
    training = found.step_flops / max(1, found.step_tokens) * text_tokens(work.rows, work.steps) / useful
    training = max(training, 2 * reading * config.train.accumulation * total)
    scored = scored_tokens(config, work.splits, work.steps)
    token = found.read_flops / max(1, found.read_tokens) / useful
    training = training if total else 0.0
    return Timing("estimated", training, token * scored, training / total if total else 0.0, token)


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
