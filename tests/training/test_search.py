"""A search gives what training its winner alone gives, drops whom it should, and tells all it tried."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import softprompt
import tiny
from softprompt.base.model import Base
from softprompt.config import Config, parse
from softprompt.errors import ConfigError, DivergedError, TrainingError
from softprompt.evaluation.score import Scores
from softprompt.library.card import SearchCard
from softprompt.library.prompt import Prompt
from softprompt.listener import Listener, Report
from softprompt.training import loop
from softprompt.training import search as searching
from softprompt.training.job import Job
from softprompt.training.loop import Outcome
from softprompt.training.run import train
from softprompt.training.search import Carry, Combined, RunOrder, RunState, carried, survivors
from softprompt.training.trial import EvalRecord, TrialRun, fit_trials

RATES = [5e-7, 0.25, 1.0, 5e-6]

NEVER_STEPS = Listener(step=lambda report: pytest.fail("it trained"))

SOFT = {"front": "Say: {soft:3}", "init": "random"}


def config(folder: Path, search: dict[str, Any] | None = None, **sections: Any) -> Config:
    """A job that can be learnt: the label is the text's last letter; three epochs of three steps."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for split, first, count in (("train", 0, 24), ("validation", 1000, 20), ("test", 2000, 10)):
        rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(first, first + count)]
        sources[split] = str(folder / f"{split}.jsonl")
        Path(sources[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "name": "letters",
        "data": {"input": "{text}", "target": ":{label}", "labels": ["x", "y", "z"]} | sources,
        "method": SOFT,
        "train": {"epochs": 3, "learning_rate": 0.5, "batch_size": 8, "checkpoint_every": 2},
        "output": {"library": str(folder / "prompts"), "runs": str(folder / "runs")},
    }
    for name, values in sections.items():
        whole = isinstance(values, dict) and "kind" not in values
        settings[name] = {**settings[name], **values} if whole else values
    return parse(settings | ({"search": search} if search is not None else {}))


def front(prompt: Prompt) -> Tensor:
    assert isinstance(prompt.front, Tensor)
    return prompt.front


def about(prompt: Prompt) -> SearchCard:
    assert prompt.card.search is not None
    return prompt.card.search


def same_prompt(found: Prompt, expected: Prompt) -> None:
    """What was learnt and what it scores agree to fp32's rounding."""
    torch.testing.assert_close(front(found), front(expected), rtol=1e-4, atol=1e-5)
    for split in ("validation", "test"):
        a, b = found.card.scores[split], expected.card.scores[split]
        assert a["accuracy"] == b["accuracy"]
        assert a["nll"] == pytest.approx(b["nll"], rel=1e-4)


def steps_of(folder: Path) -> list[int]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_without_halving_the_winner_is_what_it_is_alone(tmp_path: Path) -> None:
    base = tiny.base()
    rates, fronts = [1e-6, 0.1], ["Say: {soft:3}", "{soft:5}"]
    grid = {"train": {"learning_rate": rates}, "method.front": fronts}
    found = softprompt.train(base, config(tmp_path / "search", {"grid": grid, "halving": 1}))
    alone = [
        softprompt.train(
            base, config(tmp_path / f"{rate}{f}", method={"front": f}, train={"learning_rate": rate})
        )
        for rate in rates
        for f in fronts
    ]
    tried = about(found).trials
    for trial, expected in zip(tried, alone, strict=True):
        assert (trial.steps, trial.ended) == (9, "done")
        assert expected.card.training is not None
        assert trial.best_step == expected.card.training.best_step
        assert trial.validation["nll"] == pytest.approx(expected.card.scores["validation"]["nll"], rel=1e-4)
    best = max(range(4), key=lambda n: (alone[n].card.scores["validation"]["accuracy"],
                                        -alone[n].card.scores["validation"]["nll"]))  # fmt: skip
    assert about(found).chosen == best
    assert tried[best].settings == {
        "train.learning_rate": alone[best].card.settings["train"]["learning_rate"],
        "method.front": alone[best].card.settings["method"]["front"],
    }
    same_prompt(found, alone[best])
    assert found.card.settings["method"] == alone[best].card.settings["method"]


def test_halving_drops_the_worse_half_at_each_validation(tmp_path: Path) -> None:
    base, said = tiny.base(), list[str]()
    wanted = config(tmp_path / "search", {"grid": {"train.learning_rate": RATES}})
    found = softprompt.train(base, wanted, listener=Listener(note=said.append))
    runs = [tmp_path / "search" / "runs" / "letters" / f"trial-{n}" for n in range(1, 5)]
    merits = []
    for folder in runs:
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        merits.append([(s["accuracy"], -s["nll"]) for s in (line.get("scores") for line in lines) if s])
    ranked = sorted(range(4), key=lambda n: max(merits[n][:2]), reverse=True)
    winner = max(ranked[:2], key=lambda n: max(merits[n][:3]))
    expected = [6 if n in ranked[:2] else 3 for n in range(4)]
    expected[winner] = 9
    assert [steps_of(folder) for folder in runs] == [list(range(n + 1)) for n in expected]
    tried = about(found).trials
    assert [trial.steps for trial in tried] == expected
    assert [trial.ended for trial in tried] == ["done" if n == 9 else "dropped" for n in expected]
    assert about(found).chosen == winner
    assert winner in (1, 2)  # the rates that learn anything
    assert [line.split(":")[0] for line in said if line.startswith("Validation")] == [
        "Validation 1",
        "Validation 2",
    ]
    same_prompt(
        found, softprompt.train(base, config(tmp_path / "alone", train={"learning_rate": RATES[winner]}))
    )


def trial(*accuracies: float, ended: str = "interrupted") -> TrialRun:
    """A run with these validations, the start's first."""
    wanted = parse({"data": {"input": "{a}", "target": "{b}"}})
    found = [Scores(10, 1.0, (1.0, 1.0), accuracy) for accuracy in accuracies]
    evals = [EvalRecord(step, 9, scores) for step, scores in enumerate(found)]
    outcome = Outcome(len(evals), 0, found[-1], ended, 0.0)
    return TrialRun(tiny.base(), wanted, Path("nowhere"), evals=evals, outcome=outcome)


@pytest.mark.parametrize(
    ("trials", "validation", "halving", "expected"),
    [
        ([trial(0.1, 0.5), trial(0.1, 0.7), trial(0.1, 0.6), trial(0.1, 0.4)], 1, 2, [1, 2]),
        ([trial(0.1, 0.5), trial(0.1, 0.7), trial(0.1, 0.6)], 1, 2, [1, 2]),  # rounded up
        ([trial(0.1, 0.5), trial(0.1, 0.7), trial(0.1, 0.6)], 1, 3, [1]),
        ([trial(0.1, 0.5), trial(0.1, 0.5)], 1, 2, [0]),  # of equals the first
        ([trial(0.1, 0.5, 0.9), trial(0.1, 0.6, 0.6)], 1, 2, [1]),  # what came later is not looked at
        ([trial(0.1, 0.9, 0.3), trial(0.1, 0.6, 0.8)], 2, 2, [0]),  # the best state is the one that is kept
        ([trial(0.5, 0.1), trial(0.5, 0.4)], 1, 2, [1]),  # nobody beat the start: the later one counts
        ([trial(0.1, 0.9, ended="diverged"), trial(0.1, 0.2)], 1, 2, [1]),
        ([trial(0.1, 0.9, ended="early"), trial(0.1, 0.2, 0.3)], 2, 2, [0]),
    ],
)
def test_the_better_part_survives(
    trials: list[TrialRun], validation: int, halving: int, expected: list[int]
) -> None:
    found = survivors(trials, validation, halving)
    assert [trials.index(one) for one in found] == expected


def test_several_seeds_are_what_each_is_alone_and_all_are_kept(tmp_path: Path) -> None:
    base = tiny.base()
    found = softprompt.train(base, config(tmp_path / "seeds", {"seeds": [3, 0, 7]}, data={"train_rows": 16}))
    rows = {"draw": 3, "train_rows": 16}
    alone = {
        seed: softprompt.train(base, config(tmp_path / f"{seed}", seed=seed, data=rows)) for seed in (3, 0, 7)
    }
    kept = about(found).seeds
    best = max(alone, key=lambda s: (alone[s].card.scores["validation"]["accuracy"],
                                     -alone[s].card.scores["validation"]["nll"]))  # fmt: skip
    assert [(one.seed, one.name) for one in kept] == [
        (seed, "letters" if seed == best else f"letters-seed{seed}") for seed in (3, 0, 7)
    ]
    for one in kept:
        assert one.name is not None
        prompt = softprompt.load_prompt(one.name, base, tmp_path / "seeds" / "prompts")
        same_prompt(prompt, alone[one.seed])
        assert prompt.card.settings["seed"] == one.seed
        assert prompt.card.scores["test"]["nll"] == one.scores["test"]["nll"]
    assert found.name == "letters"
    for split in ("validation", "test"):
        values = [prompt.card.scores[split]["accuracy"] for prompt in alone.values()]
        spread = about(found).over_seeds[split]
        assert (spread["measure"], spread["seeds"]) == ("accuracy", 3)
        assert spread["mean"] == pytest.approx(statistics.mean(values))
        assert spread["standard_deviation"] == pytest.approx(statistics.stdev(values))


def test_the_chosen_settings_are_learnt_on_every_seed_and_only_those_read_test_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    score = Job.score

    def noted(self: Job, split: str, progress: Any = None) -> Scores:
        if split == "test":
            read.append(self.config.seed)
        return score(self, split, progress)

    monkeypatch.setattr(Job, "score", noted)
    wanted = config(tmp_path, {"grid": {"train.learning_rate": RATES}, "seeds": [5, 6]})
    found = softprompt.train(tiny.base(), wanted)
    assert sorted(read) == [5, 6]
    card = about(found)
    rate = RATES[card.chosen]
    runs = tmp_path / "runs" / "letters"
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == [
        "seed-6", "trial-1", "trial-2", "trial-3", "trial-4",
    ]  # fmt: skip
    assert softprompt.load_config(runs / "seed-6" / "config.toml").train.learning_rate == rate
    assert card.seeds[0].scores["validation"]["nll"] == card.trials[card.chosen].validation["nll"]


@pytest.mark.parametrize("stop_at", [1, 7, 16, 23, 27])
def test_a_search_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path, stop_at: int) -> None:
    base = tiny.base()
    search = {"grid": {"train.learning_rate": RATES}, "seeds": [1, 0]}
    whole = softprompt.train(base, config(tmp_path / "whole", search))
    told: list[Report] = []
    cut = config(tmp_path / "cut", search)
    stopped = softprompt.train(
        base, cut, listener=Listener(step=told.append, stop=lambda: told[-1].step >= stop_at)
    )
    assert stopped.card.training is not None
    assert stopped.card.training.ended == "interrupted"
    assert "test" not in stopped.card.scores
    found = softprompt.train(base, cut, resume=True)
    assert front(found).equal(front(whole))
    assert about(found) == about(whole)


