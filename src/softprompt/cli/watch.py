"""How a training run looks while it goes on: a bar on a terminal, now and then a line elsewhere.

It knows the loop's reports, of one run or of many told of as one; it does not know methods or data.
"""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.table import Column

from softprompt.cli import screen
from softprompt.cli.scores import headline
from softprompt.listener import Report

__all__ = ["Bar", "Lines", "Pace", "watcher"]

EVERY = 10.0
"""Seconds between two plain lines, evaluations aside."""

_SMOOTH = 0.2
_NARROW = 60


class Pace:
    """How fast a run is and how long it has to go, from its reports."""

    def __init__(self) -> None:
        self.tokens_per_second = math.nan
        self.left = math.nan
        self._first: Report | None = None
        self._last: Report | None = None

    def add(self, report: Report) -> None:
        """Take note of one more step."""
        if self._first is None or self._last is None:
            self._first = self._last = report
            return
        took, steps = report.seconds - self._last.seconds, report.step - self._first.step
        if took > 0 and report.scores is None:  # a step that ends with an evaluation took longer
            speed = report.tokens / took
            before = speed if math.isnan(self.tokens_per_second) else self.tokens_per_second
            self.tokens_per_second = before + _SMOOTH * (speed - before)
        if steps > 0:
            each = (report.seconds - self._first.seconds) / steps
            self.left = each * (report.total - report.step)
        self._last = report


class _Watcher:
    """What both forms have in common: they are opened, told of steps, and closed."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.last: Report | None = None
        self.validation = self.best = ""

    def report(self, report: Report) -> None:
        """Show one step."""
        self.pace.add(report)
        self.last = report
        if report.scores is not None:
            self.validation = headline(report.scores.summary())
            self.best = self.validation if report.best else self.best
        self._show(report)

    @property
    def validated(self) -> str:
        """The latest validation, and the best where that is another."""
        best = f" (best {self.best})" if self.best not in ("", self.validation) else ""
        return f"validation {self.validation}{best}" if self.validation else ""

    def note(self, sentence: str) -> None:
        """Show a sentence of the library's."""
        screen.say(sentence)

    def progress(self, split: str, done: int, total: int) -> None:
        """Show how far the scoring of a split is."""

    def _show(self, report: Report) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Lines(_Watcher):
    """Plain lines: one for each evaluation, and between them at most one every ten seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._told = time.monotonic()

    def _show(self, report: Report) -> None:
        now = time.monotonic()
        if report.scores is None and now - self._told < EVERY:
            return
        self._told = now
        best = " (best so far)" if report.best and report.step else ""
        validation = f"validation {self.validation}{best}" if report.scores is not None else ""
        parts = [f"step {report.step}/{report.total}", validation, *_numbers(report, self.pace)]
        screen.say("  ".join(part for part in parts if part))


class Bar(_Watcher):
    """A bar that moves with the steps; before the first and after the last it only shows life."""

    def __init__(self) -> None:
        super().__init__()
        self._progress = Progress(
            *_columns(screen.err().width), console=screen.err(), transient=True, expand=True
        )
        self._task = self._progress.add_task("Starting", total=None, about="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, sentence: str) -> None:
        self._progress.console.print(screen.clean(sentence), soft_wrap=True)

    def progress(self, split: str, done: int, total: int) -> None:
        about = f"{done}/{total} {split} rows"
        if done == total and self.last is not None and self.last.step < self.last.total:
            self._show(self.last)
            return
        self._progress.update(self._task, description="Scoring", completed=done, total=total, about=about)

    def _show(self, report: Report) -> None:
        if report.step >= report.total:  # what is left is to score the test rows and the bare base
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task("Scoring", total=None, about=self.validated)
            return
        self._progress.update(
            self._task,
            description="Training",
            completed=report.step,
            total=report.total,
            about=self._about(report),
        )

    def _about(self, report: Report) -> str:
        """As much as fits on the line, what matters most first."""
        line = f"{report.step}/{report.total}"
        room = self._progress.console.width - _taken(self._progress.console.width)
        for part in filter(None, (self.validated, *_numbers(report, self.pace))):
            if len(line) + 2 + len(part) > room:
                break
            line += f"  {part}"
        return line


def watcher() -> Bar | Lines:
    """The form that suits where stderr goes."""
    return Bar() if screen.err().is_terminal else Lines()


def _columns(width: int) -> list[ProgressColumn]:
    about = TextColumn("{task.fields[about]}", markup=False, table_column=Column(no_wrap=True, ratio=1))
    if width < _NARROW:
        return [SpinnerColumn(), about]
    name = TextColumn("{task.description}", markup=False, table_column=Column(width=len("Training")))
    return [SpinnerColumn(), name, BarColumn(bar_width=_bar(width)), about]


def _bar(width: int) -> int:
    return max(6, min(30, width - 90))


def _taken(width: int) -> int:
    """Columns in front of the text: spinner, name and bar, a space behind each."""
    return 2 if width < _NARROW else 2 + len("Training ") + _bar(width) + 1


def _numbers(report: Report, pace: Pace) -> list[str]:
    """Loss, speed, time left and learning rate: what fits least comes last."""
    if math.isnan(report.loss):
        return []
    found = [f"loss {report.loss:.3f}"]
    if not math.isnan(pace.left):
        found.append(f"{screen.seconds_text(pace.left)} left")
    if not math.isnan(pace.tokens_per_second):
        found.append(f"{pace.tokens_per_second:,.0f} tokens/s")
    return [*found, f"lr {report.learning_rate:.2g}"]
