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
    teacher = load(path).teacher
    if teacher is not None and teacher.prompt is None:
        assert len(lengths(load(path))) == len(teacher.positions)
        assert text_of(teacher)


def test_what_is_learnt_from_a_saved_prompt_says_how_that_is_trained() -> None:
    configs = {config.name: config for config in map(load, EXAMPLES.glob("*.toml"))}
    saved = {c.teacher.prompt for c in configs.values() if c.teacher is not None} - {None}
    assert saved == {name for name, config in configs.items() if config.teacher is None}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_questions_differ(path: Path) -> None:
    asked = [json.loads(line)["question"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(set(asked)) == len(asked) >= 60
