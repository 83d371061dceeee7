from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import pytest

from softprompt.data.template import Template
from softprompt.errors import DataError

INPUT = "Headline: {text}\nTopic:"
ROW = {"text": "Rates rise", "label": "b"}


def fault(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        Template(*args, **kwargs)
    return sentence(caught.value)


def sentence(error: DataError) -> str:
    said = str(error)
    assert "\n" not in said
    assert said[0].isupper()
    assert said[-1] in ".?"
    return said


def row_fault(template: Template, row: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        _ = template.input_text(row) + template.target_text(row)
    return sentence(caught.value)


def test_free_text() -> None:
    template = Template("Act as {act}.", " {prompt}")
    row = {"act": "a coach", "prompt": "Be {kind} and {{bold}}", "other": None}
    assert template.input_text(row) == "Act as a coach."
    assert template.target_text(row) == " Be {kind} and {{bold}}"
    assert template.candidates() == ()
    assert template.label_index(row) is None
    assert template.columns == ("act", "prompt")


def test_braces_and_repeated_fields() -> None:
    template = Template("{{{a}}} {{}} { a } {b c}", "{b c}}}")
    assert template.input_text({"a": "x", "b c": "{a}"}) == "{x} {} x {a}"
    assert template.target_text({"a": "x", "b c": "y"}) == "y}"
    assert template.input_fields == ("a", "b c")


def test_a_list_of_labels() -> None:
    template = Template(INPUT, " {label}", ["a", "b"])
    assert template.labels == {"a": "a", "b": "b"}
    assert template.candidates() == (" a", " b")
    assert template.target_text(ROW) == " b"
    assert template.label_index(ROW) == 1
    assert template.columns == ("text", "label")


def test_a_mapping_keeps_its_order_and_gives_words() -> None:
    template = Template(INPUT, " It is {label}.", {"b": "business", "a": "arts"})
    assert template.candidates() == (" It is business.", " It is arts.")
    assert template.target_text(ROW) == " It is business."
    assert template.label_index(ROW) == 0


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        (["0", "1"], 1),
        ([0, 1], "1"),
        ({"0": "no", "1": "yes"}, 1),
        ({"false": "no", "true": "yes"}, True),
        ({False: "no", True: "yes"}, "true"),
        ([False, True], True),
    ],
)
def test_values_are_compared_as_text(labels: Any, value: object) -> None:
    assert Template(INPUT, " {label}", labels).label_index({"label": value}) == 1


def test_the_label_column() -> None:
    row = {"text": "x", "mood": "up", "label": "down"}
    labels = ["down", "up"]
    assert Template("{text}", " {mood}", labels).target_text(row) == " up"
    assert Template("{text}", " {label}", labels, "mood").target_text(row) == " up"
    assert Template("{text}", " {mood}", labels, "mood").target_text(row) == " up"
    assert Template("{text}", " {label}", labels).target_text(row) == " down"
    assert Template("{text} {label}", " {label}", labels, "mood").columns == ("text", "label", "mood")
    assert "must hold one field" in fault("{text}", " {other}", labels, label_column="mood")
    assert "no use without labels" in fault("{text}", " {label}", label_column="label")


@pytest.mark.parametrize("target", [" x", " {label} {text}"])
def test_the_target_holds_the_label_only(target: str) -> None:
    assert "must hold one field" in fault("{text}", target, ["a", "b"])


@pytest.mark.parametrize(
    "field", ["{text[0]}", "{text.a[0]}", "{text!r}", "{text:>10}", "{}", "{ }", '{"a": 1}', "{a\nb}"]
)
def test_only_column_names_may_stand_in_braces(field: str) -> None:
    assert "The input template has the field" in fault(field, " {label}")
    with pytest.raises(DataError, match="The target template has the field"):
        Template("x", field)


def test_a_dot_is_part_of_a_name_and_reaches_for_nothing() -> None:
    template = Template("{question.stem}?", " {answer.text}")
    row = {"question.stem": "why", "answer.text": "so", "question": {"stem": "no"}}
    assert template.input_text(row) == "why?"
    assert template.target_text(row) == " so"
    assert template.columns == ("question.stem", "answer.text")
    said = row_fault(Template("{text.__class__}", " x"), {"text": "x"})
    assert "here is no column 'text.__class__', the columns are text" in said


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{text", "has a { without its }"),
        ("text}", "has a } without its {"),
        ("{a{b}}", "has a {"),
        ("}{", "has a }"),
    ],
)
def test_unbalanced_braces(template: str, said: str) -> None:
    assert said in fault(template, " x")
    assert said in fault("x", template)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("yes", "must be a list of values or a table"),
        ({"a", "b"}, "must be a list of values or a table"),
        ([], "two labels or more, not 0"),
        (["a"], "two labels or more, not 1"),
        ([1, "1"], "'1' is listed twice"),
        ({"a": "x", "b": "x"}, "same word as another label"),
        ({"a": "x", "b": " "}, "'b' has no word"),
    ],
)
def test_malformed_labels(labels: Any, said: str) -> None:
    assert said in fault(INPUT, " {label}", labels)


