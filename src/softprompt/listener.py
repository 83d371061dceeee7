"""What a long task tells while it goes on, and what it asks: one object handed down to whatever runs.

It knows the reports of a training run; it does not know who listens, nor screens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from softprompt.evaluation.score import Scores

__all__ = ["SILENT", "Listener", "Report"]


@dataclass(frozen=True)
class Report:
    """One step of training; at step 0 only the start was scored.

    Attributes:
        step, total: steps taken, and to take.
        loss: mean nats per scored token of the step's rows.
        learning_rate: of this step.
        gradient_norm: before clipping.
        tokens: text tokens read.
        seconds: since the run began, earlier parts of a resumed run included; on the clock, so
            runs trained together share them.
        scores: validation scores, when the step ended with an evaluation.
        best: whether these are the best so far.
        run: which of several runs it is of; empty where there is one.
    """

    step: int
    total: int
    loss: float = math.nan
    learning_rate: float = 0.0
    gradient_norm: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    scores: Scores | None = None
    best: bool = False
    run: str = ""


@dataclass(frozen=True)
class Listener:
    """Four functions, each of which does nothing unless it is given.

        softprompt.train(base, "topics.toml", listener=Listener(note=print))

    Attributes:
        note: told plain sentences.
        step: told of every step of a training run.
        progress: told (what, done, total) of whatever else takes a while, such as scoring a split.
        stop: asked after every step whether to end now.
    """

    note: Callable[[str], None] = lambda sentence: None
    step: Callable[[Report], None] = lambda report: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    stop: Callable[[], bool] = lambda: False

    def counting(self, what: str) -> Callable[[int, int], None]:
        """Takes (done, total) of one task."""
        return partial(self.progress, what)

    def of_run(self, name: str) -> Listener:
        """The same, told of steps as those of the run of that name."""
        return replace(self, step=lambda report: self.step(replace(report, run=name)))


SILENT = Listener()
"""Hears nothing and stops nothing."""
