"""Tests of the configuration: its defaults, its rules, and the wording of every fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from configs import DATA, faults, settings
from softprompt.config import (
    BaseConfig,
    Config,
    DataConfig,
    MethodConfig,
    OutputConfig,
    PromptTuningConfig,
    TextConfig,
    TrainConfig,
    load,
    parse,
)
from softprompt.errors import ConfigError

TOP_LEVEL = "name, seed, base, data, method, train, output, search, teacher"

SECTIONS: list[type[BaseModel]] = [
    BaseConfig,
    DataConfig,
    PromptTuningConfig,
    TextConfig,
    TrainConfig,
    OutputConfig,
    Config,
]
TOP = "name, seed, base, data, method, train, output, search"


def prompt_tuning(config: Config) -> PromptTuningConfig:
    assert isinstance(config.method, PromptTuningConfig)
    return config.method


# The schema --------------------------------------------------------------------------------------


def test_defaults_are_the_documented_ones() -> None:
    config = parse({"data": DATA})
    assert (config.name, config.seed) == ("prompt", 0)
    assert config.base == BaseConfig(
        model="smollm2-135m", revision=None, dtype="auto", device="auto", trust_remote_code=False
    )
    assert config.data == DataConfig(
        train=None,
        validation=None,
        test=None,
        labels=None,
        label_column=None,
        loss_on="target",
        end_of_text=None,
        max_tokens=512,
        train_rows=None,
        validation_rows=None,
        test_rows=None,
        validation_fraction=0.2,
        chat=False,
        **DATA,
    )
    assert config.method == PromptTuningConfig(
        kind="prompt-tuning",
        front="{soft:20}",
        init="vocabulary",
        init_text=None,
        init_artifact=None,
        reparametrisation="none",
        reparametrisation_width=64,
    )
    assert config.train == TrainConfig(
        learning_rate=0.15,
        epochs=3,
        max_steps=None,
        min_steps=200,
        batch_size=16,
        accumulation=1,
        optimizer="adamw",
        weight_decay=0.0,
        schedule="cosine",
        warmup=0.06,
        clip=1.0,
        evaluate_every=None,
        patience=None,
        checkpoint_every=50,
        select="auto",
        threads=None,
    )
    assert config.output == OutputConfig(library="prompts", runs="runs", tensorboard=False, overwrite=False)


def test_every_field_says_what_it_is() -> None:
    for section in SECTIONS:
        for name, field in section.model_fields.items():
            description = field.description or ""
            assert description, f"{section.__name__}.{name}"
            assert "\n" not in description


def test_configurations_are_frozen() -> None:
    config = parse({"data": DATA})
    parts: list[tuple[BaseModel, str]] = [
        (config, "seed"),
        (config.train, "epochs"),
        (config.method, "front"),
    ]
    for part, name in parts:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, 1)


def test_importing_the_configuration_imports_no_torch() -> None:
    code = "import sys, softprompt.config; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_whole_numbers_serve_as_numbers() -> None:
    train = parse(settings(train={"learning_rate": 1, "clip": 2})).train
    assert (train.learning_rate, train.clip) == (1.0, 2.0)
    assert isinstance(train.learning_rate, float)
    assert isinstance(train.clip, float)


@pytest.mark.parametrize("name", ["a", "bbc-topics", "v1.2_x", "-", "x" * 100])
def test_names_that_can_be_a_folder_are_accepted(name: str) -> None:
    assert parse(settings(name=name)).name == name


@pytest.mark.parametrize("name", ["", ".", "..", ".git", "a/b", "a b", "a\n", "é", "x" * 101, "a\\b"])
def test_names_that_cannot_be_a_folder_are_refused(name: str) -> None:
    (fault,) = faults(settings(name=name))
    assert fault.startswith("name: expected 1 to 100 of the letters")


# Labels ------------------------------------------------------------------------------------------


def test_label_lists_become_text() -> None:
    assert parse(settings(data={"labels": ["yes", 0, 12, True, False]})).data.labels == [
        "yes",
        "0",
        "12",
        "true",
        "false",
    ]


def test_label_tables_become_text_and_keep_their_order() -> None:
    labels = parse(settings(data={"labels": {"z": "bad", 1: True, "a": 3}})).data.labels
    assert isinstance(labels, dict)
    assert list(labels.items()) == [("z", "bad"), ("1", "true"), ("a", "3")]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["a"], "expected at least two labels, got 1"),
        ([], "expected at least two labels, got 0"),
        ({}, "expected at least two labels, got 0"),
        (["a", 1.5], "expected labels that are text, whole numbers, true or false, got 1.5"),
        (["a", ""], "expected labels that are text, whole numbers, true or false, got ''"),
        (["a", ["b"]], "expected labels that are text, whole numbers, true or false, got ['b']"),
        (["1", "b", 1], "the label '1' stands there twice"),
        ({"a": "yes", "b": "yes"}, "the word 'yes' stands there twice"),
        ("a,b", 'expected a list of labels, a table of label = "word" or "auto", got \'a,b\''),
        (["a\udce9", "b"], "expected text that can be written as UTF-8, got 'a\\udce9'"),
    ],
)
def test_labels_that_cannot_be_told_apart_or_written_are_refused(labels: Any, reason: str) -> None:
    assert faults(settings(data={"labels": labels})) == [f"data.labels: {reason}"]


@pytest.mark.parametrize(
    ("labels", "end_of_text", "ends"),
    [
        (None, None, True),
        (["a", "b"], None, False),
        (None, False, False),
        (["a", "b"], True, True),
        (["a", "b"], "none", False),
    ],
)
def test_free_text_ends_and_labels_do_not_unless_told(labels: Any, end_of_text: Any, ends: bool) -> None:
    assert parse(settings(data={"labels": labels, "end_of_text": end_of_text})).data.ends is ends


# Methods -----------------------------------------------------------------------------------------


def test_a_method_without_a_kind_is_prompt_tuning() -> None:
    assert parse(settings(method={"front": "Hi {soft:3}"})).method == PromptTuningConfig(front="Hi {soft:3}")


def test_the_text_method_starts_with_nothing_in_front() -> None:
    assert parse(settings(method={"kind": "text"})).method == TextConfig(kind="text", front="")


@pytest.mark.parametrize(("kind", "hint"), [("prompt-tunning", "prompt-tuning"), ("TEXT", "text")])
def test_an_unknown_kind_lists_the_kinds_and_the_nearest(kind: str, hint: str) -> None:
    kinds = "prompt-tuning, prefix-tuning, text, lora, ia3, full, classifier"
    expected = f"method.kind: expected one of {kinds}, got '{kind}'; did you mean {hint}?"
    assert faults(settings(method={"kind": kind})) == [expected]


@pytest.mark.parametrize(("kind", "seen"), [(3, "3"), ([1], "[1]"), (None, "nothing"), ("zz", "'zz'")])
def test_a_kind_that_is_nothing_like_one_lists_the_kinds(kind: Any, seen: str) -> None:
    kinds = "prompt-tuning, prefix-tuning, text, lora, ia3, full, classifier"
    expected = f"method.kind: expected one of {kinds}, got {seen}"
    assert faults(settings(method={"kind": kind})) == [expected]


def test_every_kind_can_be_chosen_by_its_name() -> None:
    union, _ = get_args(MethodConfig)
    for method in get_args(union):
        kind = method.model_fields["kind"].default
        assert type(parse(settings(method={"kind": kind})).method) is method


def test_a_setting_of_another_kind_is_said_to_be_one() -> None:
    assert faults(settings(method={"kind": "text", "init": "random"})) == [
        "method.init is a setting of methods of the kind prompt-tuning, not of this one"
    ]


@pytest.mark.parametrize(
    ("method", "labels", "init"),
    [
        ({}, None, "vocabulary"),
        ({}, ["a", "b"], "labels"),
        ({"init_text": "Name it."}, None, "text"),
        ({"init_text": "Name it."}, ["a", "b"], "text"),
        ({"init_artifact": "old"}, None, "artifact"),
        ({"init": "text", "init_text": "Name it."}, ["a", "b"], "text"),
        ({"init": "random"}, ["a", "b"], "random"),
        ({"init": "vocabulary"}, ["a", "b"], "vocabulary"),
        ({"init": "artifact", "init_artifact": "old"}, None, "artifact"),
    ],
)
def test_init_is_resolved(method: dict[str, Any], labels: Any, init: str) -> None:
    assert prompt_tuning(parse(settings(method=method, data={"labels": labels}))).init == init


def test_init_is_resolved_when_there_is_no_method_section() -> None:
    assert prompt_tuning(parse(settings(data={"labels": ["a", "b"]}))).init == "labels"


@pytest.mark.parametrize("init", ["text", "artifact"])
def test_init_needs_its_source(init: str) -> None:
    assert faults(settings(method={"init": init})) == [
        f'method.init_{init}: required and missing, because method.init is "{init}"'
    ]


def test_init_from_labels_needs_labels() -> None:
    assert faults(settings(method={"init": "labels"})) == [
        'method.init: "labels" needs data.labels, which is missing'
    ]


# Faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "value", "reason"),
    [
        ("train", "learning_rate", "fast", "expected a number above 0, got 'fast'"),
        ("train", "learning_rate", 0, "expected a number above 0, got 0"),
        ("train", "learning_rate", True, "expected a number above 0, got true"),
        ("train", "learning_rate", float("inf"), "expected a finite number above 0, got inf"),
        ("train", "learning_rate", float("nan"), "expected a finite number above 0, got nan"),
        ("train", "learning_rate", None, "expected a number above 0, got nothing"),
        ("train", "epochs", -1, "expected a whole number of at least 0, got -1"),
        ("train", "epochs", "3", "expected a whole number of at least 0, got '3'"),
        ("train", "max_steps", -1, 'expected a whole number of at least 0 or "none", got -1'),
        ("train", "batch_size", 0, "expected a whole number of at least 1, got 0"),
        ("train", "batch_size", 2.0, "expected a whole number of at least 1, got 2.0"),
        ("train", "accumulation", 0, "expected a whole number of at least 1, got 0"),
        ("train", "accumulation", 17, "expected at most train.batch_size, which is 16, got 17"),
        (
            "train",
            "optimizer",
            "adam",
            "expected one of adamw, adafactor, got 'adam'; did you mean adamw?",
        ),
        ("train", "weight_decay", -0.1, "expected a number of at least 0, got -0.1"),
        ("train", "schedule", "step", "expected one of cosine, linear, constant, got 'step'"),
        ("train", "warmup", 1, "expected a number of at least 0 and below 1, got 1"),
        ("train", "warmup", -0.1, "expected a number of at least 0 and below 1, got -0.1"),
        ("train", "clip", 0, 'expected a number above 0 or "none", got 0'),
        ("train", "evaluate_every", 0, 'expected a whole number of at least 1 or "none", got 0'),
        ("train", "patience", 0, 'expected a whole number of at least 1 or "none", got 0'),
        ("train", "checkpoint_every", 0, "expected a whole number of at least 1, got 0"),
        ("train", "select", "f1", "expected one of auto, accuracy, nll, got 'f1'"),
        ("train", "threads", 0, 'expected a whole number of at least 1 or "none", got 0'),
        ("data", "max_tokens", 7, "expected a whole number of at least 8, got 7"),
        ("data", "train_rows", 0, 'expected a whole number of at least 1 or "none", got 0'),
        ("data", "validation_fraction", 0, "expected a number above 0 and below 1, got 0"),
        ("data", "validation_fraction", 1.0, "expected a number above 0 and below 1, got 1.0"),
        ("data", "chat", "yes", "expected true or false, got 'yes'"),
        ("data", "end_of_text", 1, 'expected true or false or "none", got 1'),
        ("data", "loss_on", "all", "expected one of target, text, got 'all'"),
        ("data", "input", 5, "expected text in quotes, got 5"),
        ("data", "target", "", "expected text in quotes that is not empty, got ''"),
        ("data", "train", "", "expected text in quotes that is not empty, got ''"),
        ("data", "train", ["a", "b"], "expected text in quotes that is not empty, got ['a', 'b']"),
        ("data", "input", "\udce9", "expected text that can be written as UTF-8, got '\\udce9'"),
        (
            "base",
            "dtype",
            "floot16",
            "expected one of auto, float32, bfloat16, float16, got 'floot16'; did you mean float16?",
        ),
        ("base", "trust_remote_code", 1, "expected true or false, got 1"),
        ("base", "model", "", "expected text in quotes that is not empty, got ''"),
        ("method", "reparametrisation_width", 0, "expected a whole number of at least 1, got 0"),
        ("output", "overwrite", "no", "expected true or false, got 'no'"),
    ],
)
def test_a_wrong_value_is_refused_by_name(section: str, key: str, value: Any, reason: str) -> None:
    assert faults(settings(**{section: {key: value}})) == [f"{section}.{key}: {reason}"]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_its_range_is_refused(seed: int) -> None:
    expected = f"seed: expected a whole number of at least 0 and at most 4294967295, got {seed}"
    assert faults(settings(seed=seed)) == [expected]


def test_a_long_value_is_shortened() -> None:
    (fault,) = faults(settings(train={"epochs": "x" * 5000}))
    assert len(fault) < 150


def test_what_is_required_is_asked_for_with_its_meaning() -> None:
    expected = [
        "data.input: required and missing; it is the template of what the model reads, "
        'such as "Headline: {text}"',
        "data.target: required and missing; it is the template of what the model should write, "
        'such as " {label}"',
    ]
    assert faults({}) == expected
    assert faults({"data": {}}) == expected


def test_all_faults_come_in_one_message_one_line_each() -> None:
    given = {
        "name": ".x",
        "sed": 3,
        "base": {"dtype": "fp"},
        "data": {"input": 3, "labels": ["a"]},
        "method": {"init": "text", "width": 3},
        "train": {"learning_rate": "fast", "accumulation": 32, "learning_rat": 1},
    }
    found = faults(given, ("output.runs", "output.overwrite=maybe"))
    assert [line.split(":")[0].split(" is ")[0] for line in found] == [
        "--set output.runs",
        "name",
        "base.dtype",
        "data.input",
        "data.target",
        "data.labels",
        "method.init_text",
        "method.width",
        "train.learning_rate",
        "train.accumulation",
        "train.learning_rat",
        "output.overwrite",
        "sed",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"train": {"learning_rat": 1}},
            "train.learning_rat is not known; did you mean train.learning_rate?",
        ),
        (
            {"train": {"Learning-Rate": 1}},
            "train.Learning-Rate is not known; did you mean train.learning_rate?",
        ),
        ({"trian": {"epochs": 1}}, "trian is not known; did you mean train?"),
        ({"training": {}}, "training is not known; did you mean train?"),
        ({"learning_rate": 1}, "learning_rate is not known; did you mean train.learning_rate?"),
        ({"learning_rat": 1}, "learning_rat is not known; did you mean train.learning_rate?"),
        ({"train": {"model": "x"}}, "train.model is not known; did you mean base.model?"),
        ({"train": {"seed": 1}}, "train.seed is not known; did you mean seed?"),
        ({"method": {"fron": ""}}, "method.fron is not known; did you mean method.front?"),
        (
            {"output": {"zzz": 1}},
            "output.zzz is not known; output knows library, runs, tensorboard, overwrite",
        ),
        (
            {"zzz": 1},
            f"zzz is not known; the top level knows {TOP_LEVEL}",
        ),
        (
            {1: 2},
            f"1 is not known; the top level knows {TOP_LEVEL}",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(given: dict[str, Any], message: str) -> None:
    assert faults({"data": DATA, **given}) == [message]


@pytest.mark.parametrize("section", ["base", "data", "method", "train", "output"])
@pytest.mark.parametrize(("value", "seen"), [(5, "5"), ([{}], "[{}]"), ("x", "'x'"), (None, "nothing")])
def test_a_section_that_is_none_is_refused(section: str, value: Any, seen: str) -> None:
    assert faults({"data": DATA, section: value}) == [
        f"{section}: expected a section with the heading [{section}], got {seen}"
    ]


def test_settings_that_are_no_table_are_refused() -> None:
    assert faults([1]) == ["A configuration is a table of settings, not [1]."]


def test_other_spellings_are_of_labels_and_change_no_digest_where_there_are_none() -> None:
    rows = {"input": "{t}", "target": " {l}", "labels": ["a", "b"]}
    plain = parse({"data": rows})
    assert "label_aliases" not in plain.model_dump(mode="json")["data"]
    told = parse({"data": {**rows, "label_aliases": {"A": "a"}}})
    assert parse(told.model_dump(mode="json")) == told != plain
    for aliases, said in (({"A": "c"}, "'c' is no label"), ({"a": "b"}, "'a' is a label")):
        with pytest.raises(ConfigError, match=said):
            parse({"data": {**rows, "label_aliases": aliases}})
    with pytest.raises(ConfigError, match=r"label_aliases: needs data\.labels"):
        parse({"data": {"input": "{t}", "target": " {l}", "label_aliases": {"A": "a"}}})


def test_separators_and_long_targets_change_no_digest_where_they_are_off() -> None:
    rows = {"input": "{t}", "target": " {l}", "train": "rows.csv.gz"}
    plain = parse({"data": rows}).model_dump(mode="json")["data"]
    assert not {"separator", "long_targets"} & plain.keys()
    told = parse({"data": {**rows, "separator": "\t", "long_targets": "cut"}})
    assert parse(told.model_dump(mode="json")) == told
    for wrong, said in (
        ({"separator": "::"}, "data.separator"),
        ({"separator": "\n"}, "expected a letter that may stand between columns"),
        ({"separator": ";", "train": "rows.json"}, r"is for \.csv and \.tsv files, and no source is one"),
        ({"long_targets": "cut", "labels": ["a", "b"]}, "cannot cut labels and choices"),
        ({"long_targets": "shorten"}, "expected one of refuse, drop, cut"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse({"data": {**rows, **wrong}})
    parse({"data": {**rows, "long_targets": "drop", "labels": ["a", "b"]}})


def test_a_recipe_is_loaded_by_its_name_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("bbc-topics", ["seed=3"]).data.train == "bundled:bbc-news/train"
    Path("bbc-topics").write_text('name = "mine"\n[data]\ninput = "i"\ntarget = "t"\n', encoding="utf-8")
    assert load("bbc-topics").name == "mine"


def test_a_length_nobody_gave_suits_the_method_and_one_that_was_given_stands() -> None:
    def least(kind: str, **train: Any) -> int | None:
        return parse(settings(method={"kind": kind}, train=train)).train.min_steps

    assert [least(kind) for kind in ("prompt-tuning", "prefix-tuning", "lora", "full", "text")] == [
        200,
        100,
        100,
        100,
        None,
    ]
    for given in ({"epochs": 3}, {"max_steps": 5}, {"min_steps": "none"}):
        assert least("lora", **given) is None
    assert (
        "min_steps" not in parse(settings(train={"epochs": 3})).model_dump()["train"]
    )  # as it was kept before
