"""Reports of many runs add up to one that a watcher of a single run can show."""

from __future__ import annotations

import math

import pytest

from softprompt.evaluation.score import Scores
from softprompt.training.chorus import Chorus
from softprompt.training.loop import Report


def scores(accuracy: float) -> Scores:
    return Scores(10, 1.0, (1.0, 1.0), accuracy)


def step(number: int, loss: float = 1.0, accuracy: float | None = None) -> Report:
    found = None if accuracy is None else scores(accuracy)
    return Report(number, 10, loss, 0.1, 1.0, 50, 0.0, found, False)


def test_one_report_for_a_step_taken_side_by_side() -> None:
    told: list[Report] = []
    chorus = Chorus(told.append, 3, "auto")
    for run, loss in (("a", 1.0), ("b", 3.0)):
        chorus.heard(run, step(0, math.nan, 0.2))
        chorus.heard(run, step(1, loss))
    chorus.tell()
    chorus.tell()  # nothing is new
    (first,) = told
    assert (first.step, first.total, first.loss, first.tokens) == (2, 30, 2.0, 200)
    assert first.scores == scores(0.2)
    assert first.best


def test_the_best_of_a_validation_is_told_and_whether_it_beats_all_before() -> None:
    told: list[Report] = []
    chorus = Chorus(told.append, 2, "auto")
    for accuracies in ((0.5, 0.7), (0.6, 0.65), (0.75, 0.1)):
        for run, accuracy in zip("ab", accuracies, strict=True):
            chorus.heard(run, step(1, 1.0, accuracy))
        chorus.tell()
    assert [report.scores for report in told] == [scores(0.7), scores(0.65), scores(0.75)]
    assert [report.best for report in told] == [True, False, True]


def test_what_is_given_up_takes_no_more_steps() -> None:
    told: list[Report] = []
    chorus = Chorus(told.append, 4, "auto")
    chorus.heard("a", step(4))
    chorus.heard("b", step(4))
    chorus.left("b")
    chorus.left("c")  # was given up before the search was gone on with
    chorus.tell()
    assert (told[0].step, told[0].total) == (8, 10 + 4 + 10)
    assert told[0].seconds == pytest.approx(0, abs=5)
