"""What a comparison found: every number, every prediction, and what produced them.

Plain values that go to ``results.json`` and come back; it knows nothing of models, runs or pages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from softprompt.atomic import write_bytes
from softprompt.errors import ResourceError
from softprompt.report.notebook import grid_html

__all__ = [
    "Costs",
    "MethodResult",
    "Metric",
    "Pair",
    "ResultValue",
    "Results",
    "Run",
    "Seeds",
    "TestRow",
    "Trial",
]


class ResultValue(BaseModel):
    """A plain value of a results file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Metric(ResultValue):
    """A number with its 95% interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class Trial(ResultValue):
    """One setting that was tried on the first seed and judged on validation."""

    settings: dict[str, Any]
    """What this trial changed, by dotted name."""
    validation: dict[str, Metric]
    """Scores by metric; empty if it failed."""
    seconds: float
    """Training time."""
    chosen: bool = False
    """Whether it validated best, so that its settings went on to the other seeds and to test."""
    trouble: str = ""
    """Why it failed, in a sentence; empty if it did not."""


class Costs(ResultValue):
    """What one run took and what its artifact takes."""

    trained_parameters: int
    artifact_bytes: int
    positions: int
    """Virtual tokens in front of every row."""
    train_seconds: float
    peak_memory_bytes: int | None = None
    """The most memory the process held while it trained."""
    latency_seconds: float | None = None
    """Median time of one request answered alone."""


class Run(ResultValue):
    """One seed of a method's chosen settings."""

    seed: int
    costs: Costs
    steps: int
    best_step: int
    losses: list[tuple[int, float]]
    """(step, training loss)."""
    validations: list[tuple[int, float]]
    """(step, accuracy on validation where there are labels or choices, else loss per token)."""
    validation: dict[str, Metric]
    test: dict[str, Metric]
    perturbed: dict[str, float] = {}
    """Headline metric on the test rows after each change (typos, case, spacing)."""
    predictions: list[int] | list[str]
    """For each test row its predicted label's number, or the text that was written."""
    confidences: list[float] = []
    """For each test row the probability of the predicted label."""
    row_scores: list[float] = []
    """For each test row the headline metric, where it is a mean over rows."""


class Seeds(ResultValue):
    """One metric over all seeds of a method."""

    mean: float
    spread: float
    """Standard deviation over seeds (n - 1); 0 for one seed."""
    low: float
    high: float
    """95% interval of the mean, over test rows and seeds; over rows alone where there is one seed."""


class MethodResult(ResultValue):
    """One method: what was tried, what was chosen, how it did."""

    name: str
    kind: str
    trained: bool
    """Whether it learns anything."""
    trials: list[Trial]
    runs: list[Run]
    summary: dict[str, Seeds] = {}
    """Test metrics over seeds."""
    trouble: str = ""
    """Why there are no runs, in a sentence."""


class Pair(ResultValue):
    """Two methods on the same test rows."""

    first: str
    second: str
    difference: float
    """Headline metric of the first minus the second, mean over seeds."""
    low: float
    high: float
    """95% interval of it, over rows (paired) and seeds."""
    p: float
    """Two-sided p of this difference: exact McNemar where both have one run and are told apart by accuracy,
    else the bootstrap's, over rows and seeds."""
    p_holm: float | None = None
    """The same, corrected for all pairs of the comparison (Holm 1979)."""
    test: Literal["mcnemar", "bootstrap", "combined"]
    """How it was tested; combined: the mean of differences on several data sets, from their intervals."""

    @property
    def corrected(self) -> float:
        """The p that tells whether the difference is significant."""
        return self.p if self.p_holm is None else self.p_holm


class TestRow(ResultValue):
    """A row all methods were tested on."""

    __test__ = False  # not a test class

    input: str
    answer: str
    """The right text, or the taught one where several are right."""
    right: list[int] = []
    """Numbers of all right labels, or of the row's own right choices; empty for free text."""


class Results(ResultValue):
    """Everything a comparison found."""

    format: Literal[1] = 1
    name: str
    created: str
    """ISO 8601, UTC."""
    finished: bool
    """Whether every run of the comparison is in it."""
    metric: str
    """The headline metric, such as accuracy."""
    higher_is_better: bool = True
    labels: list[str] | None
    """In the order predictions count them; none for free text."""
    test_rows: list[TestRow]
    data: dict[str, dict[str, Any]]
    """By split: origin, rows, digest."""
    methods: list[MethodResult]
    pairs: list[Pair] = []
    notes: list[str] = []
    """Plain sentences a reader should know."""
    settings: dict[str, Any]
    """The comparison's resolved configuration."""
    versions: dict[str, str]
    hardware: dict[str, Any]
    """processor, cores, memory_bytes, device, dtype."""
    base: dict[str, Any] = Field(default_factory=dict)
    """name, fingerprint, parameters."""

    def __repr__(self) -> str:
        names = ", ".join(method.name for method in self.methods) or "no methods"
        return f"<Results {self.name}: {names}, by {self.metric}>"

    def _repr_html_(self) -> str:
        found = [(method, method.summary.get(self.metric)) for method in self.methods]
        rows = [
            (m.name, "-" if s is None else f"{s.mean:.3f} ({s.low:.3f}-{s.high:.3f})", m.trouble)
            for m, s in found
        ]
        return grid_html(
            self.name, ("method", f"{self.metric} on test", ""), rows, "95% intervals in brackets."
        )

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        write_bytes(path, (json.dumps(self.model_dump(), ensure_ascii=False, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read it back.

        Raises:
            ResourceError: there is no such file, or it is no results file.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ResourceError(f"{path} cannot be read ({error.strerror}); check the path.") from error
        except ValidationError as error:
            raise ResourceError(
                f"{path} is no results file of softprompt compare ({error.error_count()} faults); "
                "run the comparison again."
            ) from error
