"""SuperGLUE: official files and the hub's rows become the same plain columns; every task is ready to use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from softprompt.config import DataConfig, parse
from softprompt.data import superglue
from softprompt.data.sources import read
from softprompt.data.table import Table
from softprompt.data.task import load_task
from softprompt.data.template import Template
from softprompt.errors import ConfigError, DataError
from softprompt.evaluation.superglue import HEADLINE, official

NLI = {"premise": "It rains.", "hypothesis": "It is wet", "idx": 3}
WIC = {"word": "bank", "sentence1": "A river bank.", "sentence2": "A bank lends.", "idx": 0, "start1": 8}
COPA = {
    "premise": "The grass was wet.",
    "choice1": "It rained.",
    "choice2": "I mowed it.",
    "question": "cause",
    "idx": 1,
}
MULTIRC = {
    "idx": 7,
    "version": 1.1,
    "passage": {
        "text": "Ann has a cat and a dog.",
        "questions": [
            {
                "question": "What has Ann?",
                "idx": 20,
                "answers": [
                    {"text": "A cat", "idx": 1, "label": 1},
                    {"text": "A cow", "idx": 2, "label": 0},
                ],
            },
            {"question": "Who?", "idx": 21, "answers": [{"text": "Ann", "idx": 3, "label": 1}]},
        ],
    },
}
RECORD = {
    "source": "Paper",
    "idx": 4,
    "passage": {
        "text": "Ann met Bob in Rome.\n@highlight\nBob likes Rome",
        "entities": [
            {"start": 0, "end": 2},
            {"start": 8, "end": 10},
            {"start": 15, "end": 18},
            {"start": 32, "end": 34},
        ],
    },
    "qas": [
        {
            "idx": 9,
            "query": "@placeholder was happy",
            "answers": [{"start": 8, "end": 10, "text": "Bob"}] * 2,
        },
        {"idx": 10, "query": "They saw @placeholder", "answers": [{"start": 15, "end": 18, "text": "Rome"}]},
    ],
}
WSC = {
    "text": "The cup fell as it was full.",
    "target": {"span1_index": 1, "span1_text": "cup", "span2_index": 4, "span2_text": "it"},
    "label": True,
}

# For each task: official rows, the hub's rows, and the first row that either gives.
ROWS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]] = {
    "boolq": (
        [{"passage": "Tea is hot.", "question": "is tea hot", "idx": 0, "label": True}],
        [{"passage": "Tea is hot.", "question": "is tea hot", "idx": 0, "label": 1}],
        {"passage": "Tea is hot.", "question": "is tea hot", "label": "true"},
    ),
    "cb": (
        [NLI | {"label": "neutral"}],
        [NLI | {"label": 2}],
        {"premise": "It rains.", "hypothesis": "It is wet", "label": "neutral"},
    ),
    "copa": (
        [COPA | {"label": 0}],
        [COPA | {"label": 0}],
        {
            "premise": "The grass was wet.",
            "choice1": "It rained.",
            "choice2": "I mowed it.",
            "question": "cause",
            "statement": "The grass was wet",
            "link": "because",
            "choices": ["it rained.", "I mowed it."],
            "label": 0,
        },
    ),
    "multirc": (
        [MULTIRC],
        [
            {
                "paragraph": "Ann has a cat and a dog.",
                "question": question,
                "answer": answer,
                "label": label,
                "idx": {"paragraph": 7, "question": number, "answer": 0},
            }
            for question, number, answer, label in (
                ("What has Ann?", 20, "A cat", 1),
                ("What has Ann?", 20, "A cow", 0),
                ("Who?", 21, "Ann", 1),
            )
        ],
        {
            "passage": "Ann has a cat and a dog.",
            "question": "What has Ann?",
            "answer": "A cat",
            "label": "true",
            "question_id": "7-20",
        },
    ),
    "record": (
        [RECORD],
        [
            {
                "passage": "Ann met Bob in Rome.\n@highlight\nBob likes Rome",
                "query": query,
                "entities": ["Ann", "Bob", "Rome"],
                "answers": answers,
                "idx": {"passage": 4, "query": 9},
            }
            for query, answers in (("@placeholder was happy", ["Bob"]), ("They saw @placeholder", ["Rome"]))
        ],
        {
            "passage": "Ann met Bob in Rome.\n- Bob likes Rome",
            "query": "_____ was happy",
            "entities": ["Ann", "Bob", "Rome"],
            "answers": ["Bob"],
        },
    ),
    "rte": (
        [NLI | {"label": "not_entailment"}],
        [NLI | {"label": 1}],
        {"premise": "It rains.", "hypothesis": "It is wet", "label": "not_entailment"},
    ),
    "wic": (
        [WIC | {"label": False}],
        [WIC | {"label": 0}],
        {"word": "bank", "sentence1": "A river bank.", "sentence2": "A bank lends.", "label": "false"},
    ),
    "wsc": (
        [WSC],
        [{"text": WSC["text"], "label": 1, "span1_text": "cup", "span2_text": "it", "span1_index": 1}],
        {"text": "The cup fell as it was full.", "span1_text": "cup", "span2_text": "it", "label": "true"},
    ),
}

PROMPTS = {
    "boolq": ("Tea is hot.\nQuestion: is tea hot?\nAnswer:", " yes"),
    "cb": ("It rains.\nQuestion: It is wet. True, False, or Neither?\nAnswer:", " Neither"),
    "copa": ("The grass was wet because", " it rained."),
    "multirc": (
        "Ann has a cat and a dog.\nQuestion: What has Ann?\nProposed answer: A cat\nIs it right?",
        " yes",
    ),
    "record": (
        "Ann met Bob in Rome.\n- Bob likes Rome\nFill in the blank: _____ was happy\nThe blank is",
        " Bob",
    ),
    "rte": ("It rains.\nQuestion: It is wet True or False?\nAnswer:", " False"),
    "wic": (
        "A river bank.\nA bank lends.\nQuestion: Does bank mean the same in both sentences?\nAnswer:",
        " no",
    ),
    "wsc": (
        'The cup fell as it was full.\nQuestion: In this text, does "it" stand for "cup"?\nAnswer:',
        " yes",
    ),
}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fault(task: str, row: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        superglue.flatten(task, Table((row,), "x.jsonl"))
    return str(caught.value)


@pytest.mark.parametrize("task", ROWS)
def test_official_rows_and_the_hubs_become_the_same(task: str) -> None:
    official, hub, expected = ROWS[task]
    flat = superglue.flatten(task, Table(tuple(official), "official"))
    assert flat.rows == superglue.flatten(task, Table(tuple(hub), "hub")).rows
    assert flat.rows[0] == expected


@pytest.mark.parametrize("task", ROWS)
def test_rows_without_an_answer_have_none(task: str) -> None:
    official, hub, expected = ROWS[task]
    column = "answers" if task == "record" else "label"
    blind: list[dict[str, Any]] = json.loads(json.dumps(official))
    for part in [*blind, *_answers(blind), *_queries(blind)]:
        part.pop("label", None)
        part.pop("answers", None) if "query" in part else None
    nothing: dict[str, Any] = {"answers": []} if task == "record" else {"label": -1}
    unknown = [row | nothing for row in hub]
    for rows in (blind, unknown):
        first = superglue.flatten(task, Table(tuple(rows), "t")).rows[0]
        assert first == expected | {column: None}


def _answers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    passages = [row["passage"] for row in rows if isinstance(row.get("passage"), dict)]
    return [a for p in passages for q in p.get("questions", ()) for a in q["answers"]]


def _queries(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [query for row in rows for query in row.get("qas", ())]


def test_nested_rows_give_one_row_for_each_question() -> None:
    options = superglue.flatten("multirc", Table((MULTIRC,), "t")).rows
    assert [(r["answer"], r["label"], r["question_id"]) for r in options] == [
        ("A cat", "true", "7-20"),
        ("A cow", "false", "7-20"),
        ("Ann", "true", "7-21"),
    ]
    queries = superglue.flatten("record", Table((RECORD,), "t")).rows
    assert [r["answers"] for r in queries] == [["Bob"], ["Rome"]]


@pytest.mark.parametrize("task", ROWS)
def test_every_task_is_ready_to_use(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(superglue.FOLDER, str(tmp_path))
    official = ROWS[task][0]
    for split in ("train", "val"):
        # Four passages, so that one can be held back.
        copies = [_numbered(json.loads(json.dumps(row)), n) for n in range(4) for row in official]
        write(tmp_path / task / f"{split}.jsonl", copies)
    config = parse({"data": {"task": f"superglue:{task}", "validation_fraction": 0.3}})
    assert parse(config) == config
    loaded = load_task(config.data, 0)
    assert {"train", "validation", "test"} == set(loaded.tables)
    first = superglue.flatten(task, Table(tuple(official), "t")).rows[0]
    assert (loaded.template.input_text(first), loaded.template.target_text(first)) == PROMPTS[task]
    assert loaded.template.candidates(first)[loaded.template.right(first)[0]] == PROMPTS[task][1]


def _numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
    if isinstance(row.get("passage"), dict):
        row["passage"]["text"] += f" {number}"
    return row


def test_settings_given_stand_before_those_of_the_task() -> None:
    data = parse({"data": {"task": "superglue:cb", "input": "{premise}", "train": "mine.jsonl"}}).data
    assert (data.input, data.target, data.train, data.test) == ("{premise}", " {label}", "mine.jsonl", None)
    data = parse({"data": {"task": "superglue:cb"}}).data
    assert (data.train, data.validation, data.test) == ("superglue:cb/train", None, "superglue:cb/validation")
    assert parse({"data": {"task": "superglue:record"}}).data.ends
    assert not parse({"data": {"task": "superglue:copa"}}).data.ends


@pytest.mark.parametrize(("task", "hint"), [("superglue:rt", "; did you mean superglue:rte?"), (3, "")])
def test_an_unknown_task_is_refused(task: object, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"data": {"task": task}})
    assert str(caught.value).startswith("data.task: expected one of superglue:boolq, superglue:cb, ")
    assert str(caught.value).endswith(f"got {task!r}{hint}")


@pytest.mark.parametrize(
    ("place", "split"),
    [
        ("wic/train", "train"),
        ("WiC/val", "validation"),
        ("superglue_wic/validation", "validation"),
        ("test", "test"),
    ],
)
def test_where_files_may_lie(place: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / f"{place}.jsonl", [WIC | {"label": True}])
    monkeypatch.delenv(superglue.FOLDER, raising=False)
    table = read(f"superglue:wic/{split}@{tmp_path}")
    assert table.origin == str(tmp_path / f"{place}.jsonl")
    assert read(f"superglue:wic/{split}@{tmp_path.name}", base_dir=tmp_path.parent).rows == table.rows
    monkeypatch.setenv(superglue.FOLDER, str(tmp_path))
    assert read(f"superglue:wic/{split}").rows == table.rows


def test_without_a_folder_the_hub_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(superglue.FOLDER, raising=False)
    assert superglue.locate("superglue:cb/validation") == ("cb", "hub:aps/super_glue:cb/validation")


def test_names_and_places_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no SuperGLUE data 'boolk/train'.* Did you mean boolq\?"):
        read("superglue:boolk/train")
    with pytest.raises(DataError, match="the splits train, validation, test"):
        read("superglue:cb/dev")
    with pytest.raises(
        DataError, match=r"no train file of SuperGLUE's cb in .*: it should be .*train\.jsonl"
    ):
        read(f"superglue:cb/train@{tmp_path}")


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("boolq", {"passage": "p", "label": True}, "it has no 'question'"),
        ("cb", NLI | {"label": "yes"}, "its label is 'yes', not one of entailment, contradiction, neutral"),
        ("cb", NLI | {"label": True}, "its label is True, not one of entailment, contradiction, neutral"),
        ("cb", NLI | {"label": 3}, "its label is 3, not one of entailment, contradiction, neutral"),
        ("rte", NLI | {"premise": 5, "label": 0}, "it has 5 where a text should be"),
        ("copa", COPA | {"question": "why", "label": 0}, "the question is 'why', not cause or effect"),
        ("multirc", {"passage": "text"}, "it has 'text' where an object should be"),
        ("record", {"passage": {"text": "a", "entities": []}, "qas": 1}, "it has 1 where a list should be"),
        ("wsc", {"text": "a", "target": None, "label": True}, "it has None where an object should be"),
    ],
)
def test_rows_of_something_else_are_refused(task: str, row: dict[str, Any], said: str) -> None:
    assert (
        fault(task, row)
        == f"x.jsonl, row 1 is no row of SuperGLUE's {task} ({said}): use the official files."
    )


def test_data_settings_are_checked() -> None:
    data = DataConfig(input="{a}", target=" {choice}", choices=["{b}", "{c}"])
    assert data.choices == ["{b}", "{c}"]
    assert not data.ends
    for choices in (["{b}"], [1, 2], 5, "", {"a": "b"}):
        with pytest.raises(
            ConfigError, match=r"data\.choices: expected the name of a column or a list of two"
        ):
            parse({"data": {"input": "{a}", "target": " {choice}", "choices": choices}})
    with pytest.raises(ConfigError, match=r"data\.normalise: expected one of none, length, got 'words'"):
        parse({"data": {"input": "{a}", "target": " {choice}", "normalise": "words"}})
    with pytest.raises(ConfigError, match=r"data\.retrieve: expected a whole number of at least 1"):
        parse({"data": {"input": "{a}", "target": "x", "retrieve": 0}})


@pytest.mark.skipif(
    "SOFTPROMPT_DATA" not in os.environ, reason="SOFTPROMPT_DATA names no folder of real data"
)
@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_real_rows(task: str, split: str) -> None:
    table = read(f"superglue:{task}/{split}@{os.environ['SOFTPROMPT_DATA']}")
    data = parse({"data": {"task": f"superglue:{task}"}}).data
    template = Template(data.input, data.target, data.labels, data.label_column, data.choices)
    rights = [template.right(row) for row in table.rows]
    assert len(rights) > 15
    exact = official(task, table, [right[0] for right in rights])
    assert set(exact) == set(HEADLINE[task])
    assert all(one.value == 1 for one in exact.values())
