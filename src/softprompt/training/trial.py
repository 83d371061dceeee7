"""One run of a job on disk, its settings, folder and validations, and several of them through the loop.

It knows jobs, the loop and files; it does not choose among runs, nor save what they learnt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from softprompt.atomic import plain_disk_errors, write_bytes
from softprompt.base.model import Base
from softprompt.config import Config, dump_toml
from softprompt.errors import TrainingError
from softprompt.evaluation.score import Scores
from softprompt.listener import Listener, Report
from softprompt.team import ALONE, Team
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.job import Job
from softprompt.training.log import RunLog
from softprompt.training.loop import Outcome, TrainingRun, fit_many, selection_score
from softprompt.training.saving import refuse_unsaveable
from softprompt.training.trackers import Trackers

__all__ = ["EvalRecord", "TrialRun", "changes_in_words", "fit_trials", "identities"]

_CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class EvalRecord:
    """One validation: after which step, of how many, and what it found."""

    step: int
    total: int
    scores: Scores


@dataclass(eq=False)
class TrialRun:
    """One run of a job and where it stands.

    Attributes:
        base: the frozen model.
        config: all its settings.
        folder: of its settings, log and checkpoint.
        changes: what it changes of the settings a search began with, by dotted name.
        evals: its validations, the start's first.
        outcome: how its training ended, or was last paused.
        dropped: whether others validated better and it was given up.
        team: the processes that train it together; the leader alone touches the folder.
    """

    base: Base
    config: Config
    folder: Path
    changes: Mapping[str, Any] = field(default_factory=dict)
    evals: list[EvalRecord] = field(default_factory=list)
    outcome: Outcome | None = None
    dropped: bool = False
    team: Team = ALONE
    _job: Job | None = None

    @property
    def job(self) -> Job:
        """Prepared when it is asked for; after ``release`` anew, with what it had learnt, if anything."""
        if self._job is None:
            self._job = Job.prepare(self.base, self.config, team=self.team)
            if self.outcome is None:
                refuse_unsaveable(self._job)
            elif self.outcome.best_step:
                saved = Checkpoint.of(self.checkpoint, self._job.identity, self.team)
                assert saved is not None
                self._job.method.load_state(saved.tensors["best"])
        return self._job

    def release(self) -> None:
        """Let go of rows and method, which may be a whole model."""
        self._job = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / _CHECKPOINT

    @property
    def running(self) -> bool:
        """Whether it has not come to an end of its own."""
        return self.outcome is None or self.outcome.ended == "interrupted"

    @property
    def ended(self) -> str:
        """How it ended: as training tells, or "dropped" when others validated better."""
        if self.outcome is not None and not self.running:
            return self.outcome.ended
        if self.evals[-1].step == self.evals[-1].total:
            return "done"
        return "dropped" if self.dropped else "interrupted"

    @property
    def error(self) -> str:
        """What went wrong, if it diverged."""
        assert self.outcome is not None
        return self.outcome.error if self.outcome.ended == "diverged" else ""

    @property
    def selection_scores(self) -> list[tuple[float, ...]]:
        """Of each validation: higher is better."""
        return [selection_score(one.scores, self.config.train.select) for one in self.evals]

    @property
    def best_eval(self) -> EvalRecord:
        """The validation whose state is kept: the best, of equals the first."""
        return self.evals[max(range(len(self.evals)), key=self.selection_scores.__getitem__)]

    def saved_step(self) -> int | None:
        """The step its checkpoint stands at, if there is one."""
        return int(Checkpoint.load(self.checkpoint).numbers["step"]) if self.checkpoint.exists() else None

    def refuse_another(self) -> None:
        """Say so if the checkpoint in its folder belongs to another run, before anything is written there.

        Raises:
            TrainingError: it does, or it is damaged.
        """
        if self.team.leads and self.checkpoint.exists():
            Checkpoint.refuse_another(self.checkpoint, self.job.identity)

    def recall(self) -> None:
        """Take from the log the validations up to the checkpoint, if there was an earlier part."""
        found = self.team.told([vars(one) | {"scores": one.scores.to_json()} for one in self._logged()])
        self.evals = [EvalRecord(**one | {"scores": Scores.from_json(one["scores"])}) for one in found]

    def _logged(self) -> list[EvalRecord]:
        step, log = self.saved_step() if self.team.leads else None, self.folder / "log.jsonl"
        if step is None:
            return []
        try:
            lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            records = {  # by step: a machine that was given up may have written a line after it was
                int(line["step"]): EvalRecord(
                    int(line["step"]), int(line["total"]), Scores.from_json(line["scores"])
                )
                for line in lines
                if "scores" in line
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{log} is not a log that can be gone on with; start again without --resume."
            ) from error
        return [records[one] for one in sorted(records) if one <= step]

    def open(self, resume: bool) -> RunLog | None:
        """Its folder with its settings, and its log, which goes on where the checkpoint stands.

        Of a team the leader has them, the others none.
        """
        if not self.team.leads:
            self.recall()
            return None
        with plain_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / "config.toml", dump_toml(self.config).encode())
        done = self.saved_step() if resume else None
        names = self.config.train.report_to
        settings = self.config.model_dump(mode="json")
        trackers = Trackers(names, self.config.name, self.folder, settings) if names else None
        board = self.config.output.tensorboard
        log = RunLog(self.folder, tensorboard=board, trackers=trackers, keep_to=done)
        self.recall()
        return log

    def run(self, log: RunLog | None, listener: Listener) -> TrainingRun:
        """The run as the loop takes it; every report is logged, then told."""

        def told(report: Report) -> None:
            if log is not None:
                log.write(report)
            if report.scores is not None:
                self.evals.append(EvalRecord(report.step, report.total, report.scores))
            listener.step(report)

        job, config = self.job, self.config
        rows = job.rows
        heard = replace(listener, step=told)
        return TrainingRun(job.method, rows, config.train, config.seed, self.checkpoint, job.identity, heard)


def identities(folder: Path) -> set[str]:
    """The identities of all runs that have a checkpoint in a folder, or below it.

    Raises:
        TrainingError: one of the checkpoints is damaged.
    """
    return {Checkpoint.identity_of(path) for path in folder.rglob(_CHECKPOINT)}


def changes_in_words(changes: Mapping[str, Any]) -> str:
    """What a trial changes, on one line: ``learning_rate 0.03 and front {soft:10}``."""
    said = (f"{dotted.rpartition('.')[2]} {value}" for dotted, value in changes.items())
    return " and ".join(" ".join(text.split()) for text in said)


def fit_trials(trials: Sequence[TrialRun], listeners: Sequence[Listener], *, resume: bool) -> None:
    """Train all at once, as if each were alone; each gets its outcome and is left at its best.

    Args:
        trials: in any state; one that has ended does nothing.
        listeners: one a trial; told of its every step, after it was logged, and asked whether to end or
            pause it now.
        resume: each goes on from its checkpoint, if there is one.
    """
    jobs = [trial.job for trial in trials]  # every fault of rows and settings shows before a file is made
    team = trials[0].team if trials else ALONE
    team.refuse_unlike([job.identity for job in jobs], "other settings, rows or another base")
    for trial in trials if resume else ():
        trial.refuse_another()

    def evaluate(numbers: Sequence[int]) -> list[Scores]:
        return [jobs[n].score("validation", listeners[n].counting("validation")) for n in numbers]

    with ExitStack() as until_ended:
        logs = [trial.open(resume) for trial in trials]
        for log in logs:
            if log is not None:
                until_ended.enter_context(closing(log))
        runs = [trial.run(log, heard) for trial, log, heard in zip(trials, logs, listeners, strict=True)]
        outcomes = fit_many(runs, evaluate, resume=resume, team=team)
    for trial, outcome in zip(trials, outcomes, strict=True):
        trial.outcome = outcome
