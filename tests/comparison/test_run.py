"""A whole comparison on a tiny base: fair, resumable, honest about its test rows, and equal to the parts."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from softprompt.checkpoints.freeze import load_base
from softprompt.comparison import cell, run
from softprompt.comparison.results import Results
from softprompt.comparison.run import compare
from softprompt.data.sources import read
from softprompt.errors import ConfigError
from softprompt.library.prompt import load_prompt
from softprompt.listener import Report

METHODS: list[dict[str, Any]] = [
    {"name": "text", "method": {"kind": "text"}, "trials": [{}, {"method.front": "{demos:2}"}]},
    {"name": "soft", "method": {"front": "{soft:3}"}},
    {"name": "vote", "votes_of": "soft"},
    {"name": "prefix", "method": {"kind": "prefix-tuning", "front": "{demos:1}"}},
    {"name": "adapters", "method": {"kind": "lora", "rank": 2}},
    {"name": "everything", "method": {"kind": "full"}},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def settings(folder: Path, base: Path, **more: Any) -> dict[str, Any]:
    for split, first in (("train", 0), ("validation", 1000), ("test", 2000)):
        rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(first, first + 18)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    labels = {"x": "a", "y": "b", "z": "c"}
    return {
        "name": "letters",
        "base": {"model": str(base), "dtype": "float32"},
        "data": {**paths, "input": "{text}", "target": ":{label}", "labels": labels, "train_rows": 12},
        "train": {"epochs": 2, "batch_size": 4},
        "compare": {
            "seeds": [0, 1, 2],
            "trials": 2,
            "alternatives": False,
            "folder": str(folder / "out"),
            "latency_requests": 2,
        },
        "methods": METHODS,
        **more,
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, Results, list[str]]:
    folder = tmp_path_factory.mktemp("whole")
    said: list[str] = []
    return folder, compare(settings(folder, base), notify=said.append), said


Done = tuple[Path, Results, list[str]]


def test_every_method_has_its_trials_runs_and_costs(done: Done) -> None:
    folder, results, _ = done
    assert results.finished
    assert [m.name for m in results.methods] == [m["name"] for m in METHODS]
    for method in results.methods:
        assert not method.trouble
        assert len(method.runs) == (1 if method.name == "vote" else 3)
        assert sum(trial.chosen for trial in method.trials) == (method.name != "vote")
        for one in method.runs:
            assert len(one.predictions) == len(results.test_rows) == 18
            assert (one.costs.trained_parameters > 0) == (method.name != "text")
            assert one.costs.artifact_bytes > 0
    vote, soft = results.methods[2].runs[0], results.methods[1].runs
    assert vote.costs.trained_parameters == sum(one.costs.trained_parameters for one in soft)
    saved = Results.load(folder / "out" / "letters" / "results.json")
    assert saved.model_dump() == results.model_dump()
    assert (folder / "out" / "letters" / "report.html").stat().st_size > 10_000


def test_the_chosen_trial_validates_best_and_only_its_artifacts_stay(done: Done) -> None:
    folder, results, _ = done
    kept = {p.name for p in (folder / "out" / "letters" / "prompts").iterdir()}
    for number, method in enumerate(results.methods, start=1):
        if not method.trials:
            continue
        best = max(t.validation["accuracy"].value for t in method.trials)
        (chosen,) = [i for i, trial in enumerate(method.trials) if trial.chosen]
        assert method.trials[chosen].validation["accuracy"].value == best
        assert {name for name in kept if name.startswith(f"{number}-")} == {
            f"{number}-{method.name}-trial{chosen + 1}-seed{seed}" for seed in (0, 1, 2)
        }


def test_the_numbers_are_those_of_the_kept_artifacts(done: Done, base: Path) -> None:
    folder, results, _ = done
    model = load_base(str(base), dtype="float32")
    rows = read(str(folder / "test.jsonl"))
    library = folder / "out" / "letters" / "prompts"
    for path in library.iterdir():
        number, name, _, seed = path.name.split("-")
        found = load_prompt(path.name, model, library).evaluate(rows)
        wanted = results.methods[int(number) - 1].runs[int(seed[-1])]
        assert list(found.predictions) == wanted.predictions, name
        assert found.accuracy == wanted.test["accuracy"].value
        assert found.nll == pytest.approx(wanted.test["nll"].value)


def test_all_methods_and_seeds_see_the_same_rows(done: Done) -> None:
    folder, results, _ = done
    digests = set()
    for path in (folder / "out" / "letters" / "prompts").glob("*/softprompt.json"):
        data = json.loads(path.read_text())["data"]
        digests.add((data["train"]["digest"], data["validation"]["digest"]))
        assert "test" not in data
    assert digests == {(results.data["train"]["digest"], results.data["validation"]["digest"])}


def test_each_method_trains_with_its_threads(tmp_path: Path, base: Path) -> None:
    found: dict[str, int] = {}
    methods = [{**METHODS[1], "train": {"threads": 2}}, {**METHODS[1], "name": "other"}]
    rules = {
        "seeds": [0],
        "trials": 1,
        "alternatives": False,
        "folder": str(tmp_path / "out"),
        "latency_requests": 0,
        "perturb": False,
    }
    compare(
        settings(tmp_path, base, methods=methods, compare=rules),
        watch=lambda title, report: found.update({title.split(",")[0]: torch.get_num_threads()}),
    )
    assert found == {"soft": 2, "other": 1}
    assert torch.get_num_threads() == 1


def test_a_vote_is_what_most_seeds_say(done: Done) -> None:
    _, results, _ = done
    _, soft, vote, *_ = results.methods
    for row, said in enumerate(vote.runs[0].predictions):
        votes: Counter[Any] = Counter(one.predictions[row] for one in soft.runs)
        assert votes[said] == max(votes.values())


def test_pairs_are_of_every_two_methods_and_antisymmetric_in_sense(done: Done) -> None:
    _, results, _ = done
    means = {m.name: m.summary["accuracy"].mean for m in results.methods}
    assert len(results.pairs) == 6 * 5 // 2
    for pair in results.pairs:
        assert pair.difference == pytest.approx(means[pair.first] - means[pair.second])
        assert pair.low <= pair.difference <= pair.high
        assert 0 < pair.p <= 1
        assert pair.test == "bootstrap"  # of the mean over seeds, so p and interval are of one thing
        if pair.p < 0.045 or pair.p > 0.055:
            assert (pair.low > 0 or pair.high < 0) == (pair.p < 0.05), (pair.first, pair.second)


def test_runs_of_one_seed_are_told_apart_by_mcnemar(tmp_path: Path, base: Path) -> None:
    wanted = settings(tmp_path, base, methods=METHODS[:2])
    wanted["compare"] |= {"seeds": [0], "metric": "macro_f1"}
    by_f1 = compare(wanted)
    assert by_f1.metric == "macro_f1"
    assert by_f1.pairs[0].test == "bootstrap"
    wanted["compare"] |= {"metric": "accuracy", "folder": str(tmp_path / "other")}
    assert compare(wanted).pairs[0].test == "mcnemar"


def test_an_artifact_that_needs_the_training_rows_is_not_left_behind(tmp_path: Path, base: Path) -> None:
    retrieved = {"name": "retrieved", "method": {"kind": "text"}, "data": {"retrieve": 2}, "trials": [{}]}
    wanted = settings(tmp_path, base, methods=[retrieved])
    found = [compare(wanted).methods[0].runs[0].predictions for _ in range(2)]
    assert found[0] == found[1]
    assert not list((tmp_path / "out" / "letters" / "prompts").glob("*"))


class KilledError(Exception):
    """Stands for a kill at any moment."""


def test_killed_and_started_again_it_goes_on_where_it_was(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, done: Done
) -> None:
    trained: list[str] = []
    whole = cell.train

    def train(*arguments: Any, **options: Any) -> Any:
        trained.append(arguments[1].name)
        if len(trained) == 6:
            raise KilledError
        return whole(*arguments, **options)

    monkeypatch.setattr(run, "train", train)
    wanted = settings(tmp_path, base)
    with pytest.raises(KilledError):
        compare(wanted)
    results = compare(wanted)
    assert len(trained) == len(set(trained)) + 1  # only what was under way is done again
    again = compare(wanted)
    assert len(trained) == len(set(trained)) + 1
    for other in (again, done[1]):
        assert [m.summary for m in results.methods] == [m.summary for m in other.methods]


def test_other_settings_are_not_mistaken_for_what_is_there(tmp_path: Path, base: Path) -> None:
    few = METHODS[1:2]
    first = compare(settings(tmp_path, base, methods=few))
    second = compare(settings(tmp_path, base, methods=few, train={"epochs": 1, "batch_size": 4}))
    assert first.methods[0].runs[0].steps == 2 * second.methods[0].runs[0].steps


def test_more_test_rows_are_read_without_training_again(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = METHODS[1:2]
    first = compare(settings(tmp_path, base, methods=few))
    monkeypatch.setattr(run, "train", None)
    wanted = settings(tmp_path, base, methods=few)
    wanted["data"]["test_rows"] = 9
    second = compare(wanted)
    one, two = first.methods[0].runs, second.methods[0].runs
    assert [len(found[0].predictions) for found in (one, two)] == [18, 9]
    assert [run.validations for run in one] == [run.validations for run in two]
    wanted["compare"]["latency_requests"] = 0
    assert compare(wanted).methods[0].runs[0].costs.latency_seconds is None


def test_a_trial_that_is_chosen_later_gets_its_artifact_back(tmp_path: Path, base: Path) -> None:
    soft = {"name": "soft", "method": {"front": "{soft:3}"}}
    rates = [{"train.learning_rate": rate} for rate in (1e-6, 0.3)]
    wanted = settings(tmp_path, base, methods=[{**soft, "trials": rates}])
    assert [trial.chosen for trial in compare(wanted).methods[0].trials] == [False, True]
    wanted["methods"] = [{**soft, "trials": rates[:1]}]
    again = compare(wanted).methods[0]
    assert not again.trouble
    assert len(again.runs) == 3


def test_an_artifact_that_was_replaced_is_not_tested_as_the_cell_s(tmp_path: Path, base: Path) -> None:
    wanted = settings(tmp_path, base, methods=[METHODS[1]])
    first = compare(wanted).methods[0]
    library = tmp_path / "out" / "letters" / "prompts"
    one, other = (next(library.glob(f"*-seed{seed}")) for seed in (0, 1))
    shutil.rmtree(one)
    card = json.loads((other / "softprompt.json").read_text()) | {"name": one.name}
    shutil.copytree(other, one)
    (one / "softprompt.json").write_text(json.dumps(card))
    wanted["compare"]["latency_requests"] = 0  # so the test is read again
    assert compare(wanted).methods[0].runs[0].predictions == first.runs[0].predictions


def test_one_base_is_held_at_a_time(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a method on another base would be charged with the memory of this one."""
    loaded: list[weakref.ref[Any]] = []
    alive: list[int] = []
    load, whole = load_base, cell.train

    def watched(*arguments: Any, **options: Any) -> Any:
        found = load(*arguments, **options)
        loaded.append(weakref.ref(found.model))
        return found

    def train(*arguments: Any, **options: Any) -> Any:
        alive.append(sum(model() is not None for model in loaded))
        return whole(*arguments, **options)

    monkeypatch.setattr(run, "load_base", watched)
    monkeypatch.setattr(run, "train", train)
    other = {**METHODS[1], "name": "half", "base": {"dtype": "bfloat16"}}
    compare(settings(tmp_path, base, methods=[METHODS[1], other]))
    assert len(loaded) == 2
    assert set(alive) == {1}


