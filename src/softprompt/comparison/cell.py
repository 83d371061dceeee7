"""One trial of one method on one seed: trained, scored, kept on disk so that nothing is done twice.

A cell is a file of numbers and an artifact. It knows how to make one and how to test one; it does not
know which cells a comparison needs.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

import softprompt
from softprompt.atomic import write_bytes
from softprompt.base.model import Base
from softprompt.comparison.measure import Measured, Measurement
from softprompt.comparison.results import Costs
from softprompt.config import Config
from softprompt.data.rows import Encoded
from softprompt.data.task import Task
from softprompt.errors import SoftpromptError
from softprompt.evaluation.perturb import perturbed
from softprompt.evaluation.score import score
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling
from softprompt.library.changed import artifact_bytes
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt, load_prompt
from softprompt.listener import Listener, Report
from softprompt.prefix import Prefix
from softprompt.training.job import Job, read_task, tokens
from softprompt.training.loop import TrainingRun, fit
from softprompt.training.memory import Peak
from softprompt.training.results import final_test
from softprompt.training.threads import threads

__all__ = [
    "KINDS_OF_CHANGE",
    "Tested",
    "Trained",
    "changed_rows",
    "has_artifact",
    "identity",
    "kept",
    "test",
    "tested_identity",
    "train",
]

KINDS_OF_CHANGE = ("typos", "case", "spacing")


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, self.model_dump_json(indent=1).encode())


K = TypeVar("K", bound=_Kept)


class Trained(_Kept):
    """What came of training: an artifact, if there is one, lies in the library under ``name`` once chosen."""

    name: str
    weights_sha256: str
    """The hash of its weights."""
    costs: Costs
    steps: int
    best_step: int
    losses: list[tuple[int, float]]
    validations: list[tuple[int, float]]
    validation: Measured
    trouble: str = ""


class Tested(_Kept):
    """What the chosen artifact did on the test rows."""

    test: Measured
    perturbed: dict[str, Measured] = {}
    latency_seconds: float | None = None


def kept(kind: type[K], path: Path, identity: str) -> K | None:
    """What an earlier run left, if it was made from the same settings, rows and base."""
    try:
        found = kind.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if found.identity == identity else None


def has_artifact(cell: Trained, library: Library) -> bool:
    """Whether what was learnt still lies in the library, where it is kept, and nothing else in its place."""
    if not cell.name:
        return True
    try:
        return library.card(cell.name).weights_sha256 == cell.weights_sha256
    except SoftpromptError:
        return False


def identity(config: Config, base: Base, task: Task, rules: Mapping[str, Any]) -> str:
    """Names everything that training and validation depend on, which test rows are no part of."""
    without: dict[str, Any] = {"output": True, "name": True, "data": {"test", "test_rows"}}
    settings = config.model_dump(mode="json", exclude=without)
    digests = {split: table.digest for split, table in task.tables.items() if split != "test"}
    return _hash([settings, digests, base.fingerprint, dict(rules), softprompt.__version__])


def tested_identity(cell: Trained, task: Task, rules: Mapping[str, Any]) -> str:
    """Names everything that a test of a cell depends on."""
    return _hash([cell.identity, cell.weights_sha256, task.tables["test"].digest, dict(rules)])


def _hash(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def train(
    base: Base,
    config: Config,
    measurement: Measurement,
    library: Library,
    identity: str,
    watch: Callable[[Report], None],
    stop: Callable[[], bool],
) -> Trained:
    """Train one configuration without its test rows and keep the artifact as ``config.name``."""
    job = Job.prepare(base, config.model_copy(update={"data": config.data.model_copy(update={"test": None})}))
    losses: list[tuple[int, float]] = []
    validations: list[tuple[int, float]] = []

    def told(report: Report) -> None:
        if report.step:
            losses.append((report.step, report.loss))
        if report.scores is not None and job.lessons is None:  # else it is held against its teacher
            validations.append((report.step, measurement.curve(report.scores)))
        watch(report)

    rows = job.rows
    run = TrainingRun(job.method, rows, config.train, config.seed, listener=Listener(step=told, stop=stop))
    with threads(config.train.threads), Peak(base.device) as peak:
        outcome = fit(run, lambda: job.score("validation"))
    if outcome.ended == "interrupted":
        raise KeyboardInterrupt  # half a training is no result
    prompt = final_test(job, outcome, baseline=False)
    folder = prompt.save(library, overwrite=True)
    learnt = sum(p.numel() for p in job.method.trainable_parameters())
    return Trained(
        identity=identity,
        name=config.name,
        weights_sha256=library.card(config.name).weights_sha256,
        costs=Costs(
            trained_parameters=learnt,
            artifact_bytes=artifact_bytes(folder),
            positions=prompt.card.positions,
            train_seconds=round(outcome.seconds, 2) if learnt else 0.0,
            peak_memory_bytes=peak.bytes,
        ),
        steps=outcome.steps,
        best_step=outcome.best_step,
        losses=losses,
        validations=validations,
        validation=measurement.of(prompt, job.encoded["validation"], job.task, "validation"),
        trouble=outcome.error,
    )


def test(
    base: Base,
    config: Config,
    cell: Trained,
    measurement: Measurement,
    library: Library,
    identity: str,
    *,
    changes: bool,
    requests: int,
) -> Tested:
    """Score a kept artifact on the test rows, as a user would load it.

    ``changes`` says whether to score it on changed rows (typos, case, spacing) too, ``requests`` how many
    requests to answer alone, for their median time.
    """
    prompt = load_prompt(cell.name, base, library)
    task, _ = read_task(base, config)
    encoded = tokens(task, "test", base, config)
    found = measurement.of(prompt, encoded, task, "test")
    changed = {
        kind: measurement.of(prompt, tokens(other, "test", base, config), other, "test")
        for kind, other in (changed_rows(task) if changes else ())
    }
    latency = _latency(prompt, encoded, requests) if requests else None
    return Tested(identity=identity, test=found, perturbed=changed, latency_seconds=latency)


def changed_rows(task: Task) -> Iterator[tuple[str, Task]]:
    """The task with its test rows changed, once for each kind of change."""
    for kind in KINDS_OF_CHANGE:
        other = perturbed(task.tables["test"], task.template.input_fields, kind, seed=0)
        yield kind, replace(task, tables={**task.tables, "test": other})


def _latency(prompt: Prompt, encoded: Encoded, requests: int) -> float:
    """Median seconds of one request answered alone behind the finished prefix; the first is not counted."""
    taken = []
    for example in encoded.examples[: requests + 1]:
        alone = replace(encoded, examples=(example,))
        began = time.perf_counter()
        _answer(prompt, prompt.prefix, alone)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:] or taken)


def _answer(prompt: Prompt, prefix: Prefix, alone: Encoded) -> None:
    example = alone.examples[0]
    if alone.candidates(example):
        score(prompt.base, prefix, alone)
    else:
        asked = GenerateRequest(
            model=prompt.base, prefix=prefix, ids=example.input_ids, sampling=Sampling(max_new_tokens=32)
        )
        generate([asked])
