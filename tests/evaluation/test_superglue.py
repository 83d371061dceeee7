"""SuperGLUE's metrics equal numbers worked by hand, and scikit-learn's where it has them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from softprompt.data.table import Table
from softprompt.errors import DataError
from softprompt.evaluation.metrics import sampled_mean
from softprompt.evaluation.superglue import official

CB = ("entailment", "contradiction", "neutral")


def scored(task: str, table: Table, predictions: Sequence[int], **options: Any) -> dict[str, float]:
    return {name: one.value for name, one in official(task, table, predictions, **options).items()}


def labelled(*labels: object, **more: object) -> Table:
    return Table(tuple({"label": label, **more} for label in labels), "t.jsonl")


@pytest.mark.parametrize("task", ["boolq", "superglue:wic", "wsc"])
def test_accuracy_of_yes_and_no(task: str) -> None:
    table = labelled("false", "true", "true", "true")
    assert scored(task, table, [0, 0, 1, 1]) == {"accuracy": 0.75}
    assert scored(task, table, [0, 0, 1, 1], labels=["true", "false"]) == {"accuracy": 0.25}


def test_accuracy_of_rte_and_copa() -> None:
    assert scored("rte", labelled("entailment", "not_entailment"), [0, 0]) == {"accuracy": 0.5}
    assert scored("copa", labelled(0, 1, 1), [0, 1, 0]) == {"accuracy": 2 / 3}


def test_cb_by_hand() -> None:
    table = labelled("entailment", "entailment", "contradiction", "neutral")
    found = scored("cb", table, [0, 1, 1, 1])
    # F1 of entailment 2/3, of contradiction 2 x 1 / (1 + 3), of neutral 0.
    assert found == {"accuracy": 0.5, "f1": pytest.approx((2 / 3 + 1 / 2 + 0) / 3)}


def test_cb_and_multirc_equal_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn to compare with")
    rng = random.Random(0)
    truth, said = ([rng.randrange(3) for _ in range(200)] for _ in range(2))
    found = scored("cb", labelled(*(CB[i] for i in truth)), said)
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, said, average="macro"))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said))
    truth, said = ([rng.randrange(2) for _ in range(200)] for _ in range(2))
    options = enumerate(truth)
    table = Table(tuple({"label": ("false", "true")[t], "question_id": i // 4} for i, t in options), "t")
    found = scored("multirc", table, said)
    assert found["f1a"] == pytest.approx(metrics.f1_score(truth, said))
    whole = [truth[i : i + 4] == said[i : i + 4] for i in range(0, 200, 4)]
    assert found["em"] == pytest.approx(sum(whole) / 50)


def test_multirc_by_hand() -> None:
    options = [("0-0", "true"), ("0-0", "false"), ("0-1", "true"), ("0-0", "true"), ("0-1", "false")]
    table = Table(tuple({"question_id": q, "label": label} for q, label in options), "t")
    # Question 0-0: right, right, wrong. Question 0-1: right, right. Two hits of three, no more claims.
    assert scored("multirc", table, [1, 0, 1, 0, 0]) == {"f1a": pytest.approx(0.8), "em": 0.5}
    assert scored("multirc", labelled("false", question_id=0), [0]) == {"f1a": 0.0, "em": 1.0}


def test_record_takes_the_best_over_the_right_answers() -> None:
    entities = ["The Red Sox", "Red Sox fans", "Boston", "red sox!"]
    table = Table(
        (
            {"entities": entities, "answers": ["Sox", "Red Sox fans"]},
            {"entities": entities, "answers": ["Red Sox"]},
            {"entities": entities, "answers": ["Boston", "Rome"]},
        ),
        "t",
    )
    # "red sox" against "sox" and "red sox fans": 2/3 and 4/5.
    assert scored("record", table, [0, 0, 0]) == {
        "f1": pytest.approx((4 / 5 + 1 + 0) / 3),
        "em": pytest.approx(1 / 3),
    }
    assert scored("record", table, [1, 3, 2]) == {"f1": 1.0, "em": 1.0}


@pytest.mark.parametrize(
    ("task", "table", "predictions", "said"),
    [
        ("glue", labelled("true"), [0], "'glue' is no task of SuperGLUE"),
        ("rte", labelled("entailment"), [0, 1], "2 predictions for the 1 rows"),
        ("rte", Table((), "t"), [], "0 predictions for the 0 rows"),
        ("cb", labelled("neutral", None), [0, 0], r"t\.jsonl, row 2 has no answer to score by"),
        ("cb", labelled("neutral"), [3], "prediction 3 is none of the 3 answers"),
        ("cb", labelled("neutral"), [-1], "prediction -1 is none of the 3 answers"),
    ],
)
def test_what_cannot_be_scored(task: str, table: Table, predictions: list[int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        scored(task, table, predictions)


def test_an_interval_is_over_rows_and_a_question_is_drawn_whole() -> None:
    """Twice the rows of every question leave the interval of ``em`` as it is: there are no more questions."""
    right = [i % 3 > 0 for i in range(60)]
    found = official("rte", labelled(*(["entailment", "not_entailment"][not r] for r in right)), [0] * 60)
    assert found["accuracy"].interval() == sampled_mean([float(r) for r in right]).interval()
    rows: list[dict[str, object]] = [{"label": ("true", "false")[i % 2], "question_id": i} for i in range(60)]
    said = [int((row["label"] == "true") == r) for row, r in zip(rows, right, strict=True)]
    once = official("multirc", Table(tuple(rows), "t"), said)["em"]
    again = Table(tuple(row for row in rows for _ in "ab"), "t")
    assert official("multirc", again, [s for s in said for _ in "ab"])["em"].interval() == once.interval()
    low, high = once.interval()[1:]
    assert low < once.value < high
