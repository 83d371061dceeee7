"""The one training loop: steps, validation, checkpoints, and a way back when a loss runs away.

It takes any number of runs through one base together, each as if it were alone. It knows methods,
token rows and a scorer; it does not know which methods, nor files of data or screens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from softprompt.base.model import Batch, scorable
from softprompt.base.packing import TokenRow, split
from softprompt.config import TrainConfig
from softprompt.evaluation.score import Scores
from softprompt.methods.method import Method
from softprompt.prefix import Front
from softprompt.training.schedule import rate
from softprompt.training.state import Outcome, Run, State

__all__ = ["Outcome", "Report", "Run", "fit", "fit_many", "merit"]

RUNAWAY_STEPS = 10
"""So many losses in a row, each worse than the first and than a blind guess among V words: divergence."""

PASS_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Positions read in one pass, unless a single batch has more. A CPU is at its best from 500 to 1,200 in
fp32 and to 2,400 in bf16, and slower by a sixth to a third at 4,400; the figure for CUDA is not measured."""


@dataclass(frozen=True)
class Report:
    """What a watcher is told after a step; at step 0 only the start was scored.

    Attributes:
        step, total: steps taken, and to take.
        loss: mean nats per scored token of the step's rows.
        learning_rate: of this step.
        gradient_norm: before clipping.
        seconds: since the run began, earlier parts of a resumed run included; on the clock, so
            runs trained together share them.
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


def fit(
    method: Method,
    rows: Sequence[TokenRow],
    evaluate: Callable[[], Scores],
    config: TrainConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    identity: str = "",
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
        checkpoint: the file the run's state is kept in, if any.
        identity: names configuration, data and base; a checkpoint of another identity is refused.
        resume: go on from the checkpoint if there is one; on a CPU to bit-identical parameters.
        watch: told of every step.
        stop: asked after every step whether to end now, keeping the best so far.

    Raises:
        TrainingError: the checkpoint is damaged or belongs to another run.
    """
    run = Run(method, rows, config, seed, checkpoint, identity)
    (outcome,) = fit_many(
        [run],
        lambda _: [evaluate()],
        resume=resume,
        watch=lambda _, report: watch(report),
        stop=lambda _: stop(),
    )
    return outcome


def fit_many(
    runs: Sequence[Run],
    evaluate: Callable[[Sequence[int]], Sequence[Scores]],
    *,
    resume: bool = False,
    watch: Callable[[int, Report], None] = lambda number, report: None,
    stop: Callable[[int], bool] = lambda number: False,
    pass_tokens: int | None = None,
) -> list[Outcome]:
    """Train every run at once, to what it would have learnt alone, and leave each at its best.

    Runs whose methods share a base are read in the same passes. They share nothing else: each has
    its own loss, clipping, rate, patience and end, and leaves the others running.

    Args:
        runs: what to train; no two may share a parameter.
        evaluate: numbers of runs -> the scores of their methods as they stand.
        resume: each goes on from its checkpoint if there is one, wherever that stands.
        watch: told the number of a run, and of its step.
        stop: asked after a run's every step, by its number, whether to end it now.
        pass_tokens: the most positions read in one pass, unless one run's (micro-)batch has more;
            bounds memory, changes no result. None for what suits the device.

    Raises:
        TrainingError: a checkpoint is damaged or belongs to another run.
    """
    states = [State(number, run) for number, run in enumerate(runs)]
    for state in states:
        if resume:
            state.restore()
    _report([state for state in states if state.scores is None], evaluate, watch)
    going = _going_on(states)
    while going:
        _gradients(going, pass_tokens)
        stepped = [state for state in going if _step(state)]
        _report(stepped, evaluate, watch)
        for state in stepped:
            state.stopped = stop(state.number)
        going = _going_on(going)
    return [state.outcome for state in states if state.outcome is not None]


def _gradients(states: Sequence[State], pass_tokens: int | None) -> None:
    """Every run's next batch and the gradient of its mean loss, batches of one base read together."""
    for state in states:
        state.batch = [state.run.rows[i] for i in state.steps.batch(state.step)]
        state.loss = 0.0
        state.optimizer.zero_grad()
    for part in range(max(state.run.config.accumulation for state in states)):
        for together in _passes(states, part, pass_tokens):
            _backward(together)


_Read = tuple[State, Batch]


