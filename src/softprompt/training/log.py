"""A run's diary: one JSON object a line, and TensorBoard on request."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from softprompt.atomic import plain_disk_errors, write_bytes
from softprompt.packages import require
from softprompt.training.loop import Report

__all__ = ["Diary"]


class Diary:
    """Writes every report of a run to ``log.jsonl``."""

    def __init__(self, folder: Path, *, tensorboard: bool = False, keep_to: int | None = None) -> None:
        """keep_to: on resume, the last step already done; later lines are forgotten."""
        self._path = folder / "log.jsonl"
        kept = [] if keep_to is None else _lines_to(self._path, keep_to)
        write_bytes(self._path, "".join(kept).encode())
        self._board = _board(folder / "tensorboard") if tensorboard else None

    def write(self, report: Report) -> None:
        """Add a line; it is on disk when this returns."""
        values: dict[str, Any] = {
            name: value
            for name, value in vars(report).items()
            if name != "scores" and not (isinstance(value, float) and math.isnan(value))
        }
        if report.scores is not None:
            values["scores"] = report.scores.summary()
        with plain_disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        if self._board is not None:
            _chart(self._board, report)

    def close(self) -> None:
        """Finish TensorBoard's file, if there is one."""
        if self._board is not None:
            self._board.close()


def _chart(board: Any, report: Report) -> None:
    numbers = {"loss": report.loss, "learning_rate": report.learning_rate}
    if report.scores is not None:
        numbers["validation/nll"] = report.scores.nll
        if report.scores.accuracy is not None:
            numbers["validation/accuracy"] = report.scores.accuracy
    for name, value in numbers.items():
        if not math.isnan(value):
            board.add_scalar(name, value, report.step)


def _lines_to(path: Path, step: int) -> list[str]:
    """The whole lines of a diary up to a step; a line cut off by a kill is dropped."""
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


def _board(folder: Path) -> Any:
    require("TensorBoard's log")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
