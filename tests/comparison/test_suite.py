"""Several data sets and bases in one file: each is the comparison it would be alone, and means are theirs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import softprompt
import tiny
from comparison import fake_results
from comparison.test_page import Page
from softprompt.cli.main import run as command
from softprompt.comparison import run, suite_page
from softprompt.comparison.results import Results
from softprompt.comparison.run import compare
from softprompt.comparison.suite import compare_all, members
from softprompt.comparison.suite_page import render_suite
from softprompt.comparison.suite_results import SuiteResults, summed
from softprompt.comparison.suite_words import averages, missing_from, verdicts
from softprompt.comparison.words import unbroken
from softprompt.errors import ConfigError
from softprompt.evaluation.paired import combined


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models of different size in folders of the same name, the larger first."""
    found = []
    for architecture in ("gpt2", "llama"):
        folder = tmp_path_factory.mktemp(architecture) / "tiny"
        tiny.model(architecture).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        found.append(str(folder))
    return sorted(found, key=lambda path: -Path(path, "model.safetensors").stat().st_size)


def rows(folder: Path, name: str, first: int) -> dict[str, str]:
    """The sources of a made-up data set."""
    sources = {}
    for split, start in (("train", first), ("validation", first + 1000), ("test", first + 2000)):
        found = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(start, start + 12)]
        path = folder / f"{name}-{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        sources[split] = path.name
    return sources


def written(folder: Path, bases: list[str]) -> Path:
    """A file with two data sets and two bases."""
    ones, twos = rows(folder, "ones", 0), rows(folder, "twos", 5000)
    path = folder / "both.toml"
    path.write_text(f"""
bases = {json.dumps(bases)}
[base]
dtype = "float32"
[data]
input = "{{text}}"
target = ":{{label}}"
labels = {{ x = "a", y = "b", z = "c" }}
[train]
epochs = 1
batch_size = 4
[compare]
seeds = [0, 1]
trials = 1
alternatives = false
perturb = false
latency_requests = 0
folder = {json.dumps(str(folder / "out"))}
[[methods]]
name = "text"
method = {{ kind = "text" }}
[[methods]]
name = "soft"
method = {{ front = "{{soft:2}}" }}
[[tasks]]
name = "ones"
data = {{ train = "{ones["train"]}", validation = "{ones["validation"]}", test = "{ones["test"]}" }}
[[tasks]]
name = "twos"
data = {{ train = "{twos["train"]}", validation = "{twos["validation"]}", test = "{twos["test"]}" }}
train = {{ epochs = 2 }}
""")
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, bases: list[str]) -> tuple[Path, SuiteResults]:
    path = written(tmp_path_factory.mktemp("suite"), bases)
    return path, compare_all(members(path))


Done = tuple[Path, SuiteResults]


def folder_of(path: Path) -> Path:
    return members(path)[0].folder.parent


def test_there_is_a_member_for_every_data_set_on_every_base(done: Done, bases: list[str]) -> None:
    path, results = done
    found = members(path)
    assert [member.name for member in found] == ["ones-tiny", "ones-tiny-2", "twos-tiny", "twos-tiny-2"]
    assert [member.settings["base"]["model"] for member in found] == [*bases, *bases]
    assert results.finished
    assert results.tasks == ["ones", "twos"]
    assert [base.parameters for base in results.bases] == sorted(base.parameters for base in results.bases)
    assert [[m.task for m in base.members] for base in results.bases] == [["ones", "twos"]] * 2
    for member in found:
        assert (folder_of(path) / member.name / "report.html").is_file()


def test_a_member_is_what_it_would_be_alone(done: Done, tmp_path: Path) -> None:
    path, _ = done
    member = members(path)[3]
    alone = {**member.settings, "name": "alone"}
    alone["compare"] = {**alone["compare"], "folder": str(tmp_path)}
    wanted = compare(alone)
    found = Results.load(folder_of(path) / member.name / "results.json")
    assert [[r.predictions for r in m.runs] for m in found.methods] == [
        [r.predictions for r in m.runs] for m in wanted.methods
    ]
    assert {m.runs[0].steps for m in found.methods if m.trained} == {6}  # its own two epochs


