"""The official metrics of SuperGLUE (Wang et al. 2019): knows flattened rows and predictions, no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from softprompt.config.presets import ANSWERS
from softprompt.data.superglue import NAMES
from softprompt.data.table import Row, Table
from softprompt.errors import DataError
from softprompt.evaluation.intervals import Sampled, resampled, sampled_mean
from softprompt.evaluation.metrics import exact_match, macro_f1, token_f1

__all__ = ["HEADLINE", "official"]

HEADLINE = {
    **dict.fromkeys(("boolq", "copa", "rte", "wic", "wsc"), ("accuracy",)),
    "cb": ("accuracy", "f1"),
    "multirc": ("f1a", "em"),
    "record": ("f1", "em"),
}
"""The metrics of each task; their mean is the task's score on the leaderboard."""


def official(
    task: str, table: Table, predictions: Sequence[int], *, labels: Sequence[str] | None = None
) -> dict[str, Sampled]:
    """Score predictions as the benchmark does, each metric from 0 to 1, with its resamplings of the rows.

    ========================  =============================================================================
    boolq, copa, rte,         ``accuracy``
    wic, wsc
    cb                        ``accuracy``; ``f1``, the mean F1 of the labels, each counting alike
    multirc                   ``f1a``, the F1 of "right" over all answer options; ``em``, the share of
                              questions all of whose options are judged rightly (resampled whole)
    record                    ``f1`` of the words and ``em``, both the best over the right answers
    ========================  =============================================================================

    Args:
        task: ``cb`` or ``superglue:cb``.
        table: rows as ``data.sources.read`` gives them.
        predictions: for each row the number of its label or choice, as in ``Scores.predictions``.
        labels: the order that label numbers are in, where it is not that of ``data.task``.

    Raises:
        DataError: no such task, rows without answers, or predictions that do not fit the rows.
    """
    name = task.removeprefix("superglue:")
    if name not in NAMES:
        raise DataError(f"{task!r} is no task of SuperGLUE: they are {', '.join(NAMES)}.")
    if not len(table) or len(predictions) != len(table):
        raise DataError(
            f"There are {len(predictions)} predictions for the {len(table)} rows of {table.origin}."
        )
    answer = "answers" if name == "record" else "label"
    missing = [number for number, row in enumerate(table.rows) if row.get(answer) is None]
    if missing:
        raise DataError(f"{table.place(missing[0])} has no answer to score by: use another split.")
    order = tuple(labels) if labels is not None else ANSWERS.get(name, ())
    said = [_said(name, row, order, p, table.origin) for row, p in zip(table.rows, predictions, strict=True)]
    return _METRICS[name](table.rows, said)


def _said(task: str, row: Row, labels: Sequence[str], prediction: int, origin: str) -> str:
    """The label or choice a prediction stands for."""
    offered = labels
    if task == "copa":
        offered = ("0", "1")
    elif task == "record":
        offered = row["entities"]  # type: ignore[assignment]
    if not 0 <= prediction < len(offered):
        raise DataError(
            f"{origin}: the prediction {prediction} is none of the {len(offered)} answers of a row."
        )
    return offered[prediction]


def _truth(rows: Sequence[Row]) -> list[str]:
    return [str(row["label"]) for row in rows]


def _accuracy(rows: Sequence[Row], said: Sequence[str]) -> dict[str, Sampled]:
    return {"accuracy": sampled_mean([float(t == s) for t, s in zip(_truth(rows), said, strict=True)])}


def _cb(rows: Sequence[Row], said: Sequence[str]) -> dict[str, Sampled]:
    return _accuracy(rows, said) | {"f1": macro_f1(_truth(rows), said)}


def _multirc(rows: Sequence[Row], said: Sequence[str]) -> dict[str, Sampled]:
    pairs = list(zip(_truth(rows), said, strict=True))
    options = [[t == s == "true", (t == "true") + (s == "true")] for t, s in pairs]  # a hit, and claims
    whole: dict[object, bool] = {}
    for row, (t, s) in zip(rows, pairs, strict=True):
        whole[row["question_id"]] = whole.get(row["question_id"], True) and t == s
    return {
        "f1a": resampled(torch.tensor(options), _f1),
        "em": sampled_mean([float(right) for right in whole.values()]),
    }


def _f1(sums: Tensor) -> Tensor:
    """Hits and claims [R, 2] -> F1 [R], 0 where nothing is claimed."""
    return 2 * sums[:, 0] / sums[:, 1].clamp_min(1)


def _record(rows: Sequence[Row], said: Sequence[str]) -> dict[str, Sampled]:
    pairs = [(text, [str(a) for a in _several(row["answers"])]) for row, text in zip(rows, said, strict=True)]
    return {
        "f1": sampled_mean([token_f1(text, answers) for text, answers in pairs]),
        "em": sampled_mean([float(exact_match(text, answers)) for text, answers in pairs]),
    }


def _several(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else [value]


_METRICS: dict[str, Callable[[Sequence[Row], Sequence[str]], dict[str, Sampled]]] = {
    **dict.fromkeys(("boolq", "copa", "rte", "wic", "wsc"), _accuracy),
    "cb": _cb,
    "multirc": _multirc,
    "record": _record,
}