def test_an_input_that_shows_the_label() -> None:
    assert "shows the label itself" in fault("{text} {label}", " {label}", ["a", "b"])


def test_an_empty_target_template() -> None:
    assert "The target template is empty" in fault("{text}", " ")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"texts": "x", "label": "a"},
            "There is no column 'text', the columns are texts, label; did you mean 'texts'?",
        ),
        ({"text": "x"}, "There is no column 'label', the columns are text."),
        ({"text": None, "label": "a"}, "The column 'text' has no value"),
        ({"text": float("nan"), "label": "a"}, "The column 'text' has no value"),
        ({"text": ["x"], "label": "a"}, "holds a list"),
        ({"text": {"x": 1}, "label": "a"}, "holds a table"),
        ({"text": b"x", "label": "a"}, "holds bytes"),
        ({"text": "x\ud800", "label": "a"}, "half a character"),
        ({"text": "x", "label": None}, "The column 'label' has no value"),
        (
            {"text": "x", "label": "A"},
            "The label 'A' in column 'label' is not one of 'a', 'b'; did you mean 'a'?",
        ),
        ({"text": "x", "label": "z"}, "The label 'z' in column 'label' is not one of 'a', 'b'."),
    ],
)
def test_faulty_rows(row: dict[str, Any], said: str) -> None:
    assert said in row_fault(Template(INPUT, " {label}", ["a", "b"]), row)


def test_many_labels_are_not_all_listed() -> None:
    template = Template(INPUT, " {label}", list(range(150)))
    assert "'19' and 130 more." in row_fault(template, {"text": "x", "label": "z"})


def test_an_empty_target() -> None:
    assert "The target is empty" in row_fault(Template("{a}", " {b}"), {"a": "x", "b": " \n"})


def test_numbers_and_truth_values_as_text() -> None:
    assert Template("{a} {b}", "x").input_text({"a": 3, "b": False}) == "3 false"


@pytest.mark.parametrize(
    ("input", "target", "labels", "said"),
    [
        ("Topic: ", " {a}", None, "ends in white space"),
        ("Topic:\t", "{label}", ["x", "y"], "ends in white space"),
        ("{a} Topic:", "{label}", ["x", "y"], "run together"),
        ("{a} Topic:", "{b}", None, "run together"),
        ("Topic:", " {label}", ["x", "y"], "has no field"),
    ],
)
def test_warnings(input: str, target: str, labels: Any, said: str) -> None:
    found = Template(input, target, labels).warnings()
    assert said in found[0]
    assert all(text[0].isupper() and text.endswith(".") for text in found)


@pytest.mark.parametrize(
    ("input", "target", "labels"),
    [(INPUT, " {label}", ["x", "y"]), ("{a}\n", "{b}", None), ("", "{b}", None), ("{a}:", "\n{b}", None)],
)
def test_no_warnings(input: str, target: str, labels: Any) -> None:
    assert Template(input, target, labels).warnings() == []


def test_a_template_survives_json_and_equals_its_copy() -> None:
    template = Template(INPUT, " {label}", {0: "no", 1: "yes"})
    copy = Template(**json.loads(json.dumps(dataclasses.asdict(template))))
    assert copy == template
    assert hash(copy) == hash(template)
    assert dataclasses.replace(template, input="{text}:").candidates() == (" no", " yes")
    with pytest.raises(dataclasses.FrozenInstanceError):
        template.input = "x"  # type: ignore[misc]


class AlwaysBrace(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "{"


def test_random_templates_render_as_format_would_or_say_why() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choice("{}{}a b:!") for _ in range(rng.randint(1, 12)))
        try:
            template = Template(text, "x")
        except DataError:
            continue
        assert template.input_text(dict.fromkeys(template.input_fields, "{")) == text.format_map(
            AlwaysBrace()
        )
