"""Hours that a comparison may take: what is given up, in which order, and that all else is as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from comparison.test_run import settings
from softprompt.comparison import run
from softprompt.comparison.budget import Budget, Cost, Cut, estimated, kept_plan, planned
from softprompt.comparison.run import compare, within_hours
from softprompt.comparison.settings import load_comparison
from softprompt.errors import ConfigError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


COSTS = [
    Cost("text", 1, training=0.0, validating=2.0, testing=10.0),
    Cost("soft", 4, training=100.0, validating=20.0, testing=10.0),
]
WHOLE = Cut(share=1.0, seeds=5, test=1000, training=400)
SEEDS = [3, 1, 4, 5, 9]


def plan(seconds: float, costs: list[Cost] = COSTS) -> Budget:
    return planned(seconds / 3600, costs, WHOLE, SEEDS, "x", changes=3)


def test_the_whole_costs_trials_further_seeds_and_tests() -> None:
    text = 1 * 2 + 4 * 2 + (5 + 3) * 10
    soft = 4 * 120 + 4 * 120 + (5 + 3) * 10
    assert estimated(COSTS, WHOLE, WHOLE, 3) == text + soft
    short = Cut(0.25, 5, 1000, 400)
    assert estimated(COSTS, WHOLE, short, 3) == text + 4 * 30 + 5 * 120 + 80


def test_what_fits_is_left_whole() -> None:
    found = plan(1130)
    assert (found.overrides, found.share, found.notes) == ([], 1.0, [])


def test_ever_more_is_given_up_and_said() -> None:
    asked = (1130, 900, 700, 500, 350, 250, 200, 150)
    seen = [plan(seconds) for seconds in asked]
    assert [one.share for one in seen] == [1.0] + 7 * [0.25]
    kept = [len(one.overrides) for one in seen]
    assert kept == sorted(kept)
    assert all(one.seconds <= seconds for one, seconds in zip(seen, asked, strict=True))
    assert plan(700).overrides == ["compare.seeds=[3, 1, 4]"]
    assert plan(900).notes == [
        "To fit into 0.25 hours instead of about 19 min, trials were judged after a quarter of their steps."
    ]
    (said,) = plan(200).notes
    assert "of 5 seeds were run" in said
    assert "200 of 1,000 test rows were read" in said


def test_what_cannot_fit_is_refused_with_what_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"does not fit into 0\.001 hours.*soft takes longest"):
        planned(0.001, COSTS, WHOLE, SEEDS, "x", changes=3)


def test_a_plan_is_made_once_for_the_same_settings(tmp_path: Path) -> None:
    asked: list[str] = []

    def make(identity: str) -> Budget:
        asked.append(identity)
        return plan(1e9).model_copy(update={"identity": identity})

    path = tmp_path / "made" / "budget.json"
    first = kept_plan(path, {"a": 1}, make)
    assert kept_plan(path, {"a": 1}, make) == first
    assert len(asked) == 1
    kept_plan(path, {"a": 2}, make)
    path.write_text("{}")
    kept_plan(path, {"a": 2}, make)
    assert len(asked) == 3


# A real one --------------------------------------------------------------------------------------


def hourly(folder: Path, model: Path, hours: float) -> dict[str, Any]:
    made = settings(folder, model)
    made["compare"] = {**made["compare"], "hours": hours, "perturb": False, "latency_requests": 0}
    made["methods"] = [one for one in made["methods"] if one["name"] in ("text", "soft", "vote")]
    return made


def test_with_time_enough_nothing_changes(tmp_path: Path, model: Path) -> None:
    plenty, without = tmp_path / "plenty", tmp_path / "without"
    plenty.mkdir()
    without.mkdir()
    found = compare(hourly(plenty, model, 100.0))
    asked = hourly(without, model, 100.0)
    del asked["compare"]["hours"]
    wanted = compare(asked)
    assert found.notes == wanted.notes
    assert [[r.predictions for r in m.runs] for m in found.methods] == [
        [r.predictions for r in m.runs] for m in wanted.methods
    ]


def test_trials_are_looked_at_and_the_best_is_run_whole(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fewer = {"overrides": ["compare.seeds=[0, 1]"]}
    monkeypatch.setattr(
        run, "planned", lambda *about: plan(700).model_copy(update=fewer | {"identity": about[4]})
    )
    results = compare(hourly(tmp_path, model, 1.0))
    soft = results.methods[1]
    whole = {run.steps for run in soft.runs}
    assert len(soft.runs) == 2
    assert whole == {6}
    folder = tmp_path / "out" / "letters"
    looks = sorted(path.stem for path in (folder / "cells").glob("*-short.json"))
    assert looks == ["2-soft-trial1-seed0-short", "2-soft-trial2-seed0-short"]
    assert {path.name for path in (folder / "prompts").iterdir() if "soft" in path.name} == {
        f"2-soft-trial{1 + [t.chosen for t in soft.trials].index(True)}-seed{seed}" for seed in (0, 1)
    }
    assert results.notes[-1].startswith("To fit into")

    def anew(*_: Any, **__: Any) -> None:
        raise AssertionError("it was timed or trained again")

    monkeypatch.setattr(run, "planned", anew)
    monkeypatch.setattr(run, "train", anew)
    assert compare(hourly(tmp_path, model, 1.0)).methods == results.methods


def test_seconds_are_those_of_the_machine(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Cost] = []

    def told(hours: float, costs: list[Cost], *about: Any) -> Budget:
        seen.extend(costs)
        return plan(1e9)

    monkeypatch.setattr(run, "planned", told)
    comparison, contenders = load_comparison(hourly(tmp_path, model, 1.0))
    within_hours(run.Bench.of(comparison, contenders, lambda _: None, lambda *_: None, lambda: False))
    text, soft = seen
    assert text.training == 0.0 < text.validating
    assert soft.training > soft.testing > 0
    assert (text.trials, soft.trials) == (2, 2)
