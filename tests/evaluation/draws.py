"""The resamplings that every metric of so many rows meets, drawn here once more."""

from __future__ import annotations

import numpy

from softprompt.evaluation.intervals import RESAMPLES


def drawn(rows: int, seed: int = 0) -> list[list[int]]:
    """The rows of each resampling."""
    chance = numpy.random.default_rng([seed, 0])
    found: list[list[int]] = chance.integers(rows, size=(RESAMPLES, rows), dtype=numpy.int32).tolist()
    return found
