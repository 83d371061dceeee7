"""Successive halving on validation, then the chosen settings on every seed, through one frozen base.

It knows trials and their validations; it reads no test rows and keeps no artifacts. Where runs are carried
out it is told (``Carry``): here, side by side, or each on some other machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from softprompt.base.model import Base
from softprompt.config import Config, SearchConfig, candidates
from softprompt.evaluation.score import Scores
from softprompt.listener import Listener, Report
from softprompt.team import ALONE, Team
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.loop import Outcome, selection_score
from softprompt.training.trial import EvalRecord, TrialRun, changes_in_words, fit_trials

__all__ = [
    "Carry",
    "Combined",
    "RunOrder",
    "RunState",
    "Search",
    "SearchOutcome",
    "Spread",
    "carried",
    "ranking",
    "survivors",
]


class RunOrder(NamedTuple):
    """A run that is to go on from its checkpoint, or to begin: plain values, which may travel.

    Attributes:
        config: all its settings.
        folder: of its log and checkpoint.
        validations: how many it is to have, the start's among them; None for as many as come to its end.
    """

    config: Config
    folder: Path
    validations: int | None = None


class RunState(NamedTuple):
    """Where a run stands.

    Attributes:
        evals: its validations, the start's first.
        outcome: how its training ended, or was paused.
    """

    evals: list[EvalRecord]
    outcome: Outcome


Carry = Callable[[list[RunOrder]], Sequence[RunState | None]]
"""Carries runs out elsewhere, in any order; gives where each stands, None for one that was asked to end
before it had begun."""

Spread = Callable[[Base, Config, Listener], AbstractContextManager[Carry]]
"""Begins to carry out the runs of a search elsewhere; what it began ends with the block. The listener is told
of steps, each of the run that ``Report.run`` names by the last part of its folder."""


def carried(base: Base, order: RunOrder, listener: Listener) -> RunState:
    """One run trained as it was ordered; what was done before is not done again."""
    trial = TrialRun(base, order.config, order.folder)
    trial.recall()
    wanted = math.inf if order.validations is None else order.validations

    def stop() -> bool:
        return listener.stop() or len(trial.evals) >= wanted

    if len(trial.evals) < wanted:
        fit_trials([trial], [replace(listener, stop=stop)], resume=True)
        assert trial.outcome is not None
        return RunState(trial.evals, trial.outcome)
    at = Checkpoint.load(trial.checkpoint).numbers  # whoever came so far died before it could say so
    best = Scores.from_json(at["scores"])
    return RunState(trial.evals, Outcome(at["step"], at["best_step"], best, "interrupted", at["seconds"]))


@dataclass(frozen=True)
class SearchOutcome:
    """What a search came to.

    Attributes:
        tried: every candidate, in the order of the grid.
        chosen: the one that validated best.
        learnt: its settings on every seed, the first seed's, which is the candidate itself, first.
        stopped: whether the search was asked to end before it was through.
    """

    tried: Sequence[TrialRun]
    chosen: TrialRun
    learnt: Sequence[TrialRun]
    stopped: bool


def ranking(trial: TrialRun, validation: int | None = None) -> tuple[Any, ...]:
    """Higher is better: the best validation so far, for that state is kept; ties by the latest.

    Args:
        trial: one that diverged is worse than any that did not.
        validation: look only at so many validations after the start's; None for all.
    """
    found = trial.selection_scores if validation is None else trial.selection_scores[: validation + 1]
    sound = trial.outcome is None or trial.outcome.ended != "diverged"
    return sound, max(found, default=()), found[-1] if found else ()


def survivors(trials: Sequence[TrialRun], validation: int, halving: int) -> list[TrialRun]:
    """The best ``1 / halving`` of the trials after a validation, rounded up; of equals the first.

    Successive halving: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and
    Hyperparameter Optimization".
    """
    ranked = sorted(trials, key=lambda trial: ranking(trial, validation), reverse=True)
    best = ranked[: math.ceil(len(ranked) / halving)]
    return [trial for trial in trials if trial in best]


class Search:
    """Chooses among the candidates of a configuration on its first seed, and learns the chosen one on all.

    Candidates train together: as many at once as learn no more numbers than the base has, so prompts
    share its passes and whole models come one after another. After each validation the better part goes
    on. Checkpoints that lie in the folder are gone on from; who was given up follows from the logs.

    Args:
        base: the frozen model.
        config: with a search.
        folder: each run gets a folder in it.
        listener: told of every step of all runs as if they were one.
        team: the processes that train every run together.
    """

    def __init__(
        self, base: Base, config: Config, folder: Path, listener: Listener, team: Team = ALONE
    ) -> None:
        self._base, self._config, self._folder, self._listener = base, config, folder, listener
        self._team = team
        self._asked = False
        self._carry: Carry | None = None
        first, *more = config.seeds
        update: dict[str, Any] = {"seed": first}
        if more and config.data.draw is None:  # all seeds see the same rows
            update["data"] = config.data.model_copy(update={"draw": first})
        found = candidates(config)
        self.tried = []
        for number, (changes, wanted) in enumerate(found, start=1):
            name = f"trial-{number}" if len(found) > 1 else f"seed-{first}"
            copied = wanted.model_copy(update=update)
            self.tried.append(TrialRun(base, copied, folder / name, changes, team=team))
        # Runs that are held at the same time learn, with what their optimizers keep, no more than the base.
        learnt = sum(p.numel() for p in self.tried[0].job.method.trainable_parameters())
        held = sum(int(p.numel()) for p in base.model.parameters())
        self._together = max(1, held // max(1, learnt))
        runs = len(self.tried) + len(config.seeds) - 1
        self._combined = Combined(listener.step, runs, config.train.select)

    @property
    def heard(self) -> Listener:
        """To be told, and to tell, of runs that are carried out elsewhere."""

        def step(report: Report) -> None:
            self._combined.add(report.run, report)
            self._combined.flush()

        return replace(self._listener, step=step, stop=self._stop)

    def run(self, carry: Carry | None = None) -> SearchOutcome:
        """Go through with it; ``carry``: where runs are carried out, here if it is not given.

        Raises:
            KeyboardInterrupt: it was asked to end before any run had begun.
        """
        self._carry = carry
        for trial in self.tried:
            trial.recall()
        chosen = self.tried[0] if len(self.tried) == 1 else self._choose()
        if self._asked and any(trial.running and not trial.dropped for trial in self.tried):
            return SearchOutcome(self.tried, chosen, [chosen], stopped=True)
        learnt = [chosen]
        for seed in self._config.seeds[1:]:
            config = chosen.config.model_copy(update={"seed": seed})
            learnt.append(TrialRun(self._base, config, self._folder / f"seed-{seed}", team=self._team))
        running = [trial for trial in learnt if trial.running]
        if running:
            seeds = ", ".join(str(trial.config.seed) for trial in running)
            self._listener.note(f"Learning on seed{'s' * (len(running) > 1)} {seeds}.")
        self._fit(running)
        begun = [trial for trial in learnt if trial.outcome is not None]
        return SearchOutcome(self.tried, chosen, begun, stopped=any(trial.running for trial in learnt))

    def _choose(self) -> TrialRun:
        """Round after round, the better part goes on to the next validation; the last one to its end."""
        halving = (self._config.search or SearchConfig()).halving
        self._listener.note(f"Trying {len(self.tried)} candidates on seed {self._config.seeds[0]}.")
        alive, validation = self.tried, 0
        while halving > 1 and len(alive) > 1:
            validation += 1
            due = [trial for trial in alive if trial.running and len(trial.evals) <= validation]
            self._fit(due, validations=validation + 1)
            if self._asked or all(len(trial.evals) <= validation for trial in alive):
                break
            best = survivors(alive, validation, halving)
            gone = [trial for trial in alive if trial not in best]
            for trial in gone:
                trial.dropped = True
                trial.release()
                self._combined.retire(trial.folder.name)
            kept, dropped = (", ".join(map(_in_words, group)) for group in (best, gone))
            self._listener.note(f"Validation {validation}: kept {kept}; dropped {dropped}.")
            alive = best
        self._fit([trial for trial in alive if trial.running])
        chosen = max((trial for trial in alive if trial.outcome is not None), key=ranking)
        if not self._asked:
            self._listener.note(f"Chosen: {_in_words(chosen)}.")
        return chosen

    def _fit(self, trials: Sequence[TrialRun], *, validations: int | None = None) -> None:
        """Train to the end, or until each has so many validations, the start's among them."""
        if self._asked or not trials:
            return
        if self._carry is None:
            self._fit_here(trials, math.inf if validations is None else validations)
        else:
            found = self._carry([RunOrder(trial.config, trial.folder, validations) for trial in trials])
            for trial, state in zip(trials, found, strict=True):
                trial.release()
                if state is not None:
                    trial.evals, trial.outcome = state
            self._retire(trials)
            if self._asked and all(trial.outcome is None for trial in (*self.tried, *trials)):
                raise KeyboardInterrupt

    def _fit_here(self, trials: Sequence[TrialRun], validations: float) -> None:
        """Train in groups that are held at the same time."""

        def stop(trial: TrialRun) -> bool:  # asked of each trial after all have taken a step
            self._combined.flush()
            return self._stop() or len(trial.evals) >= validations

        for start in range(0, len(trials), self._together):
            if self._asked:
                return
            group = trials[start : start + self._together]
            listeners = [
                replace(
                    self._listener,
                    step=partial(self._combined.add, trial.folder.name),
                    stop=partial(stop, trial),
                )
                for trial in group
            ]
            fit_trials(group, listeners, resume=True)
            self._retire(group)
            if len(trials) > len(group):
                for trial in group:
                    trial.release()

    def _retire(self, trials: Sequence[TrialRun]) -> None:
        for trial in trials:
            if not trial.running:
                self._combined.retire(trial.folder.name)

    def _stop(self) -> bool:
        self._asked = self._asked or self._listener.stop()
        return self._asked


