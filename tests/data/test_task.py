"""The splits of a job: read, cut, held apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from softprompt.config import DataConfig
from softprompt.data.task import load_task
from softprompt.errors import ConfigError, DataError


def write(path: Path, count: int, first: int = 0) -> str:
    rows = ({"text": f"row {i}", "label": "ab"[i % 2]} for i in range(first, first + count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(tmp_path: Path, **options: Any) -> DataConfig:
    sources = {"train": write(tmp_path / "train.jsonl", 20)} | options
    return DataConfig(input="T: {text}\nL:", target=" {label}", labels=["a", "b"], **sources)


def test_validation_is_held_back_when_none_is_named(tmp_path: Path) -> None:
    task = load_task(config(tmp_path, validation_fraction=0.25), seed=3)
    assert {name: len(table) for name, table in task.tables.items()} == {"train": 15, "validation": 5}
    texts = [row["text"] for table in task.tables.values() for row in table.rows]
    assert len(set(texts)) == 20
    assert load_task(config(tmp_path, validation_fraction=0.25), seed=3).tables == task.tables
    assert load_task(config(tmp_path, validation_fraction=0.25), seed=4).tables != task.tables


def test_subsets_are_stratified(tmp_path: Path) -> None:
    task = load_task(config(tmp_path, validation=write(tmp_path / "v.jsonl", 8, 50), train_rows=6), seed=0)
    assert sorted(str(row["label"]) for row in task.tables["train"].rows) == ["a"] * 3 + ["b"] * 3


def test_rows_in_two_splits_are_told(tmp_path: Path) -> None:
    task = load_task(config(tmp_path, validation=write(tmp_path / "v.jsonl", 8, 17)), seed=0)
    assert "3 of 8 validation rows have the input of a training row." in task.notes


def test_demonstrations_are_solved_training_rows(tmp_path: Path) -> None:
    text = load_task(config(tmp_path), seed=0).demonstrations(2, seed=1)
    assert text.count("T: row ") == 2
    assert "\nL: a\n\n" in text
    assert text.endswith("\n\n")


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train is missing"):
        load_task(config(tmp_path).model_copy(update={"train": None}), 0)
    with pytest.raises(DataError, match="100"):
        load_task(config(tmp_path, train_rows=100), 0)
    with pytest.raises(DataError, match="no column 'txt'"):
        load_task(config(tmp_path).model_copy(update={"input": "{txt}"}), 0)
