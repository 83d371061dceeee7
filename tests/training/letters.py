"""A job that can be learnt in seconds, as files: the label is the text's last letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softprompt.config import Config, parse


def write_rows(folder: Path, count: int = 40) -> dict[str, str]:
    """A job that can be learnt: the label is the text's last letter."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, first in (("train", 0), ("validation", 1000), ("test", 2000)):
        rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(first, first + count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}


def config(folder: Path, **sections: dict[str, Any]) -> Config:
    settings: dict[str, Any] = {
        "name": "letters",
        "data": {"input": "{text}", "target": ":{label}", "labels": {"x": "a", "y": "b", "z": "c"}},
        "method": {"front": "Say: {soft:4}", "init": "random"},
        "train": {"epochs": 2, "learning_rate": 0.5, "batch_size": 8, "checkpoint_every": 2},
        "output": {"library": str(folder / "prompts"), "runs": str(folder / "runs")},
    }
    settings["data"] |= write_rows(folder)
    for name, values in sections.items():
        settings[name] |= values
    return parse(settings)
