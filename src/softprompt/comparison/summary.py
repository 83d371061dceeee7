"""Cells put together: means over seeds, tests between methods, votes; pure arithmetic over what was seen."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from softprompt.base.model import Base
from softprompt.comparison.cell import Tested, Trained
from softprompt.comparison.hardware import hardware, versions
from softprompt.comparison.measure import Measurement, Observation, Truth
from softprompt.comparison.results import (
    Costs,
    MethodResult,
    Pair,
    Results,
    Run,
    Seeds,
    TestRow,
    Trial,
)
from softprompt.comparison.settings import Comparison, Contender
from softprompt.config.data import SOURCES
from softprompt.data.task import Task
from softprompt.evaluation.intervals import Sampled
from softprompt.evaluation.paired import holm, mcnemar, over_seeds, paired_difference
from softprompt.numbers import is_share

__all__ = ["Findings", "Setting", "over_all_seeds", "pairs", "summarise"]


@dataclass(frozen=True)
class Setting:
    """What a comparison is made on: the machine, and the base without its weights."""

    hardware: dict[str, Any]
    base: dict[str, Any]

    @classmethod
    def of(cls, base: Base) -> Setting:
        parameters = sum(p.numel() for p in base.model.parameters())
        about = {"name": base.name, "fingerprint": base.fingerprint, "parameters": parameters}
        return cls(hardware(base), about)


@dataclass(frozen=True)
class Findings:
    """All cells of one method: its trials, which was chosen, that one's runs and tests by seed."""

    trials: Sequence[Trained] = ()
    chosen: int = 0
    runs: Sequence[Trained] = ()
    tests: Sequence[Tested] = ()
    votes_of: str | None = None
    trouble: str = ""


def summarise(
    comparison: Comparison,
    contenders: Sequence[Contender],
    findings: Mapping[str, Findings],
    measurement: Measurement,
    setting: Setting,
    task: Task,
) -> Results:
    """The results of all cells there are so far."""
    truth = Truth.of(task, "test")
    seen = {c.name: _observations(findings, c.name) for c in contenders if c.name in findings}
    seeds = comparison.compare.seeds
    sampled = {name: [measurement.sampled(one, truth) for one in found] for name, found in seen.items()}
    methods = [
        _method(contender, findings, seen[contender.name], measurement, truth, seeds).model_copy(
            update={"summary": over_all_seeds(sampled[contender.name])}
        )
        for contender in contenders
        if contender.name in findings
    ]
    return Results(
        name=comparison.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        finished=len(findings) == len(contenders),
        metric=measurement.metric,
        higher_is_better=measurement.higher_is_better,
        labels=list(task.template.labels) if task.template.labels else None,
        test_rows=_shown(task, truth),
        data={
            name: {"origin": _from_here(table.origin), "rows": len(table), "digest": table.digest}
            for name, table in task.tables.items()
        },
        methods=methods,
        pairs=pairs(
            measurement.metric,
            {name: [one[measurement.metric] for one in found] for name, found in sampled.items() if found},
            {name: found[0].hits for name, found in seen.items() if found},
        ),
        notes=list(task.notes),
        settings=_settings(comparison),
        versions=versions(),
        hardware=setting.hardware,
        base=setting.base,
    )


def _settings(comparison: Comparison) -> dict[str, Any]:
    settings = comparison.model_dump(mode="json")
    data = settings["data"]
    data |= {name: _from_here(data[name]) for name in SOURCES if data[name] is not None}
    return settings


def _from_here(path: str) -> str:
    """A path below the working folder without that folder, which means nothing on another machine."""
    here = f"{Path.cwd()}{os.sep}"
    return path.removeprefix(here)


def _shown(task: Task, truth: Truth) -> list[TestRow]:
    template = task.template
    return [
        TestRow(input=template.input_text(row), answer=answers[0], right=list(template.right(row)))
        for row, answers in zip(truth.table.rows, truth.texts, strict=True)
    ]


# One method --------------------------------------------------------------------------------------


def _observations(findings: Mapping[str, Findings], name: str) -> list[Observation]:
    """What each run of a method said of the test rows; a vote says one thing."""
    found = findings[name]
    if found.votes_of is None:
        return [tested.test.observation for tested in found.tests]
    voters = _observations(findings, found.votes_of)
    return [_vote(voters)] if voters and voters[0].predictions else []


def _vote(voters: Sequence[Observation]) -> Observation:
    """The label most runs give, ties by how sure they are together; losses are the voters' mean."""
    predictions, confidences, hits = [], [], []
    for row in range(len(voters[0].predictions)):
        votes: Counter[int] = Counter()
        weight: Counter[int] = Counter()
        right = {v.predictions[row] for v in voters if v.hits[row]}
        for voter in voters:
            votes[voter.predictions[row]] += 1
            weight[voter.predictions[row]] += voter.confidences[row]  # type: ignore[assignment]
        winner = max(votes, key=lambda label: (votes[label], weight[label]))
        predictions.append(winner)
        confidences.append(weight[winner] / len(voters))
        hits.append(winner in right)
    losses = [fmean(column) for column in zip(*(v.losses for v in voters), strict=True)]
    return Observation(
        losses=losses, tokens=voters[0].tokens, predictions=predictions, confidences=confidences, hits=hits
    )


