"""The one training loop: steps, validation, checkpoints, and a way back when a loss runs away.

It takes any number of runs through one base together, each as if it were alone. It knows methods,
token rows and a scorer; it does not know which methods, nor files of data or screens.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from softprompt.base.model import Base, Batch, scorable
from softprompt.base.packing import TokenRow, split
from softprompt.config import TrainConfig
from softprompt.evaluation.score import Scores
from softprompt.listener import SILENT, Listener, Report
from softprompt.methods.method import Method
from softprompt.team import ALONE, Team
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.optimizer import build_optimizer, optimizer_state, restore_optimizer
from softprompt.training.schedule import Steps, rate

__all__ = ["Outcome", "Report", "TrainingRun", "fit", "fit_many", "selection_score"]

RUNAWAY_STEPS = 10
"""So many losses in a row, each worse than the first and than a blind guess among V words: divergence."""

PASS_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Positions read in one pass, unless a single batch has more. A CPU is at its best from 500 to 1,200 in
fp32 and to 2,400 in bf16, and slower by a sixth to a third at 4,400; the figure for CUDA is not measured."""

Evaluate = Callable[[Sequence[int]], Sequence[Scores]]


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """One prompt to be trained.

    Attributes:
        method: changed in place.
        rows: training rows; their scored tokens make the loss.
        config: rates, sizes, patience.
        seed: fixes the order of the rows.
        checkpoint: the file its state is kept in, if any.
        identity: names configuration, data and base; a checkpoint of another identity is refused.
        listener: told of every step, and asked after it whether to end now, keeping the best so far.
    """

    method: Method
    rows: Sequence[TokenRow]
    config: TrainConfig
    seed: int
    checkpoint: Path | None = None
    identity: str = ""
    listener: Listener = SILENT


@dataclass(frozen=True)
class Outcome:
    """How training ended; the method is left in its best state.

    Attributes:
        steps: steps taken.
        best_step: the step whose state was kept; 0 is the start.
        best: the validation scores of that state.
        ended: ``"done"``, ``"early"`` (no gain for long), ``"interrupted"`` or ``"diverged"``.
        seconds: on the clock until it ended, earlier parts of a resumed run included.
        error: what went wrong, in a sentence, if it diverged.
    """

    steps: int
    best_step: int
    best: Scores
    ended: str
    seconds: float
    error: str = ""


def fit(run: TrainingRun, evaluate: Callable[[], Scores], *, resume: bool = False) -> Outcome:
    """Train one run and leave its method in the state that validates best.

    Args:
        run: what to train.
        evaluate: scores of the method as it stands, on rows it is not trained on.
        resume: go on from the checkpoint if there is one; on a CPU to bit-identical parameters.

    Raises:
        TrainingError: the checkpoint is damaged or belongs to another run.
    """
    return fit_many([run], lambda _: [evaluate()], resume=resume)[0]


def fit_many(
    runs: Sequence[TrainingRun],
    evaluate: Evaluate,
    *,
    resume: bool = False,
    pass_tokens: int | None = None,
    team: Team = ALONE,
) -> list[Outcome]:
    """Train every run at once, to what it would have learnt alone, and leave each at its best.

    Runs whose methods share a base are read in the same passes. They share nothing else: each has
    its own loss, clipping, rate, patience and end, and leaves the others running.

    Args:
        runs: what to train; no two may share a parameter.
        evaluate: numbers of runs -> the scores of their methods as they stand.
        resume: each goes on from its checkpoint if there is one, wherever that stands.
        pass_tokens: the most positions read in one pass, unless one run's (micro-)batch has more;
            bounds memory, changes no result. None for what suits the device.
        team: the processes that train these very runs together. Each reads its share of every batch,
            gradients are added up, and all take the same step; the leader keeps the checkpoints.
            ``evaluate`` has to give all of them the same scores.

    Raises:
        TrainingError: a checkpoint is damaged or belongs to another run.
    """
    states = [_State(number, run, team) for number, run in enumerate(runs)]
    for state in states:
        team.hand(state.run.method.trainable_parameters())
        if resume:
            state.restore()
    _report([state for state in states if state.scores is None], evaluate)  # the start is a candidate, too
    running = _running(states)
    while running:
        _backward(running, pass_tokens, team)
        _add_up(running, team)
        stepped = [state for state in running if _step(state)]
        _report(stepped, evaluate)
        asked = team.any([state.run.listener.stop() for state in stepped])
        for state, stop in zip(stepped, asked, strict=True):
            state.stopped = stop
        running = _running(running)
    return [state.outcome() for state in states]