def test_being_stopped_at_the_last_step_is_being_done(tmp_path: Path) -> None:
    told: list[Report] = []
    wanted = config(tmp_path, {"grid": {"train.learning_rate": RATES}, "seeds": [0, 1]})
    found = softprompt.train(
        tiny.base(), wanted, listener=Listener(step=told.append, stop=lambda: told[-1].step == told[-1].total)
    )
    assert [set(seed.scores) for seed in about(found).seeds] == [{"validation", "test"}] * 2


@pytest.mark.parametrize("seeds", [[0, 1], [1, 0]])
def test_a_search_killed_while_it_was_tested_is_only_tested_again(tmp_path: Path, seeds: list[int]) -> None:
    base, wanted = tiny.base(), config(tmp_path, {"grid": {"train.learning_rate": RATES}, "seeds": seeds})
    whole = softprompt.train(base, wanted)
    shutil.rmtree(tmp_path / "prompts")
    found = softprompt.train(base, wanted, resume=True, listener=NEVER_STEPS)
    assert front(found).equal(front(whole))
    assert about(found) == about(whole)


@pytest.mark.parametrize("saved", [1, 2, 3])
def test_a_search_killed_while_it_saved_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int
) -> None:
    base, search = tiny.base(), {"seeds": [0, 1, 2]}
    whole = softprompt.train(base, config(tmp_path / "whole", search, train={"epochs": 1}))
    cut = config(tmp_path / "cut", search, train={"epochs": 1})
    save, calls = Prompt.save, list[str]()

    def killed(self: Prompt, *arguments: Any, **options: Any) -> Path:
        path = save(self, *arguments, **options)
        calls.append(self.name)
        if len(calls) == saved:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Prompt, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            softprompt.train(base, cut)
    assert {entry.name for entry in softprompt.Library(tmp_path / "cut" / "prompts").list()} == set(calls)
    found = softprompt.train(base, cut, resume=True, listener=NEVER_STEPS)
    assert front(found).equal(front(whole))
    assert about(found) == about(whole)


