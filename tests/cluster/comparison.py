"""A small comparison, and what of its results does not depend on the clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def settings(folder: Path, name: str) -> dict[str, Any]:
    for split, first in (("train", 0), ("validation", 1000), ("test", 2000)):
        rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(first, first + 18)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": name,
        "base": {"model": "base", "dtype": "float32"},
        "data": {
            **{split: f"{split}.jsonl" for split in ("train", "validation", "test")},
            "input": "{text}",
            "target": ":{label}",
            "labels": {"x": "a", "y": "b", "z": "c"},
        },
        "train": {"epochs": 2, "batch_size": 4, "threads": 1},
        "compare": {"seeds": [0, 1], "trials": 2, "folder": "out", "latency_requests": 0},
        "methods": [
            {"name": "text", "method": {"kind": "text"}},
            {"name": "soft", "method": {"front": "{soft:3}"}},
            {"name": "vote", "votes_of": "soft"},
            {"name": "adapters", "method": {"kind": "lora", "rank": 2}},
        ],
    }


def plain(results: Any) -> Any:
    """What was found, without what a clock or a meter said."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            timed = ("seconds", "train_seconds", "peak_memory_bytes", "latency_seconds")
            return {key: without(inner) for key, inner in value.items() if key not in timed}
        return [without(inner) for inner in value] if isinstance(value, list) else value

    return without(results.model_dump()["methods"])