def _backward(states: Sequence[_State], pass_tokens: int | None, team: Team) -> None:
    """The gradient of every run's mean loss over its next batch, batches of one base read together.

    Of a team each process reads its share; its gradient and loss are then its part of the whole.
    """
    for state in states:
        state.batch = [state.run.rows[i] for i in state.steps.batch(state.step)]
        state.loss = 0.0
        state.optimizer.zero_grad()
    for part in range(max(state.run.config.accumulation for state in states)):
        by_base: dict[int, list[tuple[_State, Batch]]] = defaultdict(list)
        for state in states:
            method, parts = state.run.method, state.run.config.accumulation
            if part < parts and (rows := team.share(state.batch[part::parts], lambda row: len(row.ids))):
                by_base[id(method.base)].append((state, Batch(rows, method.front())))
        for reads in by_base.values():
            base = reads[0][0].run.method.base
            most = pass_tokens or PASS_TOKENS.get(base.device.type, PASS_TOKENS["cpu"])
            for numbers in split([batch.positions for _, batch in reads], most):
                _read(base, [reads[number] for number in numbers])


def _read(base: Base, together: Sequence[tuple[_State, Batch]]) -> None:
    """One pass forward and back; no parameter belongs to two runs, so no gradients mix."""
    again = any(state.run.config.recompute for state, _ in together)
    found = base.nll_many([batch for _, batch in together], recompute=again)
    shares = []
    for (state, batch), losses in zip(together, found, strict=True):
        # The mean is over the tokens of the whole batch, of which this may be a part; none count as one.
        scored = sum(row.scored for row in scorable(Batch(state.batch, batch.front)))
        shares.append(losses.nll.sum() / max(1, scored))
    torch.autograd.backward(shares)
    for (state, _), share in zip(together, torch.stack(shares).tolist(), strict=True):
        state.loss += share


def _add_up(states: Sequence[_State], team: Team) -> None:
    """Gradients and losses of the whole batch, from the parts that each process of a team has."""
    if team.count == 1:
        return
    sent: list[Tensor] = []
    parts: list[Tensor] = []
    for state in states:
        learnt = state.run.method.trainable_parameters()
        # Beside each gradient goes whether there is one: what nobody has, an optimizer must not decay.
        there = [float(p.grad is not None) for p in learnt]
        parts.append(torch.tensor([*there, state.loss], device=learnt[0].device))
        for parameter in learnt:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            sent.append(parameter.grad)
    team.add([*sent, *parts])
    for state, summed in zip(states, parts, strict=True):
        *there, state.loss = summed.tolist()
        for parameter, some in zip(state.run.method.trainable_parameters(), there, strict=True):
            if not some:
                parameter.grad = None


def _step(state: _State) -> bool:
    """Clip and learn, unless loss or gradient are bad: then nothing is touched, and the run has ended."""
    run, config = state.run, state.run.config
    clipped = torch.nn.utils.clip_grad_norm_(run.method.trainable_parameters(), config.clip or math.inf)
    state.norm = float(clipped)
    if state.step == 0:
        state.limit = max(state.loss, math.log(run.method.base.embedding.weight.shape[0]))
    state.runaway = state.runaway + 1 if state.loss > state.limit else 0
    if not (math.isfinite(state.loss) and math.isfinite(state.norm)):
        state.diverge(f"the loss is {state.loss} and its gradient {state.norm}")
        return False
    if state.runaway >= RUNAWAY_STEPS:
        state.diverge(f"the loss stayed above {state.limit:.1f}")
        return False
    state.rate = config.learning_rate * rate(config.schedule, state.step, state.steps.total, config.warmup)
    for group in state.optimizer.param_groups:
        group["lr"] = state.rate
    state.optimizer.step()
    state.step += 1
    return True


def _report(states: Sequence[_State], evaluate: Evaluate) -> None:
    """Validate the runs that are due, together, and tell of every run."""
    due = [state.number for state in states if state.due]
    found = dict(zip(due, evaluate(due), strict=True)) if due else {}
    for state in states:
        scores = found.get(state.number)
        report = Report(
            step=state.step,
            total=state.steps.total,
            loss=state.loss,
            learning_rate=state.rate,
            gradient_norm=state.norm,
            tokens=sum(len(row.ids) for row in state.batch),
            seconds=state.seconds,
            scores=scores,
            best=scores is not None and state.judge(scores),
        )
        state.run.listener.step(report)


