"""Rows that bring their own possible answers: what they offer, which is right, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from softprompt.data.rows import encode, encode_request
from softprompt.data.table import Table
from softprompt.data.template import Template
from softprompt.errors import DataError

END = 999_999
LISTED = Template("{text}", " {choice}", choices="options")
NAMED = Template("{text}", " {choice}.", None, "answer", choices=["{first}", "the {second}"])


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def row(label: object, *options: str) -> dict[str, object]:
    return {"text": "t", "options": list(options), "label": label}


def fault(template: Template, values: dict[str, Any], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        encode(Table((values,), "t.csv"), template, letters, max_tokens=40, **options)
    return str(caught.value)


def test_a_column_holds_the_choices() -> None:
    one = row(1, "red", "green", "blue")
    assert LISTED.columns == ("text", "options", "label")
    assert LISTED.candidates() == ()
    assert LISTED.candidates(one) == (" red", " green", " blue")
    assert LISTED.answers(one) == ("red", "green", "blue")
    assert LISTED.target_text(one) == " green"
    assert LISTED.compares


def test_a_template_makes_each_choice() -> None:
    one = {"text": "t", "first": "sun", "second": "moon", "answer": "the moon"}
    assert NAMED.columns == ("text", "first", "second", "answer")
    assert NAMED.candidates(one) == (" sun.", " the moon.")
    assert NAMED.label_index(one) == 1


def test_the_target_may_hold_other_columns() -> None:
    template = Template("{before}", " {choice} {after}", choices="options")
    one = {"before": "The", "after": "sat.", "options": ["cat", "mat"], "label": 0}
    assert template.candidates(one) == (" cat sat.", " mat sat.")
    assert "after" in template.columns


@pytest.mark.parametrize(
    ("label", "right"),
    [
        (0, (0,)),
        (2, (2,)),
        ("2", (2,)),  # as a csv file has it
        ("blue", (2,)),
        (["blue", "red"], (2, 0)),
        (["blue", "blue", "pink"], (2,)),
    ],
)
def test_the_right_choice_is_a_number_a_text_or_several(label: object, right: tuple[int, ...]) -> None:
    one = row(label, "red", "green", "blue")
    assert LISTED.right(one) == right
    assert LISTED.label_index(one) == right[0]


def test_a_text_that_looks_like_a_number_is_a_text_first() -> None:
    assert LISTED.right(row("1", "7", "3", "1")) == (2,)
    assert LISTED.right(row(1, "7", "3", "1")) == (1,)


def test_examples_have_their_own_candidates() -> None:
    rows = (row(1, "red", "green"), row(["blue", "red"], "red", "violet", "blue"))
    encoded = encode(Table(rows, "t.csv"), LISTED, letters, max_tokens=40, end=(END,))
    assert encoded.candidate_ids is None
    assert encoded.needs_whole_words
    first, second = encoded.examples
    assert first.candidates == ((*letters(" red"), END), (*letters(" green"), END))
    assert encoded.candidates(second) == second.candidates
    assert (first.label, first.right) == (1, ())
    assert (second.label, second.right) == (2, (2, 0))
    assert second.target_ids == (*letters(" blue"), END)


def test_what_is_read_leaves_room_for_the_longest_choice() -> None:
    rows = tuple(row(label, "a", "b" * 20) | {"text": "x" * 99} for label in (0, 1))
    first, second = encode(Table(rows, "t.csv"), LISTED, letters, max_tokens=40).examples
    assert first.input_ids == second.input_ids
    assert len(first.input_ids) == 40 - 21
    request = encode_request(
        LISTED, {k: v for k, v in rows[0].items() if k != "label"}, letters, max_tokens=40
    )
    assert request.examples[0].input_ids == first.input_ids
    assert request.examples[0].candidates == first.candidates


def test_a_choice_that_begins_another_is_noted_where_it_matters() -> None:
    table = Table((row(0, "Sox", "Sox fans"), row(0, "a", "b")), "t.csv")
    (note,) = encode(table, LISTED, letters, max_tokens=40).notes
    assert note.startswith("In 1 of 2 rows one choice begins another")
    assert encode(table, LISTED, letters, max_tokens=40, end=(END,)).notes == ()
    assert encode(table, LISTED, letters, max_tokens=40, normalise="length").notes == ()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"text": "t", "options": ["a", "b"]}, "there is no column 'label'"),
        ({"text": "t", "label": 0}, "there is no column 'options'"),
        (row(0, "a"), "the list in column 'options' must hold two choices or more, not 1."),
        (row(0, "a") | {"options": "a,b"}, "the column 'options' must hold the list of the row's choices."),
        (row(0, "a") | {"options": ["a", None]}, "the list in column 'options' must hold texts or numbers."),
        (row(0, "a", "\udce9"), "half a character"),
        (row(0, "a", "a"), "the choices 'a' and 'a' have the same tokens: leave one out."),
        (row(0, "a", " "), "one of the choices is empty"),
        (row(2, "a", "b"), "(2) is neither one of the row's 2 choices nor the number of one"),
        (row(True, "a", "b"), "(True) is neither one of"),
        (row(["c"], "a", "b"), "(['c']) is neither one of"),
        (row(None, "a", "b"), "the column 'label' has no value"),
        (row([], "a", "b"), "the column 'label' has no value"),
    ],
)
def test_faults_of_rows(values: dict[str, object], said: str) -> None:
    assert said in fault(LISTED, values)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{a}", " {choice}", ["x", "y"], None, "options"), "both labels and choices"),
        (("{a}", " {label}", None, None, "options"), "must hold the field {choice}"),
        (("{a}", " {choice}", None, None, "{options}"), "must be the name of a column"),
        (("{a}", " {choice}", None, None, ["{x}"]), "two choices or more, not 1"),
        (("{a}{label}", " {choice}", None, None, "options"), "shows the label itself"),
        (("{a}", " {choice}", None, "options", "options"), "show the label itself"),
        (("{a}", " {choice}", None, None, ["{x", "{y}"]), "has a { without its }"),
    ],
)
def test_faults_of_templates(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(DataError) as caught:
        Template(*arguments)
    assert said in str(caught.value)
