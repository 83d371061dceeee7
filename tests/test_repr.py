"""What a user holds in a notebook shows as a line: no weights, no rows, no nested pages."""

from __future__ import annotations

from pathlib import Path

import pytest

import softprompt
import tiny
from library import samples
from softprompt.comparison.results import Results
from softprompt.data.table import Table
from softprompt.evaluation.score import Scores
from softprompt.evaluation.writing import Written
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt
from softprompt.prefix import Prefix


def shown(held: object) -> str:
    text = repr(held)
    assert "\n" not in text
    assert len(text) <= 400
    assert "tensor(" not in text
    return text


@pytest.mark.parametrize("make", [samples.soft, samples.prefix, samples.lora, samples.full])
def test_a_prompt_and_all_that_hangs_on_it(make: object, tmp_path: Path) -> None:
    base = tiny.base()
    made = make(base)  # type: ignore[operator]
    kind = "prefix-tuning" if isinstance(made, Prefix) else "prompt-tuning"
    prompt = made if isinstance(made, Prompt) else Prompt(base, made, samples.bound(base, kind, samples.P))
    prompt.save(tmp_path)
    artifact = Library(tmp_path).load(prompt.name)
    for held in (artifact, artifact.card, artifact.payload, prompt.prefix, prompt.change):
        shown(held)
    shown(Library(tmp_path).list()[0])
    card = prompt.card
    assert shown(prompt) == (
        f"<Prompt {prompt.name}: {card.kind}, {card.positions} positions, on {prompt.base.name}>"
    )


def test_a_base_a_library_an_ensemble_and_an_engine(tmp_path: Path) -> None:
    base = tiny.base()
    made = Prompt(base, samples.soft(base), samples.bound(base, "prompt-tuning", samples.P))
    assert shown(base) == "<Base tiny-llama-0: llama, float32 on cpu>"
    assert shown(Library(tmp_path)) == f"<Library at {tmp_path}>"
    assert shown(softprompt.Ensemble([made, made])) == "<Ensemble of topics, topics>"
    assert "tiny-llama-0" in shown(softprompt.Engine(base, tmp_path, pack=False))


def test_rows_and_scores() -> None:
    many = 10_000
    shown(Table(tuple({"text": "word " * 50} for _ in range(many)), "somewhere"))
    row = (0.5,) * many
    shown(Scores(many, 0.5, (0.4, 0.6), 0.9, (0.8, 1.0), (1,) * many, row, losses=row, tokens=row))
    shown(Written(["word " * 50] * many, {}, {"rouge1": [0.5] * many}, {}))


def test_a_comparison() -> None:
    results = Results.model_construct(
        name="topics", metric="accuracy", methods=[], settings={"a": "x" * 10_000}, test_rows=["x"] * 10_000
    )
    assert shown(results) == "<Results topics: no methods, by accuracy>"