def test_means_are_over_the_data_sets(done: Done) -> None:
    folder = folder_of(done[0])
    for base in done[1].bases:
        of = [Results.load(folder / member.name / "results.json") for member in base.members]
        for number, method in enumerate(("text", "soft")):
            scores = [one.methods[number].summary["accuracy"] for one in of]
            mean = base.means[method]
            assert mean.mean == pytest.approx(fmean(s.mean for s in scores))
            assert mean.mean - mean.low == pytest.approx(math.hypot(*(s.mean - s.low for s in scores)) / 2)
        (pair,) = base.pairs
        assert pair.difference == pytest.approx(fmean(one.pairs[0].difference for one in of))
        assert pair.test == "combined"


def test_it_is_kept_and_goes_on_where_it_was(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    path, results = done
    kept = json.loads((folder_of(path) / "results.json").read_text())
    assert SuiteResults.model_validate(kept) == results

    def anew(*_: Any, **__: Any) -> None:
        raise AssertionError("something was trained again")

    monkeypatch.setattr(run, "train", anew)
    assert compare_all(members(path)).bases == results.bases


def test_a_file_without_tasks_and_bases_is_one_comparison(tmp_path: Path, bases: list[str]) -> None:
    settings = {"data": {**rows(tmp_path, "one", 0), "input": "{text}", "target": "{label}"}}
    assert members(settings) == []
    assert [m.name for m in members(settings, bases=bases)] == ["tiny", "tiny-2"]
    assert [m.settings["compare"]["folder"] for m in members(settings, bases=bases)] == [
        "comparisons/comparison"
    ] * 2


def test_what_is_set_by_hand_wins_over_the_tasks(done: Done) -> None:
    found = members(done[0], ["train.epochs=7", "bases=[]", "name=other"])
    assert [member.settings["train"]["epochs"] for member in found] == [7, 7]
    assert {member.folder.parent.name for member in found} == {"other"}


def test_all_faults_of_all_members_come_before_the_work(done: Done) -> None:
    with pytest.raises(ConfigError) as caught:
        members(done[0], ["train.batch_size=0", "bases=[]"])
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["ones", "twos"]
    with pytest.raises(ConfigError, match="a base stands there twice"):
        members(done[0], bases=["a", "a"])
    with pytest.raises(ConfigError, match="two tasks have the same name"):
        members({"tasks": [{"name": "a"}, {"name": "a"}]})
    with pytest.raises(ConfigError, match=r"tasks\[0\].*dta"):
        members({"tasks": [{"name": "a", "dta": {}}]})
    with pytest.raises(ConfigError, match="no method is called 'nobody'"):
        members({"tasks": [{"name": "a", "methods": {"nobody": {}}}]})
    for section in ("base", "data", "train", "compare"):
        with pytest.raises(ConfigError, match=section):
            members({"data": {}, section: 3, "tasks": [{"name": "a"}], "bases": ["b"]})
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        members(done[0], ["nonsense"])


# Arithmetic, sentences and the page --------------------------------------------------------------


def fakes() -> list[Results]:
    """Made-up results of two data sets on two bases."""
    found = []
    for parameters in (1_000_000, 270_000_000):
        for task, made in (("topics", fake_results.topics()), ("more", fake_results.topics(rows=30))):
            about = {"name": f"base-{parameters}", "parameters": parameters, "fingerprint": f"f{parameters}"}
            found.append(made.model_copy(update={"name": f"{task}-{parameters}", "base": about}))
    return found


TASKS = ["topics", "more", "topics", "more"]


def test_intervals_of_independent_means_add_up_as_squares() -> None:
    found = combined([(0.1, 0.05, 0.2), (0.3, 0.1, 0.4)])
    assert found.difference == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - math.hypot(0.05, 0.2) / 2)
    assert found.high == pytest.approx(0.2 + math.hypot(0.1, 0.1) / 2)
    edge = combined([(0.1, 0.0, 0.2)])
    assert edge.p == pytest.approx(0.05, abs=1e-9)  # an interval that ends at zero
    assert combined([(0.0, -0.1, 0.1)]).p == 1
    assert combined([(0.5, 0.5, 0.5)]).p == 0


