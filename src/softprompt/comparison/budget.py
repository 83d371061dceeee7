"""Hours a comparison may take: what it would cost, and what is given up, in which order, until it fits.

It knows settings and seconds; it does not run the comparison. Trials are cut first, by successive halving
(Jamieson and Talwalkar 2016) with one halving of the field to its best: each runs a quarter of its steps, and
the best goes on whole. Then seeds down to three, test rows, a third seed, training rows, and the second seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from softprompt.atomic import write_bytes
from softprompt.errors import ConfigError
from softprompt.numbers import count_text, seconds_text

__all__ = ["Budget", "Cost", "Cut", "estimated", "kept_plan", "planned"]

SHORT = 0.25
"""The share of its steps after which a trial is judged, where they must be cut."""
_FEWEST_TEST, _FEWEST_TRAINING = 200, 50
"""Rows that are never gone below."""


@dataclass(frozen=True)
class Cost:
    """Seconds of one method on this machine.

    Attributes:
        name: of the method.
        trials: how many settings are tried.
        training: all steps of a run.
        validating: all validations of a run.
        testing: one pass over the test rows.
    """

    name: str
    trials: int
    training: float
    validating: float
    testing: float


@dataclass(frozen=True)
class Cut:
    """What is left of a comparison.

    Attributes:
        share: of its steps after which a trial is judged; 1 for all of them.
        seeds: how many.
        test: test rows.
        training: training rows.
    """

    share: float
    seeds: int
    test: int
    training: int


class Budget(BaseModel):
    """What a comparison gives up to fit into its hours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str
    """Of the settings it was made for."""
    overrides: list[str]
    """Settings that are set anew, as ``a.b=value``."""
    share: float
    """Of its steps after which a trial is judged."""
    seconds: float
    """What is left takes, as estimated."""
    notes: list[str]
    """Sentences on what was given up; empty where nothing was."""


def estimated(costs: Sequence[Cost], whole: Cut, left: Cut, changes: int) -> float:
    """Seconds that what is left takes.

    Args:
        costs: of every method, as in the whole.
        whole: all that was asked for.
        left: what is to be run.
        changes: further passes over the test rows, on the first seed.
    """
    found = 0.0
    for cost in costs:
        run = cost.training * left.training / whole.training + cost.validating
        short = left.share < 1 and cost.trials > 1 and cost.training > 0
        found += cost.trials * run * (left.share if short else 1.0)
        found += (left.seeds - (not short)) * run
        found += (left.seeds + changes) * cost.testing * left.test / whole.test
    return found


def _cuts(whole: Cut) -> Iterator[Cut]:
    """The whole, then ever less of it, each cut on top of those before."""
    left = whole
    yield left
    yield (left := replace(left, share=SHORT))
    while left.seeds > 3:
        yield (left := replace(left, seeds=left.seeds - 1))
    while left.test > _FEWEST_TEST:
        yield (left := replace(left, test=max(_FEWEST_TEST, left.test // 2)))
    if left.seeds > 2:
        yield (left := replace(left, seeds=2))
    while left.training > _FEWEST_TRAINING:
        yield (left := replace(left, training=max(_FEWEST_TRAINING, left.training // 2)))
    if left.seeds > 1:
        yield replace(left, seeds=1)


def planned(
    hours: float, costs: Sequence[Cost], whole: Cut, seeds: Sequence[int], identity: str, changes: int
) -> Budget:
    """The most of a comparison that fits into its hours.

    Raises:
        ConfigError: not even the least of it does.
    """
    least = math.inf
    for left in _cuts(whole):
        seconds = estimated(costs, whole, left, changes)
        if seconds <= 3600 * hours:
            return Budget(
                identity=identity,
                overrides=_overrides(whole, left, seeds),
                share=left.share,
                seconds=seconds,
                notes=_notes(hours, whole, left, estimated(costs, whole, whole, changes)),
            )
        least = min(least, seconds)
    slowest = max(costs, key=lambda cost: cost.training + cost.validating)
    raise ConfigError(
        f"The comparison does not fit into {_hours(hours)}: with one seed, trials cut to a quarter of their "
        f"steps, {count_text(left.training)} training rows and {count_text(left.test)} test rows it takes "
        f"about {seconds_text(least)} here. Give it more, or take out a method; {slowest.name} takes longest."
    )


def _overrides(whole: Cut, left: Cut, seeds: Sequence[int]) -> list[str]:
    found = []
    if left.seeds < whole.seeds:
        found.append(f"compare.seeds={list(seeds[: left.seeds])}")
    if left.test < whole.test:
        found.append(f"data.test_rows={left.test}")
    if left.training < whole.training:
        found.append(f"data.train_rows={left.training}")
    return found


def _notes(hours: float, whole: Cut, left: Cut, seconds: float) -> list[str]:
    """One sentence on all that was given up."""
    given = []
    if left.share < 1:
        given.append("trials were judged after a quarter of their steps")
    if left.seeds < whole.seeds:
        given.append(f"{left.seeds} of {whole.seeds} seeds were run")
    if left.test < whole.test:
        given.append(f"{count_text(left.test)} of {count_text(whole.test)} test rows were read")
    if left.training < whole.training:
        given.append(
            f"{count_text(left.training)} of {count_text(whole.training)} training rows were learnt from"
        )
    if not given:
        return []
    *first, last = given
    said = f"{', '.join(first)} and {last}" if first else last
    return [f"To fit into {_hours(hours)} instead of about {seconds_text(seconds)}, {said}."]


def _hours(hours: float) -> str:
    return f"{hours:g} {'hour' if hours == 1 else 'hours'}"


def kept_plan(path: Path, about: object, make: Callable[[str], Budget]) -> Budget:
    """The plan that was made for these settings; it is made once, for a clock says something else each time.

    Args:
        path: where it is kept.
        about: all that it depends on, as JSON values.
        make: makes it, given its identity.
    """
    identity = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    try:
        found = Budget.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        found = None
    if found is not None and found.identity == identity:
        return found
    made = make(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (made.model_dump_json(indent=1) + "\n").encode())
    return made
