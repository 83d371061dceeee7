"""What the harness tests share: fronts, requests as lm_eval makes them, and one plain row at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from library import samples
from softprompt.base.model import Base
from softprompt.library.prompt import Prompt

Ids = tuple[int, ...]


def soft(base: Base, positions: int = 4, seed: int = 3) -> Tensor:
    """A random soft prompt [P, E] strong enough to be noticed."""
    return samples.soft(base, seed, positions) * 3


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    """Instances as lm_eval hands them to a model."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, 0, ("task", i, 1)) for i, one in enumerate(arguments)]


def plain(base: Base, front: Tensor, context: Ids, target: Ids) -> tuple[float, bool]:
    """Log-probability of the target and whether greedy writes it: transformers, one unpadded row."""
    with torch.no_grad():
        embedded = torch.cat([front, base.embed(context + target)])[None]
        logits = base.model(inputs_embeds=embedded).logits[0].float()
    start = len(front) + len(context) - 1
    logits = logits[start : start + len(target)]
    wanted = torch.tensor(target)
    logs = logits.log_softmax(-1)[torch.arange(len(target)), wanted]
    return float(logs.sum()), bool((logits.argmax(-1) == wanted).all())


def prompt(
    base: Base,
    *,
    input: str,
    target: str,
    front: Tensor,
    labels: Sequence[str] | None = None,
    choices: str | None = None,
) -> Prompt:
    """A prompt that was never trained, with a template of the test's own."""
    template = {
        **samples.card_values()["template"],
        "input": input,
        "target": target,
        "labels": {label: label for label in labels} if labels else None,
        "label_column": "label" if labels or choices else None,
        "choices": choices,
        "max_tokens": 200,
    }
    about = {
        "name": base.name,
        "revision": None,
        "fingerprint": base.fingerprint,
        "model_type": base.config.model_type,
        "dtype": "float32",
    }
    card = samples.card(template=template, base=about, positions=len(front))
    return Prompt(base, front, card)


def write_task(folder: Path, rows: Sequence[dict[str, Any]], name: str = "mine", /, **settings: Any) -> str:
    """A task of lm_eval over rows in a file beside it; its name."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "target_delimiter": "",
        **settings,
    }
    # JSON is YAML.
    (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")
    return name