@pytest.mark.parametrize("other", [{"train": {"epochs": 1, "clip": 0.5}}, {"data": {"train_rows": 16}}, {}])
def test_a_prompt_of_another_run_is_not_replaced_when_a_search_goes_on(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    """Not even one that was stopped half-way, nor, at ``{}``, one of the very settings on another seed."""
    base, told = tiny.base(), list[Report]()
    wanted = config(tmp_path, {"seeds": [0, 1]}, train={"epochs": 1})
    softprompt.train(base, wanted)
    library = softprompt.Library(tmp_path / "prompts")
    for entry in library.list():
        library.remove(entry.name)
    settings = {"train": {"epochs": 1}, "seed": 0 if other else 5, **other}
    foreign = config(tmp_path / "other", **settings)
    softprompt.train(base, foreign, listener=Listener(step=told.append, stop=lambda: told[-1].step == 1))
    (tmp_path / "other" / "prompts" / "letters").rename(library.path / "letters")
    with pytest.raises(ConfigError, match=r"letters' in .* already"):
        softprompt.train(base, wanted, resume=True)
    assert [entry.name for entry in library.list()] == ["letters"]


def test_a_run_let_go_of_comes_back_at_its_best(tmp_path: Path) -> None:
    one, told = TrialRun(tiny.base(), config(tmp_path), tmp_path / "run"), list[Report]()
    fit_trials([one], [Listener(step=told.append, stop=lambda: told[-1].step == 5)], resume=False)
    assert one.outcome is not None
    assert one.outcome.best_step < one.outcome.steps == 5
    before = {name: tensor.clone() for name, tensor in one.job.method.state().items()}
    one.release()
    assert all(tensor.equal(before[name]) for name, tensor in one.job.method.state().items())


def test_a_search_does_not_go_on_with_other_candidates(tmp_path: Path) -> None:
    told: list[Report] = []
    search: dict[str, Any] = {"grid": {"train.learning_rate": [0.1, 0.2]}}
    softprompt.train(
        tiny.base(), config(tmp_path, search), listener=Listener(step=told.append, stop=lambda: bool(told))
    )
    settings = tmp_path / "runs" / "letters" / "config.toml"
    before = settings.read_bytes()
    search["grid"]["train.learning_rate"] = [0.1, 0.3]
    for other in (config(tmp_path, search), config(tmp_path)):
        with pytest.raises(TrainingError, match="belongs to a run with other settings"):
            softprompt.train(tiny.base(), other, resume=True)
        assert settings.read_bytes() == before


def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many were trained together, each time."""
    sizes: list[int] = []

    def noted(trials: Sequence[TrialRun], *listeners: Any, **options: Any) -> None:
        sizes.append(len(trials))
        fit_trials(trials, *listeners, **options)

    monkeypatch.setattr(searching, "fit_trials", noted)
    return sizes


def test_whole_models_come_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = groups(monkeypatch)
    base = tiny.base()
    rates = [1e-7, 1e-3]

    search = {"grid": {"train.learning_rate": rates}, "seeds": [0, 1]}
    found = softprompt.train(base, config(tmp_path / "search", search, method={"kind": "full"}))
    assert sizes == [1, 1, 1, 1]  # two candidates to the first validation, the better one on, the other seed
    assert about(found).chosen == 1
    told = {seed.seed: seed.scores["test"] for seed in about(found).seeds}
    for seed in (0, 1):
        wanted = config(
            tmp_path / f"{seed}", method={"kind": "full"}, train={"learning_rate": rates[1]}, seed=seed,
            data={"draw": 0},
        )  # fmt: skip
        alone = softprompt.train(base, wanted)
        assert told[seed]["nll"] == pytest.approx(alone.card.scores["test"]["nll"], rel=1e-4)


def test_adapters_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = groups(monkeypatch)
    base, lora = tiny.base(), {"kind": "lora", "rank": 1, "targets": ["q_proj"]}
    search = {"grid": {"train.learning_rate": [1e-7, 0.01]}, "halving": 1}
    found = softprompt.train(base, config(tmp_path / "search", search, method=lora))
    assert sizes == [2]
    assert about(found).chosen == 1
    alone = softprompt.train(base, config(tmp_path / "alone", method=lora, train={"learning_rate": 0.01}))
    assert found.card.scores["test"]["nll"] == pytest.approx(alone.card.scores["test"]["nll"], rel=1e-4)


def test_faults_of_a_candidate_show_before_a_folder_is_made(tmp_path: Path) -> None:
    wanted = config(tmp_path, {"grid": {"method.front": ["{soft:3}", "Say:"]}})
    with pytest.raises(ConfigError, match="nothing to learn"):
        softprompt.train(tiny.base(), wanted, listener=NEVER_STEPS)
    assert not list((tmp_path / "runs").rglob("log.jsonl"))


def test_a_taken_name_of_a_seed_is_refused_and_an_old_one_replaced(tmp_path: Path) -> None:
    base = tiny.base()
    soft = config(tmp_path, {"seeds": [0, 1]}, train={"epochs": 1})
    found = softprompt.train(base, soft)
    library = softprompt.Library(tmp_path / "prompts")
    names = {seed.name for seed in about(found).seeds}
    assert {entry.name for entry in library.list()} == names
    library.remove("letters")
    with pytest.raises(ConfigError, match=r"letters-seed.' in .* already"):
        softprompt.train(base, soft)
    (other,) = names - {"letters"}
    (stale,) = {"letters-seed0", "letters-seed1"} - names
    assert other is not None
    (library.path / other).rename(library.path / stale)  # as if the other seed had been best before
    output = soft.output.model_copy(update={"overwrite": True})
    softprompt.train(base, soft.model_copy(update={"output": output}))
    assert {entry.name for entry in library.list()} == names


def test_one_candidate_on_one_seed_is_a_plain_run(tmp_path: Path) -> None:
    plain = softprompt.train(tiny.base(), config(tmp_path / "plain", seed=4))
    search = {"grid": {"train.learning_rate": [0.5]}, "seeds": [4]}
    for name, asked in (("empty", {}), ("single", search)):
        found = softprompt.train(tiny.base(), config(tmp_path / name, asked, seed=4))
        assert front(found).equal(front(plain))
        assert found.card.search is None
        assert "search" not in plain.card.settings
        assert (tmp_path / name / "runs" / "letters" / "log.jsonl").exists()


def poison(monkeypatch: pytest.MonkeyPatch, seeds: set[int]) -> None:
    """These seeds start from NaN in their first parameter after the start was scored."""
    prepare = Job.prepare

    def poisoned(base: Any, config: Config, **how: Any) -> Job:
        job = prepare(base, config, **how)
        if config.seed in seeds:
            optimized = job.method.trainable_parameters()[0]
            optimized.register_hook(lambda gradient: gradient * float("nan"))
        return job

    monkeypatch.setattr(Job, "prepare", poisoned)


def test_a_seed_that_diverges_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {1})
    said: list[str] = []
    found = softprompt.train(
        tiny.base(), config(tmp_path, {"seeds": [1, 2, 3]}), listener=Listener(note=said.append)
    )
    assert [seed.name is None for seed in about(found).seeds] == [True, False, False]
    assert not (tmp_path / "prompts" / "letters-seed1").exists()
    assert about(found).over_seeds["test"]["seeds"] == 2
    assert any(line.startswith("Seed 1 is not kept. Training diverged at step 1") for line in said)


def test_if_every_seed_diverges_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {1, 2})
    with pytest.raises(DivergedError, match="Nothing had been learnt before it"):
        softprompt.train(tiny.base(), config(tmp_path, {"seeds": [1, 2]}))
    assert not (tmp_path / "prompts").exists()


@pytest.mark.parametrize("method", [SOFT, {"kind": "full"}], ids=["together", "one by one"])
def test_if_every_candidate_diverges_at_once_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    """Models that are trained one by one are let go of in between, with nothing learnt to come back to."""
    poison(monkeypatch, {0})
    search = {"grid": {"train.learning_rate": [0.1, 0.2]}}
    with pytest.raises(DivergedError, match=r"diverged at step 1.* Nothing had been learnt before it"):
        softprompt.train(tiny.base(), config(tmp_path, search, method=method))
    assert not (tmp_path / "prompts").exists()


# Told as one run ----------------------------------------------------------------------------------


def accuracy_of(accuracy: float) -> Scores:
    return Scores(10, 1.0, (1.0, 1.0), accuracy)


def stepped(number: int, loss: float = 1.0, accuracy: float | None = None) -> Report:
    found = None if accuracy is None else accuracy_of(accuracy)
    return Report(number, 10, loss, 0.1, 1.0, 50, 0.0, found, False)


def test_one_report_for_a_step_taken_side_by_side() -> None:
    told: list[Report] = []
    combined = Combined(told.append, 3, "auto")
    for run, loss in (("a", 1.0), ("b", 3.0)):
        combined.add(run, stepped(0, math.nan, 0.2))
        combined.add(run, stepped(1, loss))
    combined.flush()
    combined.flush()  # nothing is new
    (first,) = told
    assert (first.step, first.total, first.loss, first.tokens) == (2, 30, 2.0, 200)
    assert first.scores == accuracy_of(0.2)
    assert first.best


def test_the_best_of_a_validation_is_told_and_whether_it_beats_all_before() -> None:
    told: list[Report] = []
    combined = Combined(told.append, 2, "auto")
    for accuracies in ((0.5, 0.7), (0.6, 0.65), (0.75, 0.1)):
        for run, accuracy in zip("ab", accuracies, strict=True):
            combined.add(run, stepped(1, 1.0, accuracy))
        combined.flush()
    assert [report.scores for report in told] == [accuracy_of(0.7), accuracy_of(0.65), accuracy_of(0.75)]
    assert [report.best for report in told] == [True, False, True]


def test_what_is_given_up_takes_no_more_steps() -> None:
    told: list[Report] = []
    combined = Combined(told.append, 4, "auto")
    combined.add("a", stepped(4))
    combined.add("b", stepped(4))
    combined.retire("b")
    combined.retire("c")  # was given up before the search was gone on with
    combined.flush()
    assert (told[0].step, told[0].total) == (8, 10 + 4 + 10)
    assert told[0].seconds == pytest.approx(0, abs=5)


# Elsewhere ---------------------------------------------------------------------------------------------

SEVERAL = {"grid": {"train.learning_rate": RATES}, "seeds": [1, 0]}


class Elsewhere:
    """Carries runs out one by one, as machines would that know of each other only by the folder."""

    def __init__(self, attempts: int = 1) -> None:
        """attempts: so many machines are given each order, all but the last die as they have finished."""
        self.orders: list[RunOrder] = []
        self._attempts = attempts

    @contextmanager
    def __call__(self, base: Base, config: Config, listener: Listener) -> Iterator[Carry]:
        def attempt(order: RunOrder) -> RunState | None:
            return None if listener.stop() else carried(base, order, listener.of_run(order.folder.name))

        def carry(orders: list[RunOrder]) -> list[RunState | None]:
            self.orders += orders
            last = [[attempt(order) for _ in range(self._attempts)][-1] for order in reversed(orders)]
            return last[::-1]

        yield carry


@pytest.mark.parametrize("attempts", [1, 2])
def test_runs_carried_out_elsewhere_learn_to_the_bit_what_they_learn_in_passes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    base, told, elsewhere = tiny.base(), list[Report](), Elsewhere(attempts)
    found = train(
        base, config(tmp_path / "apart", SEVERAL), listener=Listener(step=told.append), spread=elsewhere
    )
    assert [order.validations for order in elsewhere.orders] == [2, 2, 2, 2, 3, 3, None, None]
    monkeypatch.setitem(loop.PASS_TOKENS, "cpu", 1)
    whole = train(base, config(tmp_path / "whole", SEVERAL))
    assert found.card.weights_sha256 == whole.card.weights_sha256
    assert about(found) == about(whole)
    assert found.card.scores == whole.card.scores
    for name in ("letters", "letters-seed0", "letters-seed1"):
        saved, other = (tmp_path / where / "prompts" / name for where in ("apart", "whole"))
        assert saved.exists() == other.exists()
        for path in saved.glob("*.safetensors"):
            assert path.read_bytes() == (other / path.name).read_bytes()
    assert told[-1].step == told[-1].total == sum(trial.steps for trial in about(found).trials) + 9


@pytest.mark.parametrize("stop_at", [1, 7, 16, 23, 27])
def test_a_search_that_was_stopped_elsewhere_goes_on_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    monkeypatch.setitem(loop.PASS_TOKENS, "cpu", 1)
    base, cut, told = tiny.base(), config(tmp_path / "cut", SEVERAL), list[Report]()
    heard = Listener(step=told.append, stop=lambda: bool(told) and told[-1].step >= stop_at)
    stopped = train(base, cut, listener=heard, spread=Elsewhere())
    assert stopped.card.training is not None
    assert stopped.card.training.ended == "interrupted"
    found = train(base, cut, resume=True)
    whole = train(base, config(tmp_path / "whole", SEVERAL))
    assert front(found).equal(front(whole))
    assert about(found) == about(whole)


def test_a_search_that_ends_before_any_run_began_keeps_nothing(tmp_path: Path) -> None:
    wanted = config(tmp_path, SEVERAL)
    with pytest.raises(KeyboardInterrupt):
        train(tiny.base(), wanted, listener=Listener(stop=lambda: True), spread=Elsewhere())
    assert not (tmp_path / "prompts").exists()


def test_one_run_is_not_spread(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^letters is one run, .* train without --ray\.$"):
        train(tiny.base(), config(tmp_path), spread=Elsewhere())
    assert not (tmp_path / "runs").exists()


def test_a_validation_that_two_machines_wrote_down_counts_once(tmp_path: Path) -> None:
    """One that was given up may go on for a moment, and writes what the other writes."""
    base, wanted = tiny.base(), config(tmp_path, SEVERAL)
    whole = train(base, wanted)
    for log in (tmp_path / "runs").rglob("log.jsonl"):
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join([*lines, *lines[2:5]]))
    shutil.rmtree(tmp_path / "prompts")
    found = train(base, wanted, resume=True, listener=NEVER_STEPS)
    assert about(found) == about(whole)
