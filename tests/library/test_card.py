"""A card comes back as it was, and every fault in one names the file and the field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from library import samples
from softprompt.errors import ArtifactError
from softprompt.evaluation.score import Scores
from softprompt.library.card import CARD_FILE, Card, card_json, read_card


def put(folder: Path, values: Any) -> Path:
    text = values if isinstance(values, str) else json.dumps(values)
    (folder / CARD_FILE).write_text(text)
    return folder


def with_field(path: str, value: Any) -> dict[str, Any]:
    """A good card's values with one field replaced, added or, by ``...``, taken out."""
    values = samples.card_values()
    *outer, last = path.split("/")
    node = values
    for key in outer:
        node = node[key]
    node[last] = value
    if value is ...:
        del node[last]
    return values


def test_a_card_comes_back_with_its_labels_in_order(tmp_path: Path) -> None:
    card = samples.card(weights_sha256="ab" * 32)
    put(tmp_path, card_json(card))
    again = read_card(tmp_path)
    assert again == card
    assert list(again.template.labels or ()) == ["sport", "business"]


def test_scores_are_kept_as_json_values() -> None:
    scores = Scores(4, 0.5, (0.4, 0.6), 0.75, (0.3, 0.95), (1, 0, 1, 1)).summary()
    card = samples.card(scores={"test": scores})
    assert card.scores["test"]["nll_interval"] == [0.4, 0.6]
    assert Card.model_validate_json(card_json(card)) == card


def test_a_card_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        samples.card().name = "other"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("position", 4, "unknown field position (did you mean positions?)"),
        ("base/finger_print", "x", "unknown field base.finger_print (did you mean fingerprint?)"),
        ("data/train/row", 5, "unknown field data.train.row (did you mean rows?)"),
        ("zzz", 5, "unknown field zzz;"),
        ("format", 2, "made by a newer softprompt (format 2, this one reads 1); upgrade softprompt."),
        ("format", "1", "the field format should be 1, got '1'"),
        ("format", True, "the field format should be 1, got true"),
        ("format", ..., "the field format should be 1, got nothing"),
        ("template/input", ..., "the field template.input is missing"),
        ("positions", "4", "the field positions should be a valid integer, got '4'"),
        ("positions", -1, "the field positions should be greater than or equal to 0, got -1"),
        ("base", "llama", "the field base should be a valid dictionary"),
        ("base/fingerprint", "abc", "the field base.fingerprint"),
        ("base/fingerprint", "sha256:" + "a" * 64 + "\n", "the field base.fingerprint"),
        ("weights_sha256", "AB" * 32, "the field weights_sha256"),
        ("created", "yesterday", "the field created: should be an ISO 8601 time in UTC, got 'yesterday'"),
        ("created", "2026-05-01T12:00:00+02:00", "should be an ISO 8601 time in UTC"),
        ("created", "2026-05-01T12:00:00", "should be an ISO 8601 time in UTC"),
        ("template/target", "none", "the field template: The target template 'none' must hold one field"),
        ("template/input", "{text[0]}", "only the name of a column may stand in braces"),
        ("template/labels", ["a", "b"], "the field template.labels should be a valid dictionary"),
        ("scores/test/accuracy", "1e999", "scores.test.accuracy should be a finite number, got inf"),
        ("name", "half \ud800 a letter", "name holds half a character"),
        ("settings/seed", 2**64, "settings.seed should be a number of 64 bits"),
        ("data/train/rows", 10**400, "data.train.rows should be a number of 64 bits"),
        ("settings/a\nb", {"\ud800": 1}, "half a character"),
    ],
)
def test_a_wrong_field_is_named(path: str, value: Any, said: str, tmp_path: Path) -> None:
    text = json.dumps(with_field(path, value))
    if value == "1e999":  # JSON for infinity, without the word
        text = text.replace('"1e999"', "1e999")
    put(tmp_path, text)
    with pytest.raises(ArtifactError) as caught:
        read_card(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path / CARD_FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not valid JSON"),
        ("{'name': 1}", "is not valid JSON"),
        ('{"positions": NaN}', "it holds the number NaN"),
        ("[" * 50_000, "nested too deeply"),
        ("[]", "is not a JSON object"),
        (" " * (4 * 2**20 + 1), "is larger than 4,194,304 bytes"),
    ],
    ids=["empty", "python", "nan", "deep", "list", "large"],
)
def test_what_is_no_card_is_refused(text: str, said: str, tmp_path: Path) -> None:
    put(tmp_path, text)
    with pytest.raises(ArtifactError) as caught:
        read_card(tmp_path)
    assert said in str(caught.value)


def test_settings_may_not_be_nested_without_end(tmp_path: Path) -> None:
    nested: Any = 1
    for _ in range(100):
        nested = [nested]
    put(tmp_path, with_field("settings", {"a": nested}))
    with pytest.raises(ArtifactError, match=r"settings\.a\.0.* is nested too deeply"):
        read_card(tmp_path)


def test_a_missing_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no softprompt\.json"):
        read_card(tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf, {1, 2}, {3: "x"}])
def test_python_cannot_put_into_a_card_what_json_cannot_hold(bad: Any) -> None:
    with pytest.raises(ValidationError):
        samples.card(settings={"a": [bad]})
    with pytest.raises(ValidationError):
        samples.card(scores={"test": {"nll": bad}})


def test_a_card_too_large_to_be_read_is_not_written() -> None:
    with pytest.raises(ArtifactError, match="larger than 4,194,304 bytes"):
        card_json(samples.card(settings={"a": "x" * 2**22}))


@pytest.mark.parametrize(
    ("data", "told"),
    [({"separator": ";"}, ";"), ({"separator": "::"}, None), ({"separator": '"'}, None), (5, None)],
)
def test_a_card_tells_its_separator_where_it_has_one(data: Any, told: str | None) -> None:
    card = samples.card(settings={"data": data})
    assert card.separator == told
    assert card.conversations(("text",)) == (None, None)
