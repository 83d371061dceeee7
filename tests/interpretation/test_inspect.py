"""What is asked for is looked at, on the rows it says, and what does not apply is said in a sentence."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from interpretation.saved import saved
from softprompt.errors import ArtifactError, ConfigError, DataError, WrongBaseError
from softprompt.interpretation.ablation import ablate
from softprompt.interpretation.grids import ablation_grid, near_grid, readings_grid
from softprompt.interpretation.inspect import SECTIONS, Inspection, InspectOptions, PromptInspection, inspect
from softprompt.interpretation.summary import (
    change,
    facts,
    headlines,
    list_of,
    relation_lines,
    section_lines,
    spaced,
)
from softprompt.library.prompt import load_prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two soft prompts and a KV prefix."""
    folder = tmp_path_factory.mktemp("prompts")
    saved(folder, "moods", front="Hi {soft:5}")
    saved(folder, "other", front="Hi {soft:5}", init="random")
    saved(folder, "kv", kind="prefix-tuning", front="abcdefgh")
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> Inspection:
    return inspect(["moods", "kv", "other"], tiny.base(), folder / "prompts")


def look(folder: Path, *only: str, name: str = "moods", **options: object) -> PromptInspection:
    wanted = replace(InspectOptions(only=only), **options)  # type: ignore[arg-type]
    return inspect([name], tiny.base(), folder / "prompts", wanted).prompts[0]


def test_everything_that_applies_is_there(seen: Inspection) -> None:
    soft, kv, _ = seen.prompts
    for name in (
        "near",
        "clusters",
        "start_clusters",
        "drift",
        "map",
        "ablation",
        "attention",
        "words",
        "speech",
        "shift",
        "mixing",
    ):
        assert getattr(soft, name) is not None, name
    assert not soft.left_out
    for name in ("ablation", "attention", "speech", "shift", "mixing", "prefix_drift"):
        assert getattr(kv, name) is not None, name
    assert kv.near is None
    assert kv.words is None
    assert set(kv.left_out) == {"near", "words"}
    assert all("KV prefix" in why for why in kv.left_out.values())
    assert soft.search is None
    assert soft.wayward is None


def test_numbers_are_those_of_the_analyses_on_the_rows_named(seen: Inspection, folder: Path) -> None:
    found = seen.prompts[0]
    assert found.rows is not None
    assert found.rows.told == "12 validation rows"
    prompt = load_prompt("moods", tiny.base(), folder / "prompts")
    groups = [one.positions for one in found.ablation.clusters] if found.ablation else []
    assert found.ablation == ablate(tiny.base(), prompt.front, found.rows.encoded, clusters=groups)
    assert found.ablation.loss == pytest.approx(prompt.card.scores["validation"]["nll"], rel=1e-5)
    for part in (found.ablation, found.attention, found.shift, found.mixing):
        assert part is not None
        assert part.rows == 12


def test_words_in_front_are_no_cluster(seen: Inspection) -> None:
    found = seen.prompts[0]
    assert found.clusters is not None
    assert found.ablation is not None
    assert found.inspected.learnt == (3, 4, 5, 6, 7)
    hidden = [p for one in found.ablation.clusters for p in one.positions]
    assert hidden == [found.inspected.learnt[p] for one in found.clusters.clusters for p in one.positions]


@pytest.mark.parametrize("section", [s for s in SECTIONS if s != "relations"])
def test_one_section_alone_is_that_section(section: str, folder: Path, seen: Inspection) -> None:
    found = look(folder, section)
    whole = seen.prompts[0]
    told = {name for name in found.to_json() if getattr(found, name, None) is not None}
    assert told - {"rows", "left_out"}
    for name in told - {"rows", "left_out", "ablation"}:  # whose clusters come from the section before
        assert getattr(found, name) == getattr(whole, name), name
    assert (found.rows is None) == (section in ("near", "drift"))


def test_rows_are_bounded(folder: Path) -> None:
    found = look(folder, "attention", rows=4)
    assert found.rows is not None
    assert found.rows.told == "4 of 12 validation rows"
    assert found.attention is not None
    assert found.attention.rows == 4


def test_prompts_are_related_as_vectors_and_by_what_they_do(seen: Inspection) -> None:
    assert {m.kind for m in seen.likeness} == {"positions", "matched", "cka", "travel"}
    assert all(m.names == ("moods", "other") for m in seen.likeness)
    assert {m.kind for m in seen.effects} == {"next word", "agreement", "probabilities"}
    assert all(m.names == ("moods", "kv", "other") and m.rows == 12 for m in seen.effects)
    assert seen.average is None
    assert seen.notes == ("These prompts differ in kind or length, so they have no average.",)
    assert len(relation_lines(seen)) == 8


def test_prompts_of_one_shape_have_an_average(folder: Path) -> None:
    seen = inspect(["moods", "other"], tiny.base(), folder / "prompts", InspectOptions(only=("relations",)))
    assert seen.average is not None
    assert [one.name for one in seen.average.sums] == ["moods", "other", "average"]
    assert not seen.notes


