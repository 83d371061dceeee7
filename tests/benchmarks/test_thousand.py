"""Many prompts and little memory: the benchmark checks what it says it checks."""

from __future__ import annotations

from pathlib import Path

import shelf
import thousand
from softprompt.checkpoints.freeze import load_base


def test_answers_are_right_and_memory_stays_within_the_budget(tmp_path: Path) -> None:
    shelf.small_base(tmp_path / "base")
    base = load_base(str(tmp_path / "base"), dtype="float32", device="cpu")
    model = load_base(str(tmp_path / "base"), dtype="float32", device="cpu").model
    model.set_attn_implementation("eager")
    result = thousand.measure(base, model, prompts=12, called=6, held=2, folder=tmp_path)
    assert result.wrong == 0
    assert 0 < result.most_bytes <= result.budget_bytes == 2 * result.prompt_bytes
    assert result.evictions >= 4
    wrong = thousand.Call.__new__(thousand.Call)
    wrong.number, wrong.ids, wrong.tokens = 0, (5, 6), [7] * thousand.TOKENS
    assert not thousand.right(base, model, wrong)