def _running(states: Sequence[_State]) -> list[_State]:
    """The runs that have not ended; those that have are saved and left in their best state."""
    for state in states:
        if state.ended or state.step % state.run.config.checkpoint_every == 0:
            state.save()
        if state.ended:
            state.leave()
    return [state for state in states if not state.ended]


def selection_score(scores: Scores, select: str) -> tuple[float, ...]:
    """Higher is better: accuracy where there are labels, ties by loss; else the loss alone."""
    nll = -scores.nll if math.isfinite(scores.nll) else -math.inf
    return (nll,) if select == "nll" or scores.accuracy is None else (scores.accuracy, nll)


class _State:
    """All that changes while a run goes on, and how it is kept on disk.

    ``scores`` and ``best`` are those of ``best_step``; ``stale`` counts evaluations without gain
    since, ``runaway`` losses above ``limit`` in a row; ``saved`` is the step of the checkpoint.
    """

    COUNTS = ("step", "best_step", "stale", "runaway")

    def __init__(self, number: int, run: TrainingRun, team: Team) -> None:
        self.number, self.run, self.team, config = number, run, team, run.config
        learnt = run.method.trainable_parameters()
        epochs = config.epochs if learnt else 0
        self.steps = Steps(
            len(run.rows), config.batch_size, epochs, run.seed, config.max_steps, config.min_steps
        )
        self.optimizer = build_optimizer(learnt, config)
        self.step = self.best_step = self.stale = self.runaway = self.saved = 0
        self.scores: Scores | None = None
        self.best: dict[str, Tensor] = {}
        self.limit = math.inf
        self.before, self.started, self.took = 0.0, time.monotonic(), 0.0
        self.batch: list[TokenRow] = []
        self.loss, self.norm, self.rate = math.nan, 0.0, 0.0
        self.error, self.stopped = "", False

    @property
    def seconds(self) -> float:
        """On the clock since the run began, earlier parts included."""
        return self.before + time.monotonic() - self.started

    @property
    def due(self) -> bool:
        """Whether this step ends with an evaluation; the start and the last one always do."""
        every = self.run.config.evaluate_every or self.steps.per_epoch
        return self.step == self.steps.total or self.step % every == 0

    @property
    def ended(self) -> str:
        """How the run has ended, if it has."""
        if self.error:
            return "diverged"
        if self.run.config.patience is not None and self.stale >= self.run.config.patience:
            return "early"
        if self.step >= self.steps.total:
            return "done"
        return "interrupted" if self.stopped else ""

    def diverge(self, what: str) -> None:
        """End with what went wrong in the step that was not taken."""
        self.error = f"Training diverged at step {self.step + 1}: {what}; lower train.learning_rate."

    def judge(self, scores: Scores) -> bool:
        """Keep the method's state if it validates better than the best so far, and say whether it does."""
        select = self.run.config.select
        better = self.scores is None or selection_score(scores, select) > selection_score(self.scores, select)
        if better:
            self.best.clear()  # it may be a whole model: free the old one first
            self.best = {name: t.detach().clone() for name, t in self.run.method.state().items()}
            self.scores, self.best_step = scores, self.step
        self.stale = 0 if better else self.stale + 1
        return better

    def save(self) -> None:
        """Write the checkpoint, unless it already stands at this step."""
        if self.run.checkpoint is None or self.saved == self.step or not self.team.leads:
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
        saved = None if path is None else Checkpoint.of(path, self.run.identity, self.team)
        if saved is None:
            return
        self.run.method.load_state(saved.tensors["now"])
        restore_optimizer(self.optimizer, saved.tensors["optimizer"])
        self.best = saved.tensors["best"]
        for name in self.COUNTS:
            setattr(self, name, int(saved.numbers[name]))
        self.scores = Scores.from_json(saved.numbers["scores"])
        self.limit, self.before = float(saved.numbers["limit"]), float(saved.numbers["seconds"])
        self.saved = self.step

    def leave(self) -> None:
        """End: the method goes to its best state, and the clock stops."""
        self.run.method.load_state(self.best)
        self.took = self.seconds

    def outcome(self) -> Outcome:
        """What came of a run that has ended."""
        assert self.scores is not None
        return Outcome(self.step, self.best_step, self.scores, self.ended, self.took, self.error)
