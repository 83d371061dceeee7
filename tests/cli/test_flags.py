"""Flags as settings: what is typed is what is set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.cli.flags import label_words, settings

FLAGS = ("data", "validation", "test", "input", "target", "labels", "name", "model", "front",
         "learning_rate", "epochs", "seed", "seeds", "library")  # fmt: skip


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
    found = settings(None, flags(data="d.jsonl", input=r"{x}\nA:\t", front=(r"Hi\n{soft:3}",)), ())
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
    found = settings(None, flags(data="d.jsonl", seed=0, epochs=0, learning_rate=(1e-5,)), ())
    assert (found.train.epochs, found.train.learning_rate) == (0, 1e-5)


def test_several_values_are_tried_and_one_is_set() -> None:
    many = flags(data="d.jsonl", learning_rate=(0.01, 0.1), front=(r"A\n{soft:3}", "{soft:5}"), seeds=(0, 2))
    found = settings(None, many, ())
    assert found.search is not None
    assert found.search.grid == {
        "method.front": ["A\n{soft:3}", "{soft:5}"],
        "train.learning_rate": [0.01, 0.1],
    }
    assert found.seeds == [0, 2]
    one = settings(None, flags(data="d.jsonl", learning_rate=(0.1,), front=("{soft:5}",)), ())
    assert (one.search, one.train.learning_rate, one.method.front) == (None, 0.1, "{soft:5}")


def test_flags_win_over_what_a_file_tries(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(
        '[data]\ninput = "i {x}"\ntarget = "t"\ntrain = "t.jsonl"\n[search]\nseeds = [0, 1]\n'
        '[search.grid]\n"train.learning_rate" = [0.1, 0.2]\nmethod.front = ["{soft:1}", "{soft:2}"]\n',
        encoding="utf-8",
    )
    plain = flags(input=None, target=None)

    def grid(**given: Any) -> dict[str, list[Any]]:
        found = settings(str(file), plain | given, ()).search
        assert found is not None
        return found.grid

    fronts = ["{soft:1}", "{soft:2}"]
    assert grid() == {"train.learning_rate": [0.1, 0.2], "method.front": fronts}
    assert grid(learning_rate=(0.3,)) == {"train.learning_rate": [0.3], "method.front": fronts}
    assert grid(learning_rate=(0.3, 0.4)) == {"train.learning_rate": [0.3, 0.4], "method.front": fronts}
    assert settings(str(file), plain | {"seed": 5}, ()).seeds == [5]
    assert settings(str(file), plain | {"seeds": (5, 6)}, ()).seeds == [5, 6]
    assert settings(str(file), plain | {"seed": 5}, ("search.seeds=[7]",)).seeds == [7]