def _passes(states: Sequence[State], part: int, pass_tokens: int | None) -> Iterator[list[_Read]]:
    """The micro-batches of one part of the step, those of one base side by side in bounded passes."""
    by_base: dict[int, list[_Read]] = defaultdict(list)
    for state in states:
        method, parts = state.run.method, state.run.config.accumulation
        if part < parts and (rows := state.batch[part::parts]):
            by_base[id(method.base)].append((state, Batch(rows, method.front())))
    for reads in by_base.values():
        device = reads[0][0].run.method.base.device.type
        most = pass_tokens or PASS_TOKENS.get(device, PASS_TOKENS["cpu"])
        for numbers in split([batch.positions for _, batch in reads], most):
            yield [reads[number] for number in numbers]


def _backward(together: Sequence[_Read]) -> None:
    """One pass forward and back; no parameter belongs to two runs, so no gradients mix."""
    base = together[0][0].run.method.base
    losses = base.nll_many([batch for _, batch in together])
    shares = [
        found.nll.sum() / _scored(state.batch, batch.front)
        for (state, batch), found in zip(together, losses, strict=True)
    ]
    torch.autograd.backward(shares)
    for (state, _), share in zip(together, torch.stack(shares).tolist(), strict=True):
        state.loss += share


def _scored(rows: Sequence[TokenRow], front: Front) -> int:
    """How many tokens of a step the loss is the mean of; at least 1, for a sum over none is 0."""
    return max(1, sum(row.scored for row in scorable(Batch(rows, front))))


def _step(state: State) -> bool:
    """Clip and learn, unless the gradient is bad: then nothing is touched, and the run has ended."""
    config = state.run.config
    parameters = state.run.method.trainable_parameters()
    state.norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.clip or math.inf))
    state.trouble = _trouble(state)
    if state.trouble:
        return False
    state.rate = config.learning_rate * rate(config.schedule, state.step, state.steps.total, config.warmup)
    for group in state.optimizer.param_groups:
        group["lr"] = state.rate
    state.optimizer.step()
    state.step += 1
    return True


def _trouble(state: State) -> str:
    """What is wrong, if anything."""
    if state.step == 0:
        state.limit = max(state.loss, math.log(state.run.method.base.embedding.weight.shape[0]))
    state.runaway = state.runaway + 1 if state.loss > state.limit else 0
    if not (math.isfinite(state.loss) and math.isfinite(state.norm)):
        what = f"the loss is {state.loss} and its gradient {state.norm}"
    elif state.runaway >= RUNAWAY_STEPS:
        what = f"the loss stayed above {state.limit:.1f}"
    else:
        return ""
    return f"Training diverged at step {state.step + 1}: {what}; lower train.learning_rate."


def _report(
    states: Sequence[State],
    evaluate: Callable[[Sequence[int]], Sequence[Scores]],
    watch: Callable[[int, Report], None],
) -> None:
    """Validate the runs that are due, together, and tell of every run."""
    due = [state.number for state in states if state.due]
    found = dict(zip(due, evaluate(due), strict=True)) if due else {}
    for state in states:
        scores = found.get(state.number)
        best = scores is not None and _judge(state, scores)
        step, total, tokens = state.step, state.steps.total, sum(len(row.ids) for row in state.batch)
        report = Report(step, total, state.loss, state.rate, state.norm, tokens, state.seconds, scores, best)
        watch(state.number, report)


def _judge(state: State, scores: Scores) -> bool:
    """Keep the method's state if it validates better than the best so far."""
    select = state.run.config.select
    better = state.scores is None or merit(scores, select) > merit(state.scores, select)
    if better:
        state.best.clear()  # it may be a whole model: free the old one first
        state.best = {name: t.detach().clone() for name, t in state.run.method.state().items()}
        state.scores, state.best_step = scores, state.step
    state.stale = 0 if better else state.stale + 1
    return better


def merit(scores: Scores, select: str) -> tuple[float, ...]:
    """Higher is better: accuracy where there are labels, ties by loss; else the loss alone."""
    nll = -scores.nll if math.isfinite(scores.nll) else -math.inf
    return (nll,) if select == "nll" or scores.accuracy is None else (scores.accuracy, nll)


def _going_on(states: Sequence[State]) -> list[State]:
    """The runs that have not ended; those that have are saved and left in their best state."""
    for state in states:
        if state.ended or state.step % state.run.config.checkpoint_every == 0:
            state.save()
        if state.ended:
            state.leave()
    return [state for state in states if not state.ended]
