"""What is measured of an artifact on a split: what it said of every row, and every metric of that.

It keeps the raw observation, from which all metrics, their intervals and their tests can be computed
again; it does not know how the artifact came to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from softprompt.comparison.results import Metric
from softprompt.data.rows import Encoded
from softprompt.data.table import Table
from softprompt.data.task import Task
from softprompt.evaluation.intervals import Sampled, average, sampled_mean, sampled_ratio
from softprompt.evaluation.metrics import calibration_error, macro_f1
from softprompt.evaluation.score import Scores, score
from softprompt.evaluation.superglue import official
from softprompt.evaluation.writing import perplexity, references, score_texts, write_texts
from softprompt.library.prompt import Prompt
from softprompt.packages import Need

__all__ = ["Measured", "Measurement", "Observation", "Truth"]


class Observation(BaseModel):
    """What an artifact said of the rows of a split, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    losses: list[float]
    """Negative log-likelihood of the right answer, in nats."""
    tokens: list[float]
    """The tokens that is over."""
    predictions: list[int] = []
    """Number of the label or choice that was predicted; empty for free text."""
    confidences: list[float] = []
    """Its probability."""
    hits: list[bool] = []
    """Whether it is right."""
    texts: list[str] = []
    """What was written, where writing is measured."""


class Measured(BaseModel):
    """An observation and its metrics."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    observation: Observation
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class Truth:
    """What is right in the rows of a split.

    Attributes:
        table: the rows.
        names: the labels in the order predictions count them; None where each row has its own choices.
        labels: the number of each row's label, where there are labels.
        texts: the right texts of each row.
    """

    table: Table
    names: Sequence[str] | None
    labels: Sequence[int | None] | None
    texts: Sequence[Sequence[str]]

    @classmethod
    def of(cls, task: Task, split: str) -> Truth:
        """That of a split of a task."""
        table, template = task.tables[split], task.template
        names = tuple(template.labels) if template.labels else None
        labels = [template.label_index(row) for row in table.rows] if names else None
        return cls(table, names, labels, references(template, table))


@dataclass(frozen=True)
class Measurement:
    """How a comparison scores.

    Attributes:
        metric: the headline metric.
        writes: whether answers are written and scored as text.
        official: the SuperGLUE task whose official metrics are reported too, if it is one.
        max_new_tokens: the longest answer that is written.
    """

    metric: str
    writes: bool = False
    official: str | None = None
    max_new_tokens: int = 64

    @property
    def rules(self) -> dict[str, Any]:
        """All that what is measured depends on, as JSON values."""
        rules = {"metric": self.metric, "writes": self.writes}
        return rules | {"max_new_tokens": self.max_new_tokens} if self.writes else rules

    @property
    def needs(self) -> tuple[Need, ...]:
        tested: tuple[Need, ...] = ("McNemar's test",) if self.metric == "accuracy" else ()
        return (*tested, "scoring written texts") if self.writes else tested

    @property
    def higher_is_better(self) -> bool:
        return self.metric != "nll"

    def merit(self, measured: Measured) -> tuple[float, float]:
        """Higher is better: the headline metric, ties by loss."""
        sign = 1 if self.higher_is_better else -1
        return sign * measured.metrics[self.metric].value, -measured.metrics["nll"].value

    def curve(self, scores: Scores) -> float:
        """What a learning curve shows of the scores taken while training."""
        return scores.nll if scores.accuracy is None else scores.accuracy

    def of(self, prompt: Prompt, encoded: Encoded, task: Task, split: str) -> Measured:
        """Score a prompt on one split of a task, already in tokens."""
        found = score(prompt.base, prompt.prefix, replace(encoded, scaling=prompt.scaling))
        right = [example.right or (example.label,) for example in encoded.examples]
        texts: list[str] = []
        if self.writes:
            with torch.no_grad():
                texts = write_texts(prompt.base, prompt.prefix, encoded, max_new_tokens=self.max_new_tokens)
        seen = Observation(
            losses=list(found.losses),
            tokens=list(found.tokens),
            predictions=list(found.predictions),
            confidences=list(found.confidences),
            hits=[p in r for p, r in zip(found.predictions, right, strict=False)],
            texts=texts,
        )
        return self.measured(seen, task, split)

    def measured(self, seen: Observation, task: Task, split: str) -> Measured:
        """What was said of a split of a task, with every metric of it."""
        return Measured(observation=seen, metrics=self.metrics(seen, Truth.of(task, split)))

    def metrics(self, seen: Observation, truth: Truth) -> dict[str, Metric]:
        """Every metric of an observation with its interval, Wilson's for accuracy."""
        found = {name: one.interval() for name, one in self.sampled(seen, truth).items()}
        if seen.hits:
            found["accuracy"] = average(list(map(float, seen.hits)))
        return {name: Metric(**value._asdict()) for name, value in found.items()}

    def sampled(self, seen: Observation, truth: Truth) -> dict[str, Sampled]:
        """Every metric of an observation, with its resamplings of the rows."""
        found: dict[str, Sampled] = {}
        if seen.predictions:
            found["accuracy"] = sampled_mean([float(hit) for hit in seen.hits])
            if truth.labels is not None:
                found["macro_f1"] = macro_f1(truth.labels, seen.predictions)
            found["ece"] = calibration_error(seen.confidences, seen.hits)
        if seen.texts:
            found |= score_texts(seen.texts, truth.texts).sampled
        found["nll"] = sampled_ratio(seen.losses, seen.tokens)
        if not seen.predictions:
            found["perplexity"] = Sampled(perplexity(found["nll"].value), found["nll"].draws.exp())
        if self.official is not None and seen.predictions:
            scored = official(self.official, truth.table, seen.predictions, labels=truth.names)
            found |= {f"official {name}": one for name, one in scored.items()}
        return found

    def per_row(self, seen: Observation, truth: Truth) -> list[float]:
        """The headline metric of every row; of a metric that is no mean over rows, nothing."""
        if self.metric == "accuracy":
            return [float(hit) for hit in seen.hits]
        if self.metric == "nll":
            return [loss / max(1.0, tokens) for loss, tokens in zip(seen.losses, seen.tokens, strict=True)]
        if not self.writes:
            return []
        return score_texts(seen.texts, truth.texts).per_row.get(self.metric, [])
