"""Many runs told of as one: what a watcher of a single run can show.

It knows reports; it does not know what runs are for, nor which are given up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import replace

from softprompt.evaluation.score import Scores
from softprompt.training.loop import Report, merit

__all__ = ["Chorus"]


class Chorus:
    """Adds up the reports of runs that step side by side.

    Steps and tokens are sums, the loss is a mean; scores are those of the run that validates best at
    that moment, and are the best if none was better before.

    Args:
        watch: told once for each step that was taken side by side.
        runs: how many are planned; those not heard yet count as long as the longest heard.
        select: which score of a validation counts.
    """

    def __init__(self, watch: Callable[[Report], None], runs: int, select: str) -> None:
        self._watch, self._planned, self._select = watch, runs, select
        self._began = time.monotonic()
        self._last: dict[Hashable, Report] = {}
        self._left: set[Hashable] = set()
        self._new: dict[Hashable, Report] = {}
        self._best: Scores | None = None

    def heard(self, run: Hashable, report: Report) -> None:
        """Take note of one run's report."""
        before = self._new.get(run)
        tokens = report.tokens + (before.tokens if before is not None else 0)
        scores = report.scores or (before.scores if before is not None else None)
        self._new[run] = self._last[run] = replace(report, tokens=tokens, scores=scores)

    def left(self, run: Hashable) -> None:
        """A run has ended or was given up: it takes no more steps than it has."""
        self._left.add(run)

    def tell(self) -> None:
        """Pass on what was heard since, if anything."""
        if not self._new:
            return
        reports = list(self._new.values())
        scores, best = self._judged([report.scores for report in reports if report.scores is not None])
        losses = [report.loss for report in reports if not math.isnan(report.loss)]
        self._new = {}
        self._watch(
            Report(
                step=sum(report.step for report in self._last.values()),
                total=self._total(),
                loss=sum(losses) / len(losses) if losses else math.nan,
                learning_rate=max(report.learning_rate for report in reports),
                gradient_norm=max(report.gradient_norm for report in reports),
                tokens=sum(report.tokens for report in reports),
                seconds=time.monotonic() - self._began,
                scores=scores,
                best=best,
            )
        )

    def _judged(self, found: list[Scores]) -> tuple[Scores | None, bool]:
        if not found:
            return None, False
        scores = max(found, key=lambda s: merit(s, self._select))
        best = self._best is None or merit(scores, self._select) > merit(self._best, self._select)
        self._best = scores if best else self._best
        return scores, best

    def _total(self) -> int:
        longest = max(report.total for report in self._last.values())
        waiting = max(0, self._planned - len(self._last.keys() | self._left))
        taken = sum(r.step if run in self._left else r.total for run, r in self._last.items())
        return taken + waiting * longest