def test_a_method_without_a_score_on_one_data_set_has_no_mean() -> None:
    found = fakes()
    lost = found[0].methods[0]
    broken = lost.model_copy(update={"runs": [], "summary": {}, "trouble": "It failed."})
    found[0] = found[0].model_copy(update={"methods": [broken, *found[0].methods[1:]]})
    results = summed("made-up", TASKS, found)
    small, large = results.bases
    assert lost.name not in small.means
    assert lost.name in large.means
    assert any(
        sentence.startswith(f"{lost.name} has no mean on {small.name}") for sentence in missing_from(results)
    )


def test_what_cannot_be_averaged_is_left_out_and_said() -> None:
    found = fakes()
    found[1] = found[1].model_copy(update={"metric": "nll", "higher_is_better": False})
    results = summed("made-up", TASKS, found)
    assert results.metric == "score"
    assert results.left_out == [found[1].name]
    assert found[1].name in averages(results)
    alone = {m.name: m.summary["accuracy"].mean for m in found[0].methods if "accuracy" in m.summary}
    assert {name: one.mean for name, one in results.bases[0].means.items()} == alone


def test_the_page_is_whole_and_asks_for_nothing() -> None:
    results = summed("made-up", TASKS, fakes())
    page = Page(render_suite(results))
    assert not page.open
    assert not page.all("script")
    assert {link["href"] for link in page.all("a")} == {
        f"{member.name}/report.html" for base in results.bases for member in base.members
    }
    assert len(page.all("svg")) == 1
    for sentence in verdicts(results):
        assert unbroken(sentence) in [text for _, text in page.texts]


def test_letters_that_would_touch_move_apart_and_others_stay() -> None:
    assert suite_page._spaced([1.0, 5.0, 9.0], 2.0) == [1.0, 5.0, 9.0]
    assert suite_page._spaced([1.0, 5.0, 5.5, 6.0], 2.0) == [1.0, 3.5, 5.5, 7.5]
    assert suite_page._spaced([2.0, 2.0, 3.5], 2.0) == [0.5, 2.5, 4.5]
    assert suite_page._spaced([], 2.0) == []


def test_names_cannot_break_the_page() -> None:
    hostile = fake_results.hostile()
    about = {**hostile.base, "parameters": 5, "fingerprint": "f", "name": hostile.methods[0].name}
    page = Page(render_suite(summed("x", [""], [hostile.model_copy(update={"base": about})])))
    assert not page.open
    assert not page.all("img") + page.all("script")


# From Python and from a terminal -----------------------------------------------------------------


def test_python_says_which_function_a_file_is_for(done: Done) -> None:
    with pytest.raises(ConfigError, match=r"softprompt\.compare_all compares on each"):
        softprompt.compare(done[0])
    with pytest.raises(ConfigError, match=r"softprompt\.compare does that"):
        softprompt.compare_all({"data": {}})
    assert softprompt.compare_all(done[0], quiet=True).bases == done[1].bases


def test_the_command_prints_tables_of_bases_and_of_data_sets(
    done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["compare", str(done[0])]) == 0
    out = capsys.readouterr().out
    heads = [line.split() for line in out.splitlines() if line.startswith("method")]
    assert [head[:3] for head in heads[1:]] == 2 * [["method", "ones", "twos"]]
    assert heads[0] == ["method", *(word for b in done[1].bases for word in ("tiny", f"({b.parameters:,})"))]
    assert str(folder_of(done[0]) / "report.html") in out
    assert command(["compare", str(done[0]), "--set", "bases=[]", "--plan"]) == 0
    assert "8 runs in all 2 comparisons." in capsys.readouterr().out
