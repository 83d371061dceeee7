"""Labels as people have them: found, misspelt, written in several ways."""

from __future__ import annotations

import pytest

from softprompt.data.labels import counted, found_labels, hints, same_label
from softprompt.data.table import Table
from softprompt.errors import DataError


def table(*labels: object) -> Table:
    return Table(tuple({"queue": label} for label in labels), "t.csv")


def test_the_labels_are_all_values_that_are_not_blank_in_order() -> None:
    rows = table("b", "a", None, " ", float("nan"), "a", 3, True)
    assert counted(rows, "queue") == {"3": 1, "a": 2, "b": 1, "true": 1}
    assert found_labels(rows, "queue") == ["3", "a", "b", "true"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("a", "a"), "has only 'a', but labels must be two or more"),
        ((None,), "has no value at all"),
        (tuple(range(101)), "has 101 different values, which are too many"),
    ],
)
def test_what_is_no_set_of_labels_is_refused(labels: tuple[object, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        found_labels(table(*labels), "queue")


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        (
            {"billing": 50, "Billing": 2, "billing ": 1, "outage": 40},
            {"Billing": "billing", "billing ": "billing"},
        ),
        ({"billing": 50, "biling": 1, "outage": 40, "ouatge": 2}, {"biling": "billing", "ouatge": "outage"}),
        ({"sign-in": 9, "sign_in": 9, "Sign in": 9}, {"sign-in": "Sign in", "sign_in": "Sign in"}),
        ({"billing": 50, "biling": 6}, {}),  # too many to be slips
        ({"class1": 50, "class2": 2}, {}),
        ({"positive": 60, "negative": 3}, {}),
        ({"entailment": 60, "not_entailment": 3}, {}),
        ({"access": 60, "success": 3}, {}),
    ],
)
def test_which_labels_are_one(counts: dict[str, int], found: dict[str, str]) -> None:
    assert same_label(counts) == found


def test_a_hint_is_given_once_and_says_what_to_set() -> None:
    counts = {"billing": 50, "biling": 1, "Billing": 2}
    assert hints(counts, {"Billing": "billing"}) == [
        "The label 'biling' (1 row) looks like 'billing' (50 rows); if they are one, set "
        'data.label_aliases = {"biling" = "billing"}.'
    ]
