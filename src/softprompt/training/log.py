"""A run's log: one JSON object a line, and TensorBoard or trackers on request."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from softprompt.atomic import plain_disk_errors, write_bytes
from softprompt.listener import Report
from softprompt.packages import require
from softprompt.training.trackers import Trackers

__all__ = ["RunLog"]


class RunLog:
    """Writes every report of a run to ``log.jsonl``."""

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool = False,
        trackers: Trackers | None = None,
        keep_to: int | None = None,
    ) -> None:
        """keep_to: on resume, the last step already done; later lines are forgotten."""
        self._trackers = trackers
        self._path = folder / "log.jsonl"
        kept = [] if keep_to is None else _lines_to(self._path, keep_to)
        write_bytes(self._path, "".join(kept).encode())
        self._board: Any = None
        if tensorboard:
            require("TensorBoard's log")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, report: Report) -> None:
        """Add a line; it is on disk when this returns."""
        values: dict[str, Any] = {
            name: value
            for name, value in vars(report).items()
            if name not in ("scores", "run") and not (isinstance(value, float) and math.isnan(value))
        }
        if report.scores is not None:
            values["scores"] = report.scores.summary()
        with plain_disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        charted = _charted(report)
        if self._board is not None:
            for name, value in charted.items():
                self._board.add_scalar(name, value, report.step)
        if self._trackers is not None:
            self._trackers.log(charted, report.step)

    def close(self) -> None:
        """Finish TensorBoard's file, if there is one."""
        if self._board is not None:
            self._board.close()
        if self._trackers is not None:
            self._trackers.close()


def _charted(report: Report) -> dict[str, float]:
    """The numbers of a step that are drawn over time."""
    numbers = {"loss": report.loss, "learning_rate": report.learning_rate}
    if report.scores is not None:
        numbers["validation/nll"] = report.scores.nll
        if report.scores.accuracy is not None:
            numbers["validation/accuracy"] = report.scores.accuracy
    return {name: value for name, value in numbers.items() if not math.isnan(value)}


def _lines_to(path: Path, step: int) -> list[str]:
    """The whole lines of a log up to a step; a line cut off by a kill is dropped."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break
    return kept
