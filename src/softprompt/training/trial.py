"""One run of a job on disk, its settings, folder and validations, and several of them through the loop.

It knows jobs, the loop and files; it does not choose among runs, nor keep what they learnt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from softprompt.atomic import plain_disk_errors, write_bytes
from softprompt.base.model import Base
from softprompt.config import Config, dump_toml
from softprompt.errors import TrainingError
from softprompt.evaluation.score import Scores, target_rows
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.job import Job
from softprompt.training.log import Diary
from softprompt.training.loop import Outcome, Report, Run, fit_many
from softprompt.training.loop import merit as merit_of

__all__ = ["Mark", "Trial", "changes_in_words", "fit_trials", "identities"]

_CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Mark:
    """One validation: after which step, of how many, and what it found."""

    step: int
    total: int
    scores: Scores


@dataclass(eq=False)
class Trial:
    """One run of a job and where it stands.

    Attributes:
        base: the frozen model.
        config: all its settings.
        folder: of its settings, log and checkpoint.
        changes: what it changes of the settings a search began with, by dotted name.
        marks: its validations, the start's first.
        outcome: how its training ended, or was last paused.
        dropped: whether others validated better and it was given up.
        validated: whether its last step ended with a validation.
    """

    base: Base
    config: Config
    folder: Path
    changes: Mapping[str, Any] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    outcome: Outcome | None = None
    dropped: bool = False
    validated: bool = False
    _job: Job | None = None

    @property
    def job(self) -> Job:
        """Prepared when it is asked for; after ``release`` anew, with what it had learnt, if anything."""
        if self._job is None:
            self._job = Job.prepare(self.base, self.config)
            if self.outcome is not None and self.outcome.best_step:
                self._job.method.load_state(Checkpoint.load(self.checkpoint).tensors["best"])
        return self._job

    @property
    def checkpoint(self) -> Path:
        return self.folder / _CHECKPOINT

    @property
    def going(self) -> bool:
        """Whether it has not come to an end of its own."""
        return self.outcome is None or self.outcome.ended == "interrupted"

    @property
    def ended(self) -> str:
        """How it ended: as training tells, or "dropped" when others validated better."""
        if self.outcome is not None and not self.going:
            return self.outcome.ended
        if self.marks[-1].step == self.marks[-1].total:
            return "done"
        return "dropped" if self.dropped else "interrupted"

    @property
    def merits(self) -> list[tuple[float, ...]]:
        """Of each validation: higher is better."""
        return [merit_of(mark.scores, self.config.train.select) for mark in self.marks]

    @property
    def best_mark(self) -> Mark:
        """The validation whose state is kept: the best, of equals the first."""
        return self.marks[max(range(len(self.marks)), key=self.merits.__getitem__)]

    def release(self) -> None:
        """Let go of rows and method, which may be a whole model."""
        self._job = None

    def recall(self) -> None:
        """Take from the log the validations up to the checkpoint, if there was an earlier part."""
        step = self._saved_step()
        log = self.folder / "log.jsonl"
        self.marks = [] if step is None else [mark for mark in _marks(log) if mark.step <= step]

    def refuse_another(self) -> None:
        """Say so if the checkpoint in its folder belongs to another run, before anything is written there.

        Raises:
            TrainingError: it does, or it is damaged.
        """
        if self.checkpoint.exists():
            Checkpoint.refuse_another(self.checkpoint, self.job.identity)

    def run(self) -> Run:
        """The run as the loop takes it."""
        job = self.job
        rows = target_rows(job.encoded["train"].examples, whole_text=self.config.data.loss_on == "text")
        return Run(job.method, rows, self.config.train, self.config.seed, self.checkpoint, job.identity)

    def open(self, resume: bool) -> Diary:
        """Its folder with its settings, and its diary, which goes on where the checkpoint stands."""
        with plain_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / "config.toml", dump_toml(self.config).encode())
        done = self._saved_step() if resume else None
        diary = Diary(self.folder, tensorboard=self.config.output.tensorboard, keep_to=done)
        self.recall()
        return diary

    def note(self, report: Report) -> None:
        """Remember a validation."""
        self.validated = report.scores is not None
        if report.scores is not None:
            self.marks.append(Mark(report.step, report.total, report.scores))

    def _saved_step(self) -> int | None:
        return int(Checkpoint.load(self.checkpoint).numbers["step"]) if self.checkpoint.exists() else None


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


def fit_trials(
    trials: Sequence[Trial],
    *,
    resume: bool,
    watch: Callable[[Trial, Report], None],
    progress: Callable[[str, int, int], None],
    stop: Callable[[Trial], bool],
) -> None:
    """Train all at once, as if each were alone; each gets its outcome and is left at its best.

    Args:
        trials: in any state; one that has ended does nothing.
        resume: each goes on from its checkpoint, if there is one.
        watch: told of every step, after it was logged.
        progress: told (split, rows done, rows) while a split is scored.
        stop: asked after a trial's every step whether to end or pause it now.
    """
    runs = [trial.run() for trial in trials]  # every fault of rows and settings shows before a file is made
    for trial in trials if resume else ():
        trial.refuse_another()
    with ExitStack() as until_ended:
        diaries = [until_ended.enter_context(closing(trial.open(resume))) for trial in trials]

        def told(number: int, report: Report) -> None:
            diaries[number].write(report)
            trials[number].note(report)
            watch(trials[number], report)

        def evaluate(numbers: Sequence[int]) -> list[Scores]:
            told_rows = partial(progress, "validation")
            return [trials[number].job.score("validation", told_rows) for number in numbers]

        outcomes = fit_many(
            runs, evaluate, resume=resume, watch=told, stop=lambda number: stop(trials[number])
        )
    for trial, outcome in zip(trials, outcomes, strict=True):
        trial.outcome = outcome


def _marks(log: Path) -> list[Mark]:
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        return [
            Mark(int(line["step"]), int(line["total"]), Scores.from_json(line["scores"]))
            for line in lines
            if "scores" in line
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{log} is not a log that can be gone on with; start again without --resume."
        ) from error
