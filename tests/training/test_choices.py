"""Rows that bring their own answers, and answers compared by length or calibrated, from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import softprompt
import tiny
from softprompt.config import Config, parse
from softprompt.data.sources import read
from softprompt.errors import DataError

COLOURS = ["red", "blue", "green", "grey"]


def config(folder: Path, **data: Any) -> Config:
    sources = {}
    for split, first in (("train", 0), ("validation", 100), ("test", 200)):
        rows = []
        for i in range(first, first + 24):
            offered = [COLOURS[(i + k) % 4] for k in range(2 + i % 2)]
            rows.append({"text": f"{i} {offered[i % 2]}", "colours": offered, "label": i % 2})
        sources[split] = str(folder / f"{split}.jsonl")
        Path(sources[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse(
        {
            "name": "colours",
            "data": {"input": "{text}", "target": ":{choice}", "choices": "colours", **sources, **data},
            "method": {"front": "{soft:4}", "init": "random"},
            "train": {"epochs": 2, "learning_rate": 0.1, "batch_size": 8, "select": "nll"},
            "output": {"library": str(folder / "prompts"), "runs": str(folder / "runs")},
        }
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"normalise": "length"}, {"calibrate": True}, {"normalise": "length", "calibrate": True}],
    ids=str,
)
def test_a_prompt_for_choices_is_saved_and_answers_as_it_was_scored(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    base = tiny.base()
    made = softprompt.train(base, config(tmp_path, **options))
    prompt = softprompt.load_prompt("colours", base, tmp_path / "prompts")
    assert prompt.card.template == made.card.template
    assert prompt.template.choices == "colours"
    table = read(str(tmp_path / "test.jsonl"))
    scores = prompt.evaluate(table)
    assert scores.accuracy == prompt.card.scores["test"]["accuracy"]
    assert scores.nll == pytest.approx(prompt.card.scores["test"]["nll"], rel=1e-5)
    assert prompt.card.scores["test"]["nll"] < prompt.card.scores["test, untuned"]["nll"]
    for number, row in enumerate(table.rows):
        blind = {key: value for key, value in row.items() if key != "label"}
        shares = prompt.classify(blind)
        offered = row["colours"]
        assert isinstance(offered, list)
        assert set(shares) == set(offered)
        assert sum(shares.values()) == pytest.approx(1)
        best = next(iter(shares))
        assert offered.index(best) == scores.predictions[number]
        assert shares[best] == pytest.approx(scores.confidences[number], rel=1e-4)


def test_what_a_request_offers_bounds_the_answer(tmp_path: Path) -> None:
    prompt = softprompt.train(tiny.base(), config(tmp_path))
    assert prompt.tokens({"text": "1 red", "colours": ["red", "green"]}).limit == len(":green")
    assert prompt.tokens("1 red").limit is None
    assert prompt.tokens("1 red").ids == prompt.tokens({"text": "1 red"}).ids
    with pytest.raises(DataError, match="no column 'colours'"):
        prompt.classify("1 red")


def test_an_older_card_compares_as_it_did(tmp_path: Path) -> None:
    base = tiny.base()
    labels = {"choices": None, "target": " {label}", "labels": ["0", "1"], "input": "{text}"}
    prompt = softprompt.train(base, config(tmp_path, **labels))
    path = tmp_path / "prompts" / "colours" / "softprompt.json"
    card = json.loads(path.read_text())
    for name in ("choices", "normalise", "calibrate"):
        del card["template"][name]
    path.write_text(json.dumps(card))
    again = softprompt.load_prompt("colours", base, tmp_path / "prompts")
    assert again.classify("1 red") == prompt.classify("1 red")


def test_calibration_changes_what_is_answered(tmp_path: Path) -> None:
    base = tiny.base()
    labels = {"choices": None, "target": " {label}", "labels": ["0", "1"], "input": "{text}"}
    made = []
    for on in (False, True):
        (tmp_path / str(on)).mkdir()
        made.append(softprompt.train(base, config(tmp_path / str(on), **labels, calibrate=on)))
    plain, calibrated = (prompt.classify("5 blue") for prompt in made)
    empty = made[0].classify("N/A")
    weights = {label: plain[label] / empty[label] for label in plain}
    expected = {label: weight / sum(weights.values()) for label, weight in weights.items()}
    assert calibrated == pytest.approx(expected, rel=1e-3)
