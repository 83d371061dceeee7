"""Successive halving on validation, then the chosen settings on every seed, through one frozen base.

It knows trials and their validations; it reads no test rows and keeps no artifacts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from softprompt.base.model import Base
from softprompt.config import Config, SearchConfig, candidates
from softprompt.training.chorus import Chorus
from softprompt.training.loop import Report
from softprompt.training.trial import Trial, changes_in_words, fit_trials

__all__ = ["Found", "Search", "merit", "survivors"]


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        tried: every candidate, in the order of the grid.
        chosen: the one that validated best.
        learnt: its settings on every seed, the first seed's, which is the candidate itself, first.
        stopped: whether the search was asked to end before it was through.
    """

    tried: Sequence[Trial]
    chosen: Trial
    learnt: Sequence[Trial]
    stopped: bool


def merit(trial: Trial, validation: int | None = None) -> tuple[Any, ...]:
    """Higher is better: the best validation so far, for that state is kept; ties by the latest.

    Args:
        trial: one that diverged is worse than any that did not.
        validation: look only at so many validations after the start's; None for all.
    """
    found = trial.merits if validation is None else trial.merits[: validation + 1]
    sound = trial.outcome is None or trial.outcome.ended != "diverged"
    return sound, max(found, default=()), found[-1] if found else ()


def survivors(trials: Sequence[Trial], validation: int, halving: int) -> list[Trial]:
    """The best ``1 / halving`` of the trials after a validation, rounded up; of equals the first.

    Successive halving: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and
    Hyperparameter Optimization".
    """
    ranked = sorted(trials, key=lambda trial: merit(trial, validation), reverse=True)
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
        watch: told of every step of all runs as if they were one.
        progress: told (split, rows done, rows) while a split is scored.
        stop: asked after every step whether to end now.
        notify: told plain sentences.
    """

    def __init__(
        self,
        base: Base,
        config: Config,
        folder: Path,
        *,
        watch: Callable[[Report], None],
        progress: Callable[[str, int, int], None],
        stop: Callable[[], bool],
        notify: Callable[[str], None],
    ) -> None:
        self._base, self._config, self._folder = base, config, folder
        self._progress, self._stop, self._notify = progress, stop, notify
        self._asked = False
        self.tried = self._candidates()
        self._together = self._how_many_at_once()
        runs = len(self.tried) + len(config.seeds) - 1
        self._chorus = Chorus(watch, runs, config.train.select)

    def found(self) -> Found:
        """Go through with it."""
        for trial in self.tried:
            trial.recall()
        chosen = self.tried[0] if len(self.tried) == 1 else self._choose()
        if self._asked and any(trial.going and not trial.dropped for trial in self.tried):
            return Found(self.tried, chosen, [chosen], stopped=True)
        learnt = [chosen, *(self._on_seed(chosen, seed) for seed in self._config.seeds[1:])]
        going = [trial for trial in learnt if trial.going]
        if going:
            seeds = ", ".join(str(trial.config.seed) for trial in going)
            self._notify(f"Learning on seed{'s' * (len(going) > 1)} {seeds}.")
        self._fit(going)
        begun = [trial for trial in learnt if trial.outcome is not None]
        return Found(self.tried, chosen, begun, stopped=any(trial.going for trial in learnt))

    def _candidates(self) -> list[Trial]:
        first, *more = self._config.seeds
        found = candidates(self._config)
        update: dict[str, Any] = {"seed": first}
        if more and self._config.data.draw is None:  # all seeds see the same rows
            update["data"] = self._config.data.model_copy(update={"draw": first})
        alone = self._folder / f"seed-{first}"
        return [
            Trial(
                self._base,
                config.model_copy(update=update),
                self._folder / f"trial-{number}" if len(found) > 1 else alone,
                changes,
            )
            for number, (changes, config) in enumerate(found, start=1)
        ]

    def _on_seed(self, chosen: Trial, seed: int) -> Trial:
        config = chosen.config.model_copy(update={"seed": seed})
        return Trial(self._base, config, self._folder / f"seed-{seed}")

    def _how_many_at_once(self) -> int:
        """Runs that are held at the same time, with what their optimizers keep."""
        learnt = sum(p.numel() for p in self.tried[0].job.method.trainable_parameters())
        held = sum(int(p.numel()) for p in self._base.model.parameters())
        return max(1, held // max(1, learnt))

    def _choose(self) -> Trial:
        """Round after round, the better part goes on to the next validation; the last one to its end."""
        halving = (self._config.search or SearchConfig()).halving
        self._notify(f"Trying {len(self.tried)} candidates on seed {self._config.seeds[0]}.")
        alive, validation = self.tried, 0
        while halving > 1 and len(alive) > 1:
            validation += 1
            due = [trial for trial in alive if trial.going and len(trial.marks) <= validation]
            self._fit(due, to_validation=True)
            if self._asked or all(len(trial.marks) <= validation for trial in alive):
                break
            alive = self._halved(alive, validation, halving)
        self._fit([trial for trial in alive if trial.going])
        chosen = max((trial for trial in alive if trial.outcome is not None), key=merit)
        if not self._asked:
            self._notify(f"Chosen: {_said(chosen)}.")
        return chosen

    def _halved(self, alive: Sequence[Trial], validation: int, halving: int) -> list[Trial]:
        best = survivors(alive, validation, halving)
        gone = [trial for trial in alive if trial not in best]
        for trial in gone:
            trial.dropped = True
            trial.release()
            self._chorus.left(trial)
        kept, dropped = (", ".join(map(_said, group)) for group in (best, gone))
        self._notify(f"Validation {validation}: kept {kept}; dropped {dropped}.")
        return best

    def _fit(self, trials: Sequence[Trial], *, to_validation: bool = False) -> None:
        """Train to the end or to the next validation, in groups that are held at the same time."""
        for start in range(0, len(trials), self._together):
            if self._asked:
                return
            group = trials[start : start + self._together]
            fit_trials(
                group,
                resume=True,
                watch=self._chorus.heard,
                progress=self._progress,
                stop=partial(self._leaves, to_validation),
            )
            for trial in group:
                if not trial.going:
                    self._chorus.left(trial)
                if len(trials) > len(group):
                    trial.release()

    def _leaves(self, to_validation: bool, trial: Trial) -> bool:
        """Asked of each trial after all have taken a step."""
        self._chorus.tell()
        self._asked = self._asked or self._stop()
        return self._asked or (to_validation and trial.validated)


def _said(trial: Trial) -> str:
    """A candidate in words, with its best validation: ``learning_rate 0.03 (84.0%)``."""
    scores = trial.best_mark.scores
    headline = f"loss {scores.nll:.3f}" if scores.accuracy is None else f"{scores.accuracy:.1%}"
    return f"{changes_in_words(trial.changes)} ({headline})"
