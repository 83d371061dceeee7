"""Flags as settings: what is typed is what is set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.cli.flags import label_words, settings

FLAGS = ("data", "validation", "test", "input", "target", "labels", "name", "model", "front",
         "learning_rate", "epochs", "seed", "library")  # fmt: skip


def flags(**given: Any) -> dict[str, Any]:
    return dict.fromkeys(FLAGS) | {"overwrite": False, "input": "{x}", "target": " {y}"} | given


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("data/train.jsonl", "train"),
        ("my rows (1).csv", "my-rows-1"),
        ("bundled:bbc-news/train", "bbc-news"),
        ("hub:owner/name:config@main/train", "name-config-main"),
        (".jsonl", "jsonl"),
    ],
)
def test_the_name_is_that_of_the_data(data: str, name: str) -> None:
    assert settings(None, flags(data=data), ()).name == name


@pytest.mark.parametrize(
    "text", ['a "quoted" {x}', "[1, 2] {x}", "{x} = 3 # no", "日本 😀 {x}", "{x}\x7f", "'{x}'"]
)
def test_text_arrives_as_typed(text: str) -> None:
    assert settings(None, flags(data="d.jsonl", input=text), ()).data.input == text


def test_line_breaks_may_be_typed() -> None:
    found = settings(None, flags(data="d.jsonl", input=r"{x}\nA:\t", front=r"Hi\n{soft:3}"), ())
    assert found.data.input == "{x}\nA:\t"
    assert found.method.front == "Hi\n{soft:3}"


def test_labels_are_a_list_or_a_table() -> None:
    assert label_words("a, b,c d") == ["a", "b", "c d"]
    assert label_words("0=no,1=yes") == {"0": "no", "1": "yes"}
    found = settings(None, flags(data="d.jsonl", labels="0=no,1=yes"), ())
    assert found.data.labels == {"0": "no", "1": "yes"}


def test_set_wins_over_flags_and_flags_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('seed = 1\n[data]\ninput = "i {x}"\ntarget = "t"\ntrain = "t.jsonl"\n', encoding="utf-8")
    plain = flags(input=None, target=None)
    assert settings(str(file), plain, ()).seed == 1
    assert settings(str(file), plain | {"seed": 2}, ()).seed == 2
    assert settings(str(file), plain | {"seed": 2}, ("seed=3",)).seed == 3
    assert settings(str(file), plain, ()).data.train == str(tmp_path / "t.jsonl")
    assert settings(str(file), plain | {"data": "u.jsonl"}, ()).data.train == str(Path.cwd() / "u.jsonl")
    assert settings(str(file), plain, ()).name == "job"


def test_zero_is_a_value() -> None:
    found = settings(None, flags(data="d.jsonl", seed=0, epochs=0, learning_rate=1e-5), ())
    assert (found.train.epochs, found.train.learning_rate) == (0, 1e-5)
