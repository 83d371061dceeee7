"""The configurations of examples/distil are valid, and what they name beside them is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from softprompt.config import load
from softprompt.distillation.teacher import text_of
from softprompt.training.distil import lengths

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "distil"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_a_valid_configuration(path: Path) -> None:
    config = load(path)
    assert config.teacher is not None
    assert len(lengths(config)) == len(config.teacher.positions)
    assert text_of(config.teacher)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_questions_differ(path: Path) -> None:
    asked = [json.loads(line)["question"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(set(asked)) == len(asked) >= 60
