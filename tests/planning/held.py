"""A program of its own: what a job takes beside its base by the clock of the system, and by its plan.

    python held.py SETTINGS

SETTINGS is a job in JSON. Prints three numbers of bytes: how much this process grew at most while the job
trained and wrote its checkpoint, what the plan says of everything but the base and Python, and what it
says of that without the gaps in the heap.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from softprompt.checkpoints.freeze import load_base
from softprompt.config import parse
from softprompt.evaluation.score import target_rows
from softprompt.planning.plan import plan
from softprompt.training.job import Job
from softprompt.training.loop import TrainingRun, fit
from softprompt.training.memory import Peak

CPU = torch.device("cpu")


def main() -> None:
    torch.set_num_threads(1)
    config = parse(json.loads(sys.argv[1]))
    planned = plan(config, measure=False)
    base = load_base(config.base.model, dtype=config.base.dtype, device="cpu")
    for weight in base.model.parameters():
        weight.sum()  # a file mapped into memory counts once it is read
    with Peak(CPU) as before:
        pass
    with Peak(CPU) as during, tempfile.TemporaryDirectory() as folder:
        job = Job.prepare(base, config)
        rows = target_rows(job.encoded["train"].examples)
        run = TrainingRun(job.method, rows, config.train, config.seed, Path(folder, "checkpoint"))
        fit(run, lambda: job.score("validation"))
    parts = [part for part in planned.parts if not part.name.startswith(("base", "Python"))]
    tensors = [part for part in parts if not part.name.startswith("gaps")]
    print(during.bytes - before.bytes, *(sum(part.bytes for part in some) for some in (parts, tensors)))


if __name__ == "__main__":
    main()
