"""Rows that bring their own answers, and answers compared by length or calibrated, from end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt
import tiny
from softprompt.config import Config, parse
from softprompt.data.sources import read
from softprompt.errors import ConfigError, DataError
from softprompt.evaluation.choices import ChoiceScores, fitted_scaling

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
            "train": {"epochs": 2, "learning_rate": 0.5, "batch_size": 8, "select": "nll"},
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


def test_scale_and_shift_are_those_that_make_training_rows_likeliest() -> None:
    """By what they mend, and by the gradient of the penalised loss, which is then nothing."""
    generator = torch.Generator().manual_seed(0)
    right = torch.arange(300) % 3
    weights = torch.randn(300, 3, generator=generator) + 2.0 * torch.nn.functional.one_hot(right, 3)

    def right_share(scores: torch.Tensor) -> float:
        return float((scores.argmax(1) == right).double().mean())

    biased = 0.5 * weights - torch.tensor([0.0, 4.0, 1.0])  # says the second label nearly never
    assert right_share(biased) < 0.7 < right_share(weights)
    scaling = fitted_scaling(biased, right.tolist())
    found = ChoiceScores(biased, biased).scaled(scaling)
    assert right_share(found.weights) > right_share(weights) - 0.02  # as if nothing had been wrong with them
    scale = torch.tensor(scaling.scale, dtype=torch.float64).log().requires_grad_()
    shift = torch.tensor(scaling.shift, dtype=torch.float64).requires_grad_()
    scores = biased.double().log_softmax(1) * scale.exp() + shift
    loss = torch.nn.functional.cross_entropy(scores, right, reduction="sum")
    (loss + (scale.square().sum() + (shift / 3).square().sum()) / 2).backward()
    assert scale.grad is not None
    assert shift.grad is not None
    assert float(torch.cat([scale.grad, shift.grad]).abs().max()) < 1e-3 * len(right)


def test_a_scaled_prompt_is_chosen_tested_kept_and_answers_alike(tmp_path: Path) -> None:
    base = tiny.base()
    labels = {"choices": None, "target": " {label}", "labels": ["0", "1"], "input": "{text}"}
    made = {}
    for on in (None, True):
        (tmp_path / str(on)).mkdir()
        made[on] = softprompt.train(base, config(tmp_path / str(on), **labels, scale_labels=on))
    plain, scaled = made[None], made[True]
    assert (
        "scaling"
        not in json.loads((tmp_path / "None/prompts/colours/softprompt.json").read_text())["template"]
    )
    again = softprompt.load_prompt("colours", base, tmp_path / "True" / "prompts")
    assert again.scaling == scaled.scaling != plain.scaling
    assert scaled.scaling is not None
    shares = {label: math.log(share) for label, share in plain.classify("5 blue").items()}
    numbers = dict(zip(("0", "1"), zip(*scaled.scaling, strict=True), strict=True))
    weights = {label: math.exp(scale * shares[label] + shift) for label, (scale, shift) in numbers.items()}
    expected = {label: weight / sum(weights.values()) for label, weight in weights.items()}
    assert again.classify("5 blue") == pytest.approx(expected, rel=1e-4)
    table = read(str(tmp_path / "True" / "test.jsonl"))
    assert again.evaluate(table).accuracy == again.card.scores["test"]["accuracy"]
    assert again.card.scores["test, untuned"] == plain.card.scores["test, untuned"]
    untuned = again.bare().evaluate(table)
    assert untuned.accuracy == plain.card.scores["test, untuned"]["accuracy"]
    assert untuned.predictions == plain.bare().evaluate(table).predictions
    votes = softprompt.Ensemble([again]).predict(table)
    assert votes == list(again.evaluate(table).predictions)


def test_scaling_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.scale_labels: needs data\.labels"):
        config(tmp_path, scale_labels=True)
