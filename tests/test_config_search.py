"""The section [search]: the candidates it makes, and every way it can be wrong, in one sentence."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from softprompt.config import Config, candidates, digest, dump_toml, parse
from softprompt.errors import ConfigError

DATA = {"input": "{text}", "target": " {label}"}
LABELS = {**DATA, "labels": ["a", "b"]}


def made(search: Any, data: dict[str, Any] = LABELS, **sections: Any) -> Config:
    return parse({"data": data, "search": search, **sections})


def test_every_combination_is_a_candidate_with_all_its_settings() -> None:
    config = made({"grid": {"train.learning_rate": [0.1, 1], "method.front": ["{soft:3}", "{soft:5}"]}})
    found = [(c.train.learning_rate, c.method.front) for _, c in candidates(config)]
    assert found == [(0.1, "{soft:3}"), (0.1, "{soft:5}"), (1.0, "{soft:3}"), (1.0, "{soft:5}")]
    assert candidates(config)[0][0] == {"train.learning_rate": 0.1, "method.front": "{soft:3}"}
    for changes, candidate in candidates(config):
        train = {"learning_rate": changes["train.learning_rate"]}
        assert candidate == parse(
            {"data": LABELS, "train": train, "method": {"front": changes["method.front"]}}
        )


def test_settings_may_be_nested_or_dotted_and_lists_of_lists() -> None:
    dotted = made({"grid": {"method.rank": [1, 2]}}, method={"kind": "lora"})
    assert made({"grid": {"method": {"rank": [1, 2]}}}, method={"kind": "lora"}) == dotted
    targets = made({"grid": {"method.targets": ["all-linear", ["q", "v"]]}}, method={"kind": "lora"})
    assert [c.method.model_dump()["targets"] for _, c in candidates(targets)] == ["all-linear", ["q", "v"]]


def test_what_follows_from_a_tried_setting_is_found_anew() -> None:
    grid = {"method.init_text": ["Sort it.", "Name it."]}
    config = made({"grid": grid}, DATA, method={"front": "{soft:3}"})
    assert config.method.model_dump()["init"] == "vocabulary"
    assert [c.method.model_dump()["init"] for _, c in candidates(config)] == ["text", "text"]


def test_without_a_search_there_is_one_candidate_and_nothing_is_written_of_it() -> None:
    plain = parse({"data": LABELS})
    assert candidates(plain) == [({}, plain)]
    assert (plain.seeds, plain.names) == ([0], ["prompt"])
    assert "search" not in plain.model_dump()
    assert "search" not in plain.model_dump(mode="json", exclude={"output"})
    assert "search" not in dump_toml(plain)
    assert digest(made("none")) == digest(plain)


def test_a_search_is_written_and_read_again() -> None:
    config = made(
        {"grid": {"train": {"learning_rate": [0.01, 1]}, "method.front": ["a\n{soft:1}"]}, "seeds": [2]}
    )
    assert parse(tomllib.loads(dump_toml(config))) == config
    assert parse(config.model_dump()) == config
    assert digest(config) != digest(parse({"data": LABELS}))


def test_the_names_of_seeds_are_known_beforehand() -> None:
    assert made({"seeds": [4, 2]}, name="a").names == ["a", "a-seed4", "a-seed2"]
    assert made({"seeds": [4]}, name="a").names == ["a"]


@pytest.mark.parametrize(
    ("search", "reason"),
    [
        (3, "search: expected a section with the heading [search], got 3"),
        ({"sedes": [1]}, "search.sedes is not known; did you mean search.seeds?"),
        ({"halving": 0}, "search.halving: expected a whole number of at least 1, got 0"),
        ({"seeds": []}, "search.seeds: expected 1 to 64 whole numbers, such as [0, 1, 2], got []"),
        ({"seeds": 3}, "search.seeds: expected 1 to 64 whole numbers, such as [0, 1, 2], got 3"),
        ({"seeds": [True]}, "search.seeds: expected 1 to 64 whole numbers, such as [0, 1, 2], got [True]"),
        ({"seeds": [-1]}, "search.seeds: expected 1 to 64 whole numbers, such as [0, 1, 2], got [-1]"),
        ({"seeds": [1, 1]}, "search.seeds: expected different seeds, got [1, 1]"),
        (
            {"grid": 3},
            "search.grid: expected lists by setting, such as train.learning_rate = [0.01, 0.03], got 3",
        ),
        (
            {"grid": {"train.learning_rate": []}},
            "search.grid.train.learning_rate: expected a list of values to try, got []",
        ),
        (
            {"grid": {"train.learning_rate": 0.1}},
            "search.grid.train.learning_rate: expected a list of values to try, got 0.1",
        ),
        (
            {"grid": {"train.learning_rate": [0.1, 0, 0.2]}},
            "search.grid.train.learning_rate: expected a number above 0, got 0",
        ),
        (
            {"grid": {"train.learning_rate": [0.1, 0.1]}},
            "search.grid.train.learning_rate: 0.1 stands there twice",
        ),
        (
            {"grid": {"train.learning_rat": [0.1]}},
            "search.grid.train.learning_rat is not known; did you mean train.learning_rate?",
        ),
        (
            {"grid": {"learning_rate": [0.1]}},
            "search.grid.learning_rate: expected a setting of method or train; "
            "did you mean train.learning_rate?",
        ),
        (
            {"grid": {"data.input": ["{a}", "{b}"]}},
            "search.grid.data.input: expected a setting of method or train, such as train.learning_rate",
        ),
        (
            {"grid": {"method.kind": ["lora"]}},
            "search.grid.method.kind: this is the same for all candidates; set it outside the grid",
        ),
        (
            {"grid": {"method.positions": [3]}},
            "search.grid.method.positions is a setting of methods of the kind prefix-tuning, not of this one",
        ),
        (
            {"grid": {"train.epochs": [1, 2, 3, 4, 5, 6, 7, 8], "method.front": [str(n) for n in range(9)]}},
            "search.grid: this makes 72 candidates, more than 64; try fewer values",
        ),
        (
            {"grid": {"train.epochs": [0, 1]}},
            "search: nothing is trained; choose a method.kind that learns, and train.epochs above 0",
        ),
    ],
)
def test_a_wrong_search_is_refused_by_name(search: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(search)
    assert str(caught.value) == reason


@pytest.mark.parametrize("sections", [{"method": {"kind": "text"}}, {"train": {"max_steps": 0}}])
def test_a_search_that_trains_nothing_is_refused(sections: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="search: nothing is trained"):
        made({"seeds": [0, 1]}, **sections)


def test_a_name_too_long_for_its_seeds_is_refused() -> None:
    with pytest.raises(ConfigError, match="x-seed0 would be too long a name"):
        made({"seeds": [0, 1]}, name="x" * 98)
