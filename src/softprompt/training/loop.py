"""The one training loop: steps, validation, checkpoints, and a way back when a loss runs away.

It knows a method, token rows and a scorer; it does not know which method, nor files of data or
screens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from softprompt.base.packing import TokenRow
from softprompt.config import TrainConfig
from softprompt.errors import TrainingError
from softprompt.evaluation.score import Scores
from softprompt.methods.method import Method
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.optimizer import build_optimizer, optimizer_state, restore_optimizer
from softprompt.training.schedule import Steps, rate

__all__ = ["Outcome", "Report", "fit"]

RUNAWAY_STEPS = 10
"""So many losses in a row, each worse than the first and than a blind guess among V words: divergence."""


_COUNTS = ("step", "best_step", "stale", "runaway")


@dataclass(frozen=True)
class Report:
    """What a watcher is told after a step; at step 0 only the start was scored.

    Attributes:
        step, total: steps taken, and to take.
        loss: mean nats per scored token of the step's rows.
        learning_rate: of this step.
        gradient_norm: before clipping.
        seconds: since the run began, earlier parts of a resumed run included.
        tokens: text tokens read.
        scores: validation scores, when the step ended with an evaluation.
        best: whether these are the best so far.
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


@dataclass(frozen=True)
class Outcome:
    """How training ended; the method is left in its best state.

    Attributes:
        steps: steps taken.
        best_step: the step whose state was kept; 0 is the start.
        best: the validation scores of that state.
        ended: ``"done"``, ``"early"`` (no gain for long), ``"interrupted"`` or ``"diverged"``.
        seconds: spent training and validating, earlier parts of a resumed run included.
        trouble: what went wrong, in a sentence, if it diverged.
    """

    steps: int
    best_step: int
    best: Scores
    ended: str
    seconds: float
    trouble: str = ""


@dataclass
class _Run:
    """All that changes while a run goes on: what a checkpoint holds."""

    method: Method
    optimizer: Optimizer
    checkpoint: Path
    identity: str
    scores: Scores
    best: dict[str, Tensor]
    step: int = 0
    best_step: int = 0
    stale: int = 0
    runaway: int = 0
    limit: float = math.inf
    before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started


