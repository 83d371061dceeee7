"""The file of a comparison: what it resolves to, and every way it can be wrong, in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.comparison.settings import load_comparison
from softprompt.comparison.suite import members
from softprompt.errors import ConfigError

DATA = {
    "train": "train.jsonl",
    "test": "test.jsonl",
    "input": "{text}",
    "target": " {label}",
    "labels": ["no", "yes"],
}


def method(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, **settings}


EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "compare").glob("*.toml"))


def fault(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_comparison({"data": DATA, **settings})
    return str(caught.value)


def test_the_standard_methods_get_the_same_number_of_trials() -> None:
    _, contenders = load_comparison({"data": DATA, "compare": {"trials": 4, "alternatives": False}})
    learn = [c for c in contenders if c.learns]
    assert [c.kind for c in learn] == ["prompt-tuning", "prefix-tuning", "lora", "full"]
    assert {len(c.trials) for c in learn} == {4}
    for contender in learn:
        rates = [contender.config(t, 0).train.learning_rate for t in range(4)]
        middle = contender.config(0, 0).method.rate
        assert rates[1] < middle < rates[2]
        assert rates == sorted(rates)


def test_a_trial_is_the_method_s_settings_over_the_file_s_with_its_own_on_top() -> None:
    _, (contender,) = load_comparison(
        {
            "data": DATA,
            "compare": {"alternatives": False},
            "train": {"epochs": 7, "batch_size": 4},
            "base": {"dtype": "float32"},
            "methods": [
                method(
                    "adapters",
                    method={"kind": "lora", "rank": 3},
                    train={"batch_size": 2},
                    base={"quantisation": "nf4"},
                    trials=[{"train.learning_rate": 0.5}, {"method.rank": 5, "data.retrieve": 2}],
                )
            ],
        }
    )
    first, second = (contender.config(trial, seed=9) for trial in range(2))
    assert (first.train.epochs, first.train.batch_size, first.train.learning_rate) == (7, 2, 0.5)
    assert (first.base.dtype, first.base.quantisation, first.seed) == ("float32", "nf4", 9)
    assert (first.method.rank, second.method.rank, second.data.retrieve) == (3, 5, 2)  # type: ignore[union-attr]
    assert second.train.learning_rate == second.method.rate


def test_a_method_may_read_the_rows_its_own_way() -> None:
    own = {"labels": {"no": "false", "yes": "true"}, "calibrate": True, "input": "Read: {text}"}
    _, (contender,) = load_comparison(
        {"data": DATA, "compare": {"alternatives": False}, "methods": [method("a", data=own)]}
    )
    data = contender.config(0, seed=0).data
    assert (data.labels, data.calibrate, data.input) == (own["labels"], True, "Read: {text}")


def test_paths_start_at_the_file_and_its_name_is_the_comparison_s(tmp_path: Path) -> None:
    file = tmp_path / "moods.toml"
    file.write_text(
        '[data]\ntrain = "a/train.jsonl"\ntest = "/b.csv"\ninput = "{t}"\ntarget = " {l}"\n'
        'labels = ["x", "y"]\n'
    )
    comparison, contenders = load_comparison(file)
    assert comparison.name == "moods"
    for data in (comparison.data, contenders[0].config(0, 0).data):
        assert (data.train, data.test) == (str(tmp_path / "a/train.jsonl"), "/b.csv")


def test_methods_that_learn_must_be_tuned_as_hard_as_each_other() -> None:
    said = fault(
        methods=[
            method("text", method={"kind": "text"}, trials=[{}, {}, {}]),
            method("soft", trials=[{"train.learning_rate": 0.1}]),
            method("adapters", method={"kind": "lora"}, trials=[{}, {"method.rank": 4}]),
        ]
    )
    assert "soft 1, adapters 2" in said
    assert "text" not in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"methods": [method("a"), method("a")]}, "methods: two methods are called 'a'"),
        ({"methods": [method("a", votes_of="b")]}, "methods: 'a' votes for 'b', no method above it"),
        ({"methods": [method("a"), method("v", votes_of="a", trials=[{}])]}, "cannot have trials as well"),
        (
            {"methods": [method("a"), method("v", votes_of="a"), method("w", votes_of="v")]},
            "methods: 'w' votes for 'v', which is a vote itself",
        ),
        (
            {
                "data": {k: v for k, v in DATA.items() if k != "labels"},
                "methods": [method("a"), method("v", votes_of="a")],
            },
            "methods, 'v': texts cannot be voted on",
        ),
        (
            {"methods": [method("a", metod={})]},
            "methods[0].metod is not known; did you mean methods[0].method",
        ),
        (
            {"methods": [method("a", method={"kind": "lora", "rnk": 3})]},
            "methods, 'a': method.rnk is not known",
        ),
        (
            {"methods": [method("a", trials=[{"rate": 3}])]},
            "methods, 'a': a trial sets 'rate'; name a setting",
        ),
        ({"methods": [method("a", trials=[])]}, "methods[0].trials"),
        (
            {"methods": [method("a", data={"validation": "test.jsonl"})]},
            "methods, 'a': data.validation is what all methods share",
        ),
        (
            {"methods": [method("a", trials=[{}, {"data.test_rows": 5}])]},
            "methods, 'a': data.test_rows is what all methods share",
        ),
        (
            {"methods": [method("a", data={"labels": ["yes", "no"]})]},
            "methods, 'a': data.labels may give other words, but of the same labels in the same order",
        ),
        ({"compare": {"seeds": [1, 1]}}, "compare.seeds: expected different whole numbers"),
        ({"compare": {"metric": "fun"}}, "compare.metric: expected one of auto, accuracy, macro_f1, nll"),
        ({"name": "../up"}, "name: expected a name of letters"),
        ({"data": {k: v for k, v in DATA.items() if k != "test"}}, "data.test: required and missing"),
    ],
    ids=str,
)
def test_a_fault_is_one_sentence(settings: dict[str, Any], said: str) -> None:
    assert said in fault(**settings)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_comparison_under_its_own_name(path: Path) -> None:
    several = members(path)
    for member in several:
        assert member.folder.parent.name == path.stem
    sources: list[Any] = [member.settings for member in several] or [path]
    for source in sources:
        comparison, contenders = load_comparison(source)
        assert sum(contender.learns for contender in contenders) > 1
        assert several or comparison.name == path.stem


def test_conversations_are_compared_from_a_file_and_are_the_same_for_all(tmp_path: Path) -> None:
    (tmp_path / "talks.toml").write_text(
        '[data]\ntrain = "talks.jsonl"\ntest = "later.jsonl"\nmessages = "messages"\n'
        '[[methods]]\nname = "soft"\n[[methods]]\nname = "text"\nmethod = {kind = "text"}\n'
        '[[methods]]\nname = "learnt"\nteacher = {file = "kind.txt", positions = 4}\n'
    )
    comparison, contenders = load_comparison(tmp_path / "talks.toml")
    assert comparison.data.train == str(tmp_path / "talks.jsonl")
    assert {c.config(0, 0).data.messages for c in contenders} == {"messages"}
    teacher = contenders[2].config(0, 0).teacher
    assert teacher is not None
    assert teacher.file == str(tmp_path / "kind.txt")
    talks = {"train": "a.jsonl", "test": "b.jsonl", "messages": "messages"}
    entry = {"name": "last", "data": {"answers": "last"}}
    with pytest.raises(ConfigError, match=r"'last': data\.answers is what all methods share"):
        load_comparison({"data": talks, "methods": [{"name": "all"}, entry]})
