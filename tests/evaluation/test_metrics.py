"""Metrics equal scikit-learn's and hand-worked numbers, in every resampling of the rows too."""

from __future__ import annotations

import math
import random

import pytest

from evaluation.draws import drawn
from softprompt.evaluation.intervals import RESAMPLES, wilson
from softprompt.evaluation.metrics import (
    Sampled,
    accuracy,
    average,
    calibration_error,
    confusion,
    exact_match,
    macro_f1,
    normalised,
    precision_recall,
    sampled_mean,
    token_f1,
)


def rows(count: int, labels: int, seed: int) -> tuple[list[int], list[int]]:
    """Truth and predictions, half of them right, in which some of the labels never come."""
    draw = random.Random(seed)
    truth = [draw.choice(range(0, labels, 2)) for _ in range(count)]
    return truth, [t if draw.random() < 0.5 else draw.randrange(labels) for t in truth]


@pytest.mark.parametrize(("count", "labels", "seed"), [(200, 2, 0), (50, 9, 1), (7, 20, 2), (1, 3, 3)])
def test_macro_f1_and_confusion_equal_sklearn(count: int, labels: int, seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn as the reference")
    truth, predicted = rows(count, labels, seed)
    expected = sklearn.f1_score(truth, predicted, average="macro", zero_division=0)
    assert macro_f1(truth, predicted).value == pytest.approx(expected, rel=1e-12)
    expected = sklearn.confusion_matrix(truth, predicted, labels=range(labels)).tolist()
    assert confusion(truth, predicted, labels) == expected


@pytest.mark.parametrize(("count", "labels", "seed"), [(200, 2, 0), (50, 9, 1), (7, 20, 2)])
def test_precision_and_recall_equal_sklearn(count: int, labels: int, seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn as the reference")
    truth, predicted = rows(count, labels, seed)
    expected = sklearn.precision_recall_fscore_support(
        truth, predicted, labels=list(range(labels)), zero_division=math.nan
    )[:2]
    found = precision_recall(confusion(truth, predicted, labels))
    for mine, *theirs in zip(found, *expected, strict=True):
        assert [math.nan if one is None else one for one in mine] == pytest.approx(theirs, nan_ok=True)


def test_macro_f1_by_hand() -> None:
    # label 0: one hit, two rows, one prediction: 2/3; label 1 and 2 are never hit: 0; label 7 does not come
    assert macro_f1([0, 0, 1], [0, 1, 2]).value == pytest.approx(2 / 9)
    assert macro_f1([0, 0, 0], [0, 0, 0]).value == 1.0
    assert macro_f1(["a", "b"], ["b", "a"]).value == 0.0


def test_every_draw_of_macro_f1_is_computed_anew() -> None:
    truth, predicted = rows(30, 5, 4)
    found = macro_f1(truth, predicted)
    for number, picked in enumerate(drawn(30)[:50]):
        again = macro_f1([truth[i] for i in picked], [predicted[i] for i in picked])
        assert float(found.draws[number]) == pytest.approx(again.value, rel=1e-12)


def test_shares_have_the_interval_of_accuracy_elsewhere() -> None:
    assert accuracy([1, 2, 3, 0], [1, 2, 0, 0]) == (0.75, *wilson(3, 4))
    assert average([1.0] * 20) == (1.0, *wilson(20, 20))
    assert average([1.0] * 19 + [0.5]) == sampled_mean([1.0] * 19 + [0.5]).interval()


def test_calibration_error_by_hand() -> None:
    confidences, hits = [0.95, 0.92, 0.65, 0.7, 0.15], [True, False, True, True, False]
    # bins (0.9, 1]: |1.87 - 1|, (0.6, 0.7]: |1.35 - 2|, (0.1, 0.2]: |0.15 - 0|
    assert calibration_error(confidences, hits).value == pytest.approx((0.87 + 0.65 + 0.15) / 5)
    # one bin for all: |3.37 - 3|
    assert calibration_error(confidences, hits, bins=1).value == pytest.approx(0.37 / 5)


def test_the_upper_edge_belongs_to_a_bin_and_0_to_the_first() -> None:
    # together in a bin, the two gaps cancel; 0.7 shares one with 0.65, not with 0.75
    assert calibration_error([0.7, 0.65], [True, False]).value == pytest.approx((0.65 - 0.3) / 2)
    assert calibration_error([0.7, 0.75], [True, False]).value == pytest.approx((0.3 + 0.75) / 2)
    assert calibration_error([0.0, 0.1], [True, False]).value == pytest.approx((1 - 0.1) / 2)
    assert calibration_error([1.0, 1.0], [True, True]).value == 0.0


def test_calibration_error_of_calibrated_rows_is_small() -> None:
    draw = random.Random(5)
    confidences = [draw.random() for _ in range(4000)]
    hits = [draw.random() < c for c in confidences]
    found = calibration_error(confidences, hits)
    assert found.value < 0.03
    assert calibration_error([c / 2 for c in confidences], hits).value == pytest.approx(0.25, abs=0.03)
    assert isinstance(found, Sampled)
    assert len(found.draws) == RESAMPLES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple, a pear\nand the rest.", "apple pear and rest"),
        ("another theory", "another theory"),
        ("It's U.S.", "its us"),
        ("the", ""),
    ],
)
def test_normalised(text: str, expected: str) -> None:
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("text", "references", "exact", "f1"),
    [
        (" The Eiffel Tower.", ["Eiffel tower"], 1, 1),
        ("in Paris, France", ["Paris"], 0, 0.5),  # 1 of 3 and 1 of 1
        ("Paris", ["London", "Paris France", "paris"], 1, 1),
        ("Paris Paris", ["Paris is Paris"], 0, 0.8),  # 2 of 2 and 2 of 3
        ("Rome", ["Paris"], 0, 0),
        ("", ["Paris"], 0, 0),
        ("the", ["a"], 1, 1),  # nothing on either side
    ],
)
def test_short_answers(text: str, references: list[str], exact: float, f1: float) -> None:
    assert exact_match(text, references) == exact
    assert token_f1(text, references) == pytest.approx(f1)