def fit(
    method: Method,
    rows: Sequence[TokenRow],
    evaluate: Callable[[], Scores],
    config: TrainConfig,
    *,
    seed: int,
    checkpoint: Path,
    identity: str,
    resume: bool = False,
    watch: Callable[[Report], None] = lambda report: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train ``method`` on ``rows`` and leave it in the state that validates best.

    Args:
        method: changed in place.
        rows: training rows; their scored tokens make the loss.
        evaluate: scores of the method as it stands, on rows it is not trained on.
        config: rates, sizes, patience.
        seed: fixes the order of the rows.
        checkpoint: the file the run's state is kept in.
        identity: names configuration, data and base; a checkpoint of another identity is refused.
        resume: go on from the checkpoint if there is one; on a CPU to bit-identical parameters.
        watch: told of every step.
        stop: asked after every step whether to end now, keeping the best so far.

    Raises:
        TrainingError: the checkpoint is damaged or belongs to another run.
    """
    steps = Steps(len(rows), config.batch_size, config.epochs, seed, config.max_steps)
    optimizer = build_optimizer(method.trainable_parameters(), config)
    run = _restored(method, optimizer, checkpoint, identity) if resume and checkpoint.exists() else None
    if run is None:
        run = _Run(method, optimizer, checkpoint, identity, evaluate(), _copy(method.state()))
        watch(Report(0, steps.total, seconds=run.seconds, scores=run.scores, best=True))
    ended, trouble = "done", ""
    while run.step < steps.total:
        batch = [rows[i] for i in steps.batch(run.step)]
        loss, norm = _gradient(run, batch, config)
        trouble = _trouble(run, loss, norm)
        if trouble:
            ended = "diverged"
            break
        lr = config.learning_rate * rate(config.schedule, run.step, steps.total, config.warmup)
        _apply(run.optimizer, lr)
        run.step += 1
        scores = evaluate() if _due(run.step, steps, config) else None
        best = scores is not None and _judge(run, scores, config.select)
        tokens = sum(len(row.ids) for row in batch)
        watch(Report(run.step, steps.total, loss, lr, norm, tokens, run.seconds, scores, best))
        if config.patience is not None and run.stale >= config.patience:
            ended = "early"
            break
        if stop():
            ended = "interrupted"
            break
        if run.step % config.checkpoint_every == 0:
            _save(run)
    _save(run)
    method.load_state(run.best)
    return Outcome(run.step, run.best_step, run.scores, ended, run.seconds, trouble)


def _gradient(run: _Run, batch: Sequence[TokenRow], config: TrainConfig) -> tuple[float, float]:
    """The clipped gradient of a batch, read in micro-batches; its loss, and its norm before clipping."""
    run.optimizer.zero_grad()
    scored = sum(row.scored for row in batch)
    loss = 0.0
    for part in range(config.accumulation):
        rows = batch[part :: config.accumulation]
        if rows:
            share = run.method.base.nll(rows, run.method.front()).nll.sum() / scored
            share.backward()
            loss += share.item()
    parameters = run.method.trainable_parameters()
    return loss, float(torch.nn.utils.clip_grad_norm_(parameters, config.clip or math.inf))


def _trouble(run: _Run, loss: float, norm: float) -> str:
    """What is wrong, if anything, before a bad gradient touches the parameters."""
    if run.step == 0:
        run.limit = max(loss, math.log(run.method.base.embedding.weight.shape[0]))
    run.runaway = run.runaway + 1 if loss > run.limit else 0
    if not (math.isfinite(loss) and math.isfinite(norm)):
        what = f"the loss is {loss} and its gradient {norm}"
    elif run.runaway == RUNAWAY_STEPS:
        what = f"the loss stayed above {run.limit:.1f}"
    else:
        return ""
    return f"Training diverged at step {run.step + 1}: {what}; lower train.learning_rate."


def _apply(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


def _due(step: int, steps: Steps, config: TrainConfig) -> bool:
    """Whether a step ends with an evaluation; the last one always does."""
    every = config.evaluate_every or steps.per_epoch
    return step % every == 0 or step == steps.total


def _judge(run: _Run, scores: Scores, select: str) -> bool:
    """Keep the method's state if it validates better than the best so far."""
    better = _merit(scores, select) > _merit(run.scores, select)
    if better:
        run.scores, run.best, run.best_step = scores, _copy(run.method.state()), run.step
    run.stale = 0 if better else run.stale + 1
    return better


def _merit(scores: Scores, select: str) -> tuple[float, ...]:
    """Higher is better: accuracy where there are labels, ties by loss; else the loss alone."""
    nll = -scores.nll if math.isfinite(scores.nll) else -math.inf
    return (nll,) if select == "nll" or scores.accuracy is None else (scores.accuracy, nll)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _save(run: _Run) -> None:
    numbers = {name: getattr(run, name) for name in (*_COUNTS, "limit", "seconds", "identity")}
    numbers["scores"] = run.scores.to_json()
    tensors = {"now": run.method.state(), "best": run.best, "optimizer": optimizer_state(run.optimizer)}
    Checkpoint(numbers, tensors).save(run.checkpoint)


def _restored(method: Method, optimizer: Optimizer, path: Path, identity: str) -> _Run:
    saved = Checkpoint.load(path)
    numbers = saved.numbers
    if numbers.get("identity") != identity:
        raise TrainingError(
            f"{path} belongs to a run with another configuration, data or base; "
            "give back the old settings, or start again without --resume."
        )
    method.load_state(saved.tensors["now"])
    restore_optimizer(optimizer, saved.tensors["optimizer"])
    counts: dict[str, int] = {name: int(numbers[name]) for name in _COUNTS}
    return _Run(
        method,
        optimizer,
        path,
        identity,
        Scores.from_json(numbers["scores"]),
        saved.tensors["best"],
        **counts,
        limit=float(numbers["limit"]),
        before=float(numbers["seconds"]),
    )