def test_a_search_and_a_control_are_trained_only_when_asked_for(folder: Path) -> None:
    found = look(folder, "words", search=True, wayward="xyz")
    assert found.search is not None
    assert found.wayward is not None
    assert found.search.train_rows == 24
    told = "with more it may come nearer" in " ".join(section_lines(found, "words"))
    assert told is found.wayward.rising
    assert [row[0] for row in readings_grid(found).rows] == [
        "the prompt itself",
        "its nearest words",
        "words searched for",
        "control beside a text",
    ]


def test_results_are_json(seen: Inspection) -> None:
    read = json.loads(json.dumps(seen.to_json(), allow_nan=False))
    assert [one["name"] for one in read["prompts"]] == ["moods", "kv", "other"]
    assert read["prompts"][0]["words_in_front"] == {"0": "H", "1": "i", "2": " "}
    assert read["prompts"][1]["left_out"]["near"]
    assert len(read["relations"]) == 7


def test_the_same_seed_gives_the_same_findings(folder: Path) -> None:
    one, two = (look(folder, "near", "drift", "says", "ablation") for _ in range(2))
    assert one.to_json() == two.to_json()


def test_a_model_without_masks_leaves_ablation_out_and_does_the_rest(tmp_path: Path) -> None:
    saved(tmp_path, "moods", base=tiny.base("bloom"))
    options = InspectOptions(only=("ablation", "attention"))
    (found,) = inspect(["moods"], tiny.base("bloom"), tmp_path / "prompts", options).prompts
    assert found.ablation is None
    assert "takes no masks but its own" in found.left_out["ablation"]
    assert found.attention is not None
    assert section_lines(found, "ablation") == [found.left_out["ablation"]]


def test_no_rows_is_one_sentence_with_both_ways_out(tmp_path: Path) -> None:
    saved(tmp_path, "moods")
    (tmp_path / "validation.jsonl").unlink()
    with pytest.raises(DataError, match=r"with --data, or ask for --only near,drift\.$"):
        look(tmp_path, *SECTIONS)
    assert look(tmp_path, "near").near is not None


def test_bad_wishes_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="There is no section 'nearness'; choose among near, drift"):
        InspectOptions(only=("nearness",))
    with pytest.raises(WrongBaseError, match="moods was learnt on"):
        inspect(["moods"], tiny.base("gpt2"), folder / "prompts")
    with pytest.raises(ArtifactError, match="There is no prompt called mods"):
        inspect(["mods"], tiny.base(), folder / "prompts")
    with pytest.raises(ConfigError, match="named twice"):
        inspect(["moods", "moods"], tiny.base(), folder / "prompts", InspectOptions(only=("relations",)))


# What is said ------------------------------------------------------------------------------------


def test_sentences_say_the_numbers(seen: Inspection) -> None:
    found = seen.prompts[0]
    assert found.ablation is not None
    assert found.drift is not None
    most = max(found.ablation.each, key=lambda one: one.loss.difference)
    (first, second) = section_lines(found, "ablation")
    assert first.startswith(f"Position {most.positions[0]} does most: without it the loss changes by ")
    assert change(most.loss.difference) in first
    matter = [one for one in found.ablation.each if one.loss.low > 0 or one.loss.high < 0]
    assert second.startswith(f"{len(matter)} of 8 positions")
    steps = [p.relative for p in found.drift.positions if p.position >= 3 and p.relative is not None]
    assert f"travelled {statistics.median(steps):.2f} times" in section_lines(found, "drift")[0]
    assert len(headlines(found)) == 5
    assert facts(found)["kind"] == "soft prompt, 8 positions, of which 5 learnt, 160 numbers"


def test_a_prompt_that_never_moved_is_called_so(folder: Path) -> None:
    found = look(folder, "drift")
    assert isinstance(found.inspected.start, torch.Tensor)
    still = replace(found.inspected.prompt, front=found.inspected.start)
    still = replace(still, card=still.card.model_copy(update={"name": "still"}))
    still.save(folder / "prompts", overwrite=True)
    assert section_lines(look(folder, "drift", name="still"), "drift")[0] == "It never left its start."


def test_tables_mark_what_stands_out(seen: Inspection) -> None:
    found = seen.prompts[0]
    assert found.ablation is not None
    grid = ablation_grid(found.ablation.each)
    assert grid.marked == tuple(n for n, one in enumerate(found.ablation.each) if one.matters)
    assert len(grid.rows) == 8
    near = near_grid(found)
    assert [row[4] for row in near.rows[:3]] == ["H", "i", spaced(" ")]
    assert all(place >= 3 for place in near.marked)


def test_numbers_and_positions_in_words() -> None:
    assert [change(x) for x in (0.1234, -0.1234, 0.0, -0.0001)] == ["+0.123", "−0.123", "0.000", "0.000"]
    assert change(-0.051, points=True) == "−5.1"
    assert list_of([4, 0, 1, 2, 7]) == "0-2, 4, 7"
    assert spaced(" a") == "␣a"