def _in_words(trial: TrialRun) -> str:
    """A candidate in words, with its best validation: ``learning_rate 0.03 (84.0%)``."""
    scores = trial.best_eval.scores
    headline = f"loss {scores.nll:.3f}" if scores.accuracy is None else f"{scores.accuracy:.1%}"
    return f"{changes_in_words(trial.changes)} ({headline})"


class Combined:
    """Adds up the reports of runs that step side by side to those of one.

    Steps and tokens are sums, the loss is a mean; scores are those of the run that validates best at
    that moment, and are the best if none was better before.

    Args:
        step: told once for each step that was taken side by side.
        runs: how many are planned; those not heard of yet count as long as the longest one.
        select: which score of a validation counts.
    """

    def __init__(self, step: Callable[[Report], None], runs: int, select: str) -> None:
        self._step, self._planned, self._select = step, runs, select
        self._began = time.monotonic()
        self._last: dict[Hashable, Report] = {}
        self._retired: set[Hashable] = set()
        self._new: dict[Hashable, Report] = {}
        self._best: Scores | None = None

    def add(self, run: Hashable, report: Report) -> None:
        """Take note of one run's report."""
        before = self._new.get(run)
        tokens = report.tokens + (before.tokens if before is not None else 0)
        scores = report.scores or (before.scores if before is not None else None)
        self._new[run] = self._last[run] = replace(report, tokens=tokens, scores=scores)

    def retire(self, run: Hashable) -> None:
        """A run has ended or was given up: it takes no more steps than it has."""
        self._retired.add(run)

    def flush(self) -> None:
        """Pass on what was added since, if anything."""
        if not self._new:
            return
        reports, self._new = list(self._new.values()), {}
        scores, best = None, False
        if found := [report.scores for report in reports if report.scores is not None]:
            scores = max(found, key=self._worth)
            best = self._best is None or self._worth(scores) > self._worth(self._best)
            self._best = scores if best else self._best
        losses = [report.loss for report in reports if not math.isnan(report.loss)]
        taken = sum(r.step if run in self._retired else r.total for run, r in self._last.items())
        waiting = max(0, self._planned - len(self._last.keys() | self._retired))
        report = Report(
            step=sum(report.step for report in self._last.values()),
            total=taken + waiting * max(report.total for report in self._last.values()),
            loss=sum(losses) / len(losses) if losses else math.nan,
            learning_rate=max(report.learning_rate for report in reports),
            gradient_norm=max(report.gradient_norm for report in reports),
            tokens=sum(report.tokens for report in reports),
            seconds=time.monotonic() - self._began,
            scores=scores,
            best=best,
        )
        self._step(report)

    def _worth(self, scores: Scores) -> tuple[float, ...]:
        return selection_score(scores, self._select)