def test_stopping_keeps_no_half_trained_cell(tmp_path: Path, base: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare(settings(tmp_path, base, methods=METHODS[1:2]), stop=lambda: True)
    assert not list((tmp_path / "out" / "letters").glob("cells/*"))
    seen: list[Report] = []
    results = compare(settings(tmp_path, base, methods=METHODS[1:2]), watch=lambda _, r: seen.append(r))
    assert results.finished
    assert len(seen) == 4 * (1 + 6)


def test_a_method_that_cannot_be_is_named_and_the_others_go_on(tmp_path: Path, base: Path) -> None:
    wrong = {"name": "wrong", "method": {"kind": "lora", "targets": ["query_key_value"]}}
    results = compare(settings(tmp_path, base, methods=[wrong, METHODS[1]]))
    assert "has no such linear layer" in results.methods[0].trouble
    assert not results.methods[0].runs
    assert len(results.methods[1].runs) == 3


def test_free_text_is_compared_by_loss_or_by_what_is_written(tmp_path: Path, base: Path) -> None:
    wanted = settings(tmp_path, base, methods=METHODS[:2])
    del wanted["data"]["labels"]
    by_loss = compare(wanted)
    assert (by_loss.metric, by_loss.higher_is_better) == ("nll", False)
    wanted["compare"] |= {"metric": "rougeL", "max_new_tokens": 5, "folder": str(tmp_path / "written")}
    written = compare(wanted)
    for method in written.methods:
        assert {"rougeL", "bleu", "chrf", "token_f1", "nll", "perplexity"} <= method.summary.keys()
        loss, torn = (method.runs[0].test[name].value for name in ("nll", "perplexity"))
        assert torn == pytest.approx(math.exp(loss))
        assert all(isinstance(text, str) for text in method.runs[0].predictions)
    wanted["compare"]["max_new_tokens"] = 30
    longer = compare(wanted)
    before, after = (len(str(found.methods[0].runs[0].predictions)) for found in (written, longer))
    assert after > before
    wanted["compare"]["metric"] = "accuracy"
    with pytest.raises(ConfigError, match="data has neither labels nor choices"):
        compare(wanted)
