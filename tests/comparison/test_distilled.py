"""A long prompt learnt into a short one stands in a comparison like any other method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from softprompt.comparison.run import compare
from softprompt.errors import ConfigError


def settings(folder: Path, **entry: Any) -> dict[str, Any]:
    tiny.model("llama").save_pretrained(folder / "base")
    tiny.tokenizer().save_pretrained(folder / "base")
    for split, first in (("train", 0), ("validation", 1000), ("test", 2000)):
        rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(first, first + 18)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    return {
        "name": "short",
        "base": {"model": str(folder / "base"), "dtype": "float32"},
        "data": {**paths, "input": "{text}", "target": "{label}", "labels": ["x", "y", "z"]},
        "train": {"epochs": 4, "batch_size": 6},
        "compare": {
            "seeds": [0, 1],
            "trials": 2,
            "alternatives": False,
            "folder": str(folder / "out"),
            "latency_requests": 0,
        },
        "methods": [
            {"name": "long", "method": {"kind": "text", "front": "Say the letter. {demos:6}"}},
            {"name": "learnt", "teacher": {"text": "Say the letter. {demos:6}", "positions": 6} | entry},
            {"name": "soft", "method": {"front": "{soft:3}"}},
        ],
    }


def test_it_is_tuned_tested_and_kept_like_the_others(tmp_path: Path) -> None:
    results = compare(settings(tmp_path))
    assert results.finished
    long, learnt, _ = results.methods
    assert not learnt.trouble
    assert [one.costs.positions for one in learnt.runs] == [6, 6]
    assert long.runs[0].costs.positions > 30
    assert len(learnt.trials) == 2
    assert list((tmp_path / "out/short/answers").iterdir())
    assert (tmp_path / "out/short/report.html").stat().st_size > 10_000


def test_a_wrong_teacher_is_named_with_its_method(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'learnt': teacher"):
        compare(settings(tmp_path, likeliest=0))
