"""One run: what it asks for, what changes while it goes on, and how that is kept on disk.

It knows a method, an optimizer and counts; it takes no steps and scores nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from softprompt.base.packing import TokenRow
from softprompt.config import TrainConfig
from softprompt.evaluation.score import Scores
from softprompt.methods.method import Method
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.optimizer import build_optimizer, optimizer_state, restore_optimizer
from softprompt.training.schedule import Steps

__all__ = ["Outcome", "Run", "State"]


@dataclass(frozen=True, eq=False)
class Run:
    """One prompt to be trained.

    Attributes:
        method: changed in place.
        rows: training rows; their scored tokens make the loss.
        config: rates, sizes, patience.
        seed: fixes the order of the rows.
        checkpoint: the file its state is kept in, if any.
        identity: names configuration, data and base; a checkpoint of another identity is refused.
    """

    method: Method
    rows: Sequence[TokenRow]
    config: TrainConfig
    seed: int
    checkpoint: Path | None = None
    identity: str = ""


@dataclass(frozen=True)
class Outcome:
    """How training ended; the method is left in its best state.

    Attributes:
        steps: steps taken.
        best_step: the step whose state was kept; 0 is the start.
        best: the validation scores of that state.
        ended: ``"done"``, ``"early"`` (no gain for long), ``"interrupted"`` or ``"diverged"``.
        seconds: on the clock until it ended, earlier parts of a resumed run included.
        trouble: what went wrong, in a sentence, if it diverged.
    """

    steps: int
    best_step: int
    best: Scores
    ended: str
    seconds: float
    trouble: str = ""


class State:
    """All that changes while a run goes on.

    ``scores`` and ``best`` are those of ``best_step``; ``stale`` counts evaluations without gain
    since, ``runaway`` losses above ``limit`` in a row; ``saved`` is the step of the checkpoint.
    """

    COUNTS = ("step", "best_step", "stale", "runaway")

    def __init__(self, number: int, run: Run) -> None:
        self.number, self.run, config = number, run, run.config
        learnt = run.method.trainable_parameters()
        epochs = config.epochs if learnt else 0
        self.steps = Steps(len(run.rows), config.batch_size, epochs, run.seed, config.max_steps)
        self.optimizer = build_optimizer(learnt, config)
        self.step = self.best_step = self.stale = self.runaway = self.saved = 0
        self.scores: Scores | None = None
        self.best: dict[str, Tensor] = {}
        self.limit = math.inf
        self.before, self.started = 0.0, time.monotonic()
        self.batch: list[TokenRow] = []
        self.loss, self.norm, self.rate = math.nan, 0.0, 0.0
        self.trouble, self.stopped = "", False
        self.outcome: Outcome | None = None

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    @property
    def due(self) -> bool:
        """Whether this step ends with an evaluation; the start and the last one always do."""
        every = self.run.config.evaluate_every or self.steps.per_epoch
        return self.step == self.steps.total or self.step % every == 0

    @property
    def ended(self) -> str:
        """How the run has ended, if it has."""
        if self.trouble:
            return "diverged"
        if self.run.config.patience is not None and self.stale >= self.run.config.patience:
            return "early"
        if self.step >= self.steps.total:
            return "done"
        return "interrupted" if self.stopped else ""

    def save(self) -> None:
        """Write the checkpoint, unless it already stands at this step."""
        if self.run.checkpoint is None or self.saved == self.step:
            return
        assert self.scores is not None
        numbers = {name: getattr(self, name) for name in (*self.COUNTS, "limit", "seconds")}
        numbers |= {"identity": self.run.identity, "scores": self.scores.to_json()}
        now, optimizer = self.run.method.state(), optimizer_state(self.optimizer)
        Checkpoint(numbers, {"now": now, "best": self.best, "optimizer": optimizer}).save(self.run.checkpoint)
        self.saved = self.step

    def restore(self) -> None:
        """Go to where the checkpoint stands, if there is one."""
        path = self.run.checkpoint
        if path is None or not path.exists():
            return
        Checkpoint.refuse_another(path, self.run.identity)
        saved = Checkpoint.load(path)
        self.run.method.load_state(saved.tensors["now"])
        restore_optimizer(self.optimizer, saved.tensors["optimizer"])
        self.best = saved.tensors["best"]
        for name in self.COUNTS:
            setattr(self, name, int(saved.numbers[name]))
        self.scores = Scores.from_json(saved.numbers["scores"])
        self.limit, self.before = float(saved.numbers["limit"]), float(saved.numbers["seconds"])
        self.saved = self.step

    def leave(self) -> None:
        """End: the method goes to its best state, and the outcome stands."""
        assert self.scores is not None
        self.run.method.load_state(self.best)
        self.outcome = Outcome(self.step, self.best_step, self.scores, self.ended, self.seconds, self.trouble)