def _method(
    contender: Contender,
    findings: Mapping[str, Findings],
    seen: Sequence[Observation],
    measurement: Measurement,
    truth: Truth,
    seeds: Sequence[int],
) -> MethodResult:
    found = findings[contender.name]
    runs = [
        _run(seed, cell, tested, measurement, truth)
        for seed, cell, tested in zip(seeds, found.runs, found.tests, strict=False)
    ]
    if found.votes_of is not None and seen:
        runs = [_voting_run(findings[found.votes_of], seen[0], seeds[0], measurement, truth)]
    return MethodResult(
        name=contender.name,
        kind=contender.kind,
        trained=contender.learns,
        trials=[
            Trial(
                settings=settings,
                validation=cell.validation.metrics,
                seconds=cell.costs.train_seconds,
                chosen=number == found.chosen,
                trouble=cell.trouble,
            )
            for number, (settings, cell) in enumerate(zip(contender.trials, found.trials, strict=False))
        ],
        runs=runs,
        trouble=found.trouble,
    )


def _run(seed: int, cell: Trained, tested: Tested, measurement: Measurement, truth: Truth) -> Run:
    seen = tested.test.observation
    return Run(
        seed=seed,
        costs=cell.costs.model_copy(update={"latency_seconds": tested.latency_seconds}),
        steps=cell.steps,
        best_step=cell.best_step,
        losses=cell.losses,
        validations=cell.validations,
        validation=cell.validation.metrics,
        test=tested.test.metrics,
        perturbed={
            name: measured.metrics[measurement.metric].value for name, measured in tested.perturbed.items()
        }
        | _worst(tested),
        predictions=seen.texts or seen.predictions,
        confidences=seen.confidences,
        row_scores=measurement.per_row(seen, truth),
    )


def _worst(tested: Tested) -> dict[str, float]:
    """The share of rows that are right as they are and under every change."""
    if not tested.perturbed:
        return {}
    hits = [tested.test.observation.hits, *(m.observation.hits for m in tested.perturbed.values())]
    return {"worst": fmean(float(all(row)) for row in zip(*hits, strict=True))}


def _voting_run(
    voters: Findings, seen: Observation, seed: int, measurement: Measurement, truth: Truth
) -> Run:
    """One run that costs what all voters cost together."""
    costs = [cell.costs for cell in voters.runs]
    return Run(
        seed=seed,
        costs=Costs(
            trained_parameters=sum(c.trained_parameters for c in costs),
            artifact_bytes=sum(c.artifact_bytes for c in costs),
            positions=max(c.positions for c in costs),
            train_seconds=sum(c.train_seconds for c in costs),
            peak_memory_bytes=max((c.peak_memory_bytes or 0 for c in costs), default=None),
        ),
        steps=sum(cell.steps for cell in voters.runs),
        best_step=0,
        losses=[],
        validations=[],
        validation={},
        test=measurement.metrics(seen, truth),
        predictions=seen.predictions,
        confidences=seen.confidences,
        row_scores=measurement.per_row(seen, truth),
    )


# Over seeds, and between methods -----------------------------------------------------------------


def over_all_seeds(runs: Sequence[Mapping[str, Sampled]]) -> dict[str, Seeds]:
    """Every metric over the runs of one method; none is below 0, and no share above 1."""
    found = {}
    for metric in runs[0] if runs else ():
        mean, spread, low, high = over_seeds([run[metric] for run in runs])
        most = 1.0 if is_share(metric) else math.inf
        found[metric] = Seeds(mean=mean, spread=spread, low=max(0.0, low), high=min(most, high))
    return found


def pairs(
    metric: str, runs: Mapping[str, Sequence[Sampled]], hits: Mapping[str, Sequence[bool]]
) -> list[Pair]:
    """Every two methods: difference over seeds with its interval, and the p of that very difference.

    Args:
        metric: the headline metric.
        runs: that metric of each method's runs.
        hits: whether each method's first run is right, row by row, where that can be said.
    """
    found = []
    for first, second in combinations(runs, 2):
        gap = paired_difference(runs[first], runs[second])
        exact = metric == "accuracy" and len(runs[first]) == len(runs[second]) == 1
        p = mcnemar(hits[first], hits[second]) if exact else gap.p
        values = {"first": first, "second": second, **gap._asdict(), "p": p}
        found.append(Pair(**values, test="mcnemar" if exact else "bootstrap"))
    corrected = holm([pair.p for pair in found])
    return [pair.model_copy(update={"p_holm": p}) for pair, p in zip(found, corrected, strict=True)]
