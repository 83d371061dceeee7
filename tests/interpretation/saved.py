"""Saved prompts on tiny bases, made as ``softprompt train`` makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
from softprompt.base.model import Base
from softprompt.library.prompt import Prompt
from softprompt.training.run import train

TEXTS = ("a good film", "bad bad food", "a nice place", "an awful day")


def write_rows(path: Path, count: int) -> None:
    rows = [{"text": f"{TEXTS[i % 4]} {i}", "label": ("pos", "neg")[i % 2]} for i in range(count)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def saved(folder: Path, name: str, base: Base | None = None, *, data: Any = None, **method: Any) -> Prompt:
    """Train for a few steps on rows in ``folder`` and keep the prompt in ``folder/prompts``."""
    for split, count in (("train", 24), ("validation", 12)):
        if not (folder / f"{split}.jsonl").exists():
            write_rows(folder / f"{split}.jsonl", count)
    settings = {
        "name": name,
        "base": {"model": "tiny"},
        "data": {
            "train": str(folder / "train.jsonl"),
            "validation": str(folder / "validation.jsonl"),
            "input": "{text}: ",
            "target": "{label}",
            "labels": {"pos": "+", "neg": "-"},
            **(data or {}),
        },
        "method": {"kind": "prompt-tuning", "front": "{soft:6}", **method},
        "train": {"max_steps": 8, "batch_size": 8, "learning_rate": 0.1},
        "output": {"library": str(folder / "prompts"), "runs": str(folder / "runs")},
    }
    return train(base or tiny.base(), settings)
