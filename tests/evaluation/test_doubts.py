"""Scores that tell little say so: one label for every row, and too few rows to choose by."""

from __future__ import annotations

import pytest

from softprompt.data.rows import Encoded, Example
from softprompt.evaluation.doubts import all_alike, too_few


def test_one_label_for_every_row_is_told() -> None:
    (sentence,) = all_alike([1, 1, 1], ["no", "yes"], "validation row")
    assert sentence == "Every validation row is given the label 'yes', so nothing is told apart."
    assert not all_alike([1, 0, 1], ["no", "yes"])
    assert not all_alike([0, 0], ["only"])  # there is nothing to tell apart
    assert not all_alike([1, 1], [])  # choices of each row's own, whose numbers mean different things
    assert not all_alike([], ["no", "yes"])


@pytest.mark.parametrize(("rows", "told"), [(12, True), (39, True), (40, False)])
def test_few_rows_to_choose_by_are_told_before_the_work(rows: int, told: bool) -> None:
    examples = tuple(Example((1,), (2,), 0, number) for number in range(rows))
    found = too_few(Encoded(examples, 0, ((2,), (3,)), False, (), False, None), "validation")
    assert bool(found) == told
    assert all(sentence.startswith(f"{rows} validation rows are few to choose by") for sentence in found)


def test_free_text_is_not_told_of_labels() -> None:
    assert not too_few(
        Encoded((Example((1,), (2,), None, 0),), 0, None, False, (), False, None), "validation"
    )
