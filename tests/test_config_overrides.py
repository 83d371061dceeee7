"""Tests of single settings given beside a configuration, as ``--set`` takes them."""

from __future__ import annotations

from typing import Any

import pytest

from configs import DATA, faults, settings
from softprompt.config import DataConfig, TextConfig, parse


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("train.learning_rate=3e-4", "train", "learning_rate", 3e-4),
        ("train.learning_rate = 1", "train", "learning_rate", 1.0),
        ("train.schedule=linear", "train", "schedule", "linear"),
        ('train.schedule="linear"', "train", "schedule", "linear"),
        ("train.clip=none", "train", "clip", None),
        ("data.chat=true", "data", "chat", True),
        ('data.labels=["a", 2]', "data", "labels", ["a", "2"]),
        ('data.labels={a="x", b="y"}', "data", "labels", {"a": "x", "b": "y"}),
        ("data.labels=none", "data", "labels", None),
        ("data.target= {label}", "data", "target", " {label}"),
        ("data.target='{label} '", "data", "target", "{label} "),
        ("data.input=a=b # c", "data", "input", "a=b # c"),
        ("data.input=1\nx = 2", "data", "input", "1\nx = 2"),
        ("data.input=none", "data", "input", "none"),
        ("method.front=", "method", "front", ""),
        ("base.revision=1e5", "base", "revision", "1e5"),
        ("base.revision=0012345", "base", "revision", "0012345"),
        ("base.revision=2024-01-01", "base", "revision", "2024-01-01"),
    ],
)
def test_an_override_is_read_as_toml_or_else_as_text(
    assignment: str, section: str, key: str, value: Any
) -> None:
    assert getattr(getattr(parse({"data": DATA}, [assignment]), section), key) == value


def test_overrides_reach_single_labels_and_quoted_ones() -> None:
    data = parse({"data": DATA}, ["data.labels.good=5", 'data.labels."very bad"=no']).data
    assert data.labels == {"good": "5", "very bad": "no"}


def test_a_later_override_wins_over_an_earlier_one_and_the_settings() -> None:
    config = parse(settings(seed=1), ["seed=2", "seed=3", "name=2024"])
    assert (config.seed, config.name) == (3, "2024")


def test_an_override_is_refused_by_name() -> None:
    assert faults({"data": DATA}, ("train.learning_rate=fast",)) == [
        "train.learning_rate: expected a number above 0, got 'fast'"
    ]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.learning_rat=1", "train.learning_rat is not known; did you mean train.learning_rate?"),
        ("trian.epochs=1", "trian is not known; did you mean train?"),
        ("train=5", "train: expected a section with the heading [train], got 5"),
        ("train.epochs.x=1", "train.epochs.x: train.epochs is a single value and has nothing inside"),
        ("train.epochs", "--set train.epochs: expected KEY=VALUE, such as train.epochs=3"),
        ("=3", "--set =3: expected KEY=VALUE, such as train.epochs=3"),
        ("train..epochs=3", "--set train..epochs=3: expected KEY=VALUE, such as train.epochs=3"),
    ],
)
def test_a_bad_override_path_says_so(assignment: str, message: str) -> None:
    assert faults(settings(train={"epochs": 1}), (assignment,)) == [message]


def test_the_given_settings_are_left_as_they_were() -> None:
    given = {"data": dict(DATA), "train": {"epochs": 1}}
    parse(given, ["train.epochs=2", "base.device=cpu"], folder="/somewhere")
    assert given == {"data": DATA, "train": {"epochs": 1}}


def test_sections_may_be_models_and_a_configuration_may_be_parsed_again() -> None:
    config = parse({"data": DataConfig(**DATA), "method": TextConfig()}, ["train.epochs=1"])
    assert config.method == TextConfig()
    again = parse(config, ["train.epochs=2"])
    assert again.train.epochs == 2
    assert parse(again, ["train.epochs=1"]) == config
