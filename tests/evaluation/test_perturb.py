"""Changes touch what they should and no more, the same ones every time; the worst case is row by row."""

from __future__ import annotations

import copy

import pytest

from softprompt.data.table import Table
from softprompt.errors import ConfigError, DataError
from softprompt.evaluation.intervals import wilson
from softprompt.evaluation.perturb import KINDS, perturbed, robustness

TEXTS = (
    "The film, which nobody expected to be any good, turned out wonderful.",
    "A dull , lifeless mess .",  # blanks before the marks, as in SST-2
    "Two\nlines: the second is longer, and costs 3.50 dollars (or more)!",
    "Grüße aus Köln, überall schöne Straßen und Häuser.",
)
TABLE = Table(tuple({"text": t, "note": t, "label": "pos", "number": 7} for t in TEXTS), "rows.jsonl")


def changed(kind: str, text: str, seed: int = 0) -> str:
    return str(perturbed(Table(({"text": text},), "one"), ["text"], kind, seed).rows[0]["text"])


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_columns_asked_for_change(kind: str) -> None:
    before = copy.deepcopy(TABLE)
    found = perturbed(TABLE, ["text", "number"], kind, 0)
    assert before == TABLE
    assert found.origin == f"rows.jsonl ({kind}, seed 0)"
    for row, old in zip(found.rows, TABLE.rows, strict=True):
        assert row["text"] != old["text"]
        assert {**row, "text": ""} == {**old, "text": ""}


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_depends_on_seed_row_and_column_only(kind: str) -> None:
    both = perturbed(TABLE, ["note", "text"], kind, 5)
    assert perturbed(TABLE, ["text", "note"], kind, 5) == both
    alone = perturbed(Table(TABLE.rows[:2], "two"), ["text"], kind, 5)
    assert [r["text"] for r in alone.rows] == [r["text"] for r in both.rows[:2]]


@pytest.mark.parametrize("kind", ["typos", "spacing"])
def test_other_seeds_rows_and_columns_are_changed_otherwise(kind: str) -> None:
    same = Table(tuple({"text": TEXTS[0], "note": TEXTS[0]} for _ in range(8)), "same")
    found = perturbed(same, ["text", "note"], kind, 0)
    assert len({str(row["text"]) for row in found.rows}) > 3
    assert any(row["text"] != row["note"] for row in found.rows)
    assert found != perturbed(same, ["text", "note"], kind, 1)


def test_the_changes_stay_the_same_in_later_versions() -> None:
    assert changed("typos", TEXTS[0]) == TEXTS[0].replace("film", "fil")
    spaced = "The   film, which nobody expected to be any   good, turned  out wonderful."
    assert changed("spacing", TEXTS[0]) == spaced
    assert changed("case", TEXTS[0]) == TEXTS[0].lower()


def test_typos_fall_on_one_long_word_in_ten_and_spare_first_letters() -> None:
    words = ["several", "letters", "aaaa", "abc", "it's", "x1y2z3", "(quoted)", "über", "of", "end."] * 3
    seen = set()
    for seed in range(200):
        found = changed("typos", " ".join(words), seed).split(" ")
        differ = [(old, new) for old, new in zip(words, found, strict=True) if old != new]
        assert len(differ) == 3
        for old, new in differ:
            assert old in {"several", "letters", "aaaa", "(quoted)", "über"}
            first = 2 if old[0] == "(" else 1
            assert new[:first] == old[:first]
            seen.add((len(new) - len(old), sorted(new) == sorted(old)))
            assert set(new) <= set(old)
    assert seen == {(-1, False), (1, False), (0, True)}  # dropped, doubled, swapped


def test_a_text_of_few_words_has_one_typo() -> None:
    found = changed("typos", "A wonderful one")
    assert found.startswith("A w")
    assert found.endswith(" one")
    assert found != "A wonderful one"


def test_case() -> None:
    assert changed("case", "It is GREAT") == "it is great"
    assert changed("case", "it is great") == "IT IS GREAT"


def test_spacing_changes_white_space_alone() -> None:
    seen = set()
    for seed in range(300):
        for text in TEXTS:
            found = changed("spacing", text, seed)
            assert found != text
            assert found.split("\n")[0].split() or found.count("\n") == text.count("\n")
            assert "".join(found.split()) == "".join(text.split())
            assert "3.50" in found or "3.50" not in text
            seen |= {mess for mess in ("mess.", "mess  .", "film ,", "film  ,") if mess in found}
    assert seen == {"mess.", "mess  .", "film ,", "film  ,"}


def test_spacing_falls_on_one_gap_in_five() -> None:
    text = " ".join(["word"] * 101)
    found = changed("spacing", text)
    assert sum(len(gap) > 1 for gap in found.split("word")) == 20


@pytest.mark.parametrize(("kind", "text"), [("typos", "too few to"), ("case", "1 + 2"), ("spacing", "word")])
def test_what_cannot_be_changed_stays(kind: str, text: str) -> None:
    assert changed(kind, text) == text


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="'noise': choose among typos, case, spacing"):
        perturbed(TABLE, ["text"], "noise", 0)
    with pytest.raises(DataError, match="did you mean 'text'"):
        perturbed(TABLE, ["txt"], "case", 0)


def test_the_worst_case_is_right_under_every_change() -> None:
    found = robustness({"none": [1, 1, 1, 0], "typos": [1, 0, 1, 0], "case": [1, 1, 0, 1]})
    assert found.worst_per_row == [1, 0, 0, 0]
    assert found.worst == (0.25, *wilson(1, 4))
    assert {name: value.value for name, value in found.each.items()} == {
        "none": 0.75,
        "typos": 0.5,
        "case": 0.75,
    }


def test_the_worst_case_of_graded_scores() -> None:
    found = robustness({"none": [0.5, 1.0], "typos": [0.75, 0.25]})
    assert found.worst_per_row == [0.5, 0.25]
    assert found.worst.value == 0.375
    assert found.worst.low <= 0.375 <= found.worst.high
