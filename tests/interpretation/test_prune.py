"""A shorter prompt is chosen by what its positions do, scores what its card says, and is like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from interpretation.saved import saved
from softprompt.errors import ConfigError
from softprompt.evaluation.score import score
from softprompt.interpretation.inspected import InspectedPrompt, Rows, open_prompt, part_of, rows_of
from softprompt.interpretation.prune import Length, Pruned, prune
from softprompt.library.prompt import load_prompt
from softprompt.prefix import Prefix

METHODS: list[dict[str, Any]] = [
    {},
    {"front": "Hi {soft:2}!{soft:1}"},
    {"kind": "prefix-tuning", "front": "abcdef"},
]


def opened(folder: Path, **method: Any) -> tuple[InspectedPrompt, Rows]:
    saved(folder, "moods", **method)
    inspected = open_prompt("moods", tiny.base(), folder / "prompts")
    return inspected, rows_of(inspected)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_pruning_to_its_own_length_changes_nothing(method: dict[str, Any], tmp_path: Path) -> None:
    inspected, rows = opened(tmp_path, **method)
    found = prune(inspected, rows, "short", keep=inspected.positions)
    assert found.prompt.front is inspected.front
    assert found.chosen.kept == tuple(range(inspected.positions))
    assert found.chosen.lost is None
    whole = inspected.prompt.card.scores["validation"]
    assert found.prompt.card.scores["validation"]["nll"] == pytest.approx(whole["nll"], rel=1e-6)
    assert found.prompt.card.template.front == inspected.prompt.card.template.front
    assert found.prompt.card.trained_parameters == inspected.prompt.card.trained_parameters


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_shorter_prompt_is_saved_and_scores_what_its_card_says(
    method: dict[str, Any], tmp_path: Path
) -> None:
    inspected, rows = opened(tmp_path, **method)
    keep = inspected.positions - 2
    found = prune(inspected, rows, "short", keep=keep)
    found.prompt.save(tmp_path / "prompts")
    again = load_prompt("short", tiny.base(), tmp_path / "prompts")
    card = again.card
    assert (card.name, card.positions, again.prefix.length) == ("short", keep, keep)
    assert again.evaluate(rows.table).nll == pytest.approx(card.scores["validation"]["nll"], rel=1e-6)
    assert card.scores["validation"]["rows"] == len(rows)
    assert set(card.scores) == {"validation"}  # nothing of the longer prompt is left
    assert card.trained_parameters < inspected.prompt.card.trained_parameters
    for p in inspected.words:
        assert p in found.chosen.kept
    reopened = open_prompt("short", tiny.base(), tmp_path / "prompts")
    assert reopened.start is not None
    assert len(reopened.learnt) == len(inspected.learnt) - 2
    assert inspected.start is not None
    expected = part_of(inspected.start, found.chosen.kept)
    if isinstance(reopened.start, Prefix):
        assert isinstance(expected, Prefix)
        assert torch.equal(reopened.start.keys[2], expected.keys[2])
    else:
        assert torch.equal(reopened.start, expected)  # type: ignore[arg-type]


def test_the_curve_scores_every_length_as_it_would_be_used(tmp_path: Path) -> None:
    inspected, rows = opened(tmp_path)
    assert isinstance(inspected.front, torch.Tensor)
    told: list[tuple[int, int]] = []
    found = prune(inspected, rows, "short", keep=2, progress=lambda *done: told.append(done))
    assert [length.positions for length in found.curve] == [6, 5, 4, 3, 2]
    for before, after in zip(found.curve, found.curve[1:], strict=False):
        assert set(before.kept) - set(after.kept) == {after.removed}
        assert after.scores.nll == score(tiny.base(), inspected.front[list(after.kept)], rows.encoded).nll
        assert after.lost is not None
        assert after.lost.nll.difference == pytest.approx(after.scores.nll - found.curve[0].scores.nll)
    assert told == [(n, 10) for n in range(10)]


@pytest.mark.parametrize("anew", [False, True])
def test_positions_go_in_the_order_of_what_is_left_without_them(anew: bool, tmp_path: Path) -> None:
    inspected, rows = opened(tmp_path)
    assert isinstance(inspected.front, torch.Tensor)
    found = prune(inspected, rows, "short", keep=1, anew=anew)

    def without(kept: tuple[int, ...], p: int) -> float:
        return score(tiny.base(), inspected.front[[q for q in kept if q != p]], rows.encoded).nll  # type: ignore[index]

    whole = found.curve[0].kept
    first = sorted(whole, key=lambda p: without(whole, p))
    removed = [length.removed for length in found.curve[1:]]
    if not anew:
        assert removed == first[:5]
        return
    for before, after in zip(found.curve, found.curve[1:], strict=False):
        assert after.removed == min(before.kept, key=lambda p: without(before.kept, p))


def test_the_tolerance_takes_the_shortest_length_that_keeps_the_score(tmp_path: Path) -> None:
    inspected, rows = opened(tmp_path)
    for tolerance in (0.0, 0.05, 1.0):
        found = prune(inspected, rows, "short", tolerance=tolerance)
        assert found.chosen in found.curve
        for length in found.curve:
            lost = found.curve[0].scores.accuracy - length.scores.accuracy  # type: ignore[operator]
            if length.positions < found.chosen.positions:
                assert lost > tolerance
            if length is found.chosen:
                assert lost <= tolerance + 1e-9
    assert found.chosen.positions == 1


def test_free_text_tolerates_nats(tmp_path: Path) -> None:
    inspected, rows = opened(tmp_path, data={"labels": None})
    assert prune(inspected, rows, "short", tolerance=100.0).chosen.positions == 1
    found = prune(inspected, rows, "short", tolerance=0.0)
    gaps = [length.lost.nll.difference if length.lost else 0.0 for length in found.curve]
    assert gaps[found.curve.index(found.chosen)] <= 0
    assert found.chosen.scores.accuracy is None


def test_the_keys_of_a_prefix_stay_as_they_are(tmp_path: Path) -> None:
    inspected, rows = opened(tmp_path, kind="prefix-tuning", front="abcdef")
    found = prune(inspected, rows, "short", keep=3)
    front, whole = found.prompt.front, inspected.front
    assert isinstance(front, Prefix)
    assert isinstance(whole, Prefix)
    kept = list(found.chosen.kept)
    assert kept[0] == 0  # the frozen one
    assert all(torch.equal(a, b[:, kept]) for a, b in zip(front.keys, whole.keys, strict=True))
    assert all(torch.equal(a, b[:, kept]) for a, b in zip(front.values, whole.values, strict=True))


def test_the_front_is_written_as_it_is_now(tmp_path: Path) -> None:
    inspected, rows = opened(tmp_path, front="Hi {{soft:3}} {soft:2}!{soft:1}")
    words = len(inspected.words)
    found = prune(inspected, rows, "short", keep=words)
    assert found.prompt.card.template.front == "Hi {{soft:3}} !"
    assert len(found.chosen.kept) == words
    one = prune(inspected, rows, "short", keep=words + 1)
    assert one.prompt.card.template.front.count("{soft:1}") == 1


def test_a_prompt_pruned_twice_names_positions_of_the_first(tmp_path: Path) -> None:
    inspected, rows = opened(tmp_path)
    first = prune(inspected, rows, "short", keep=4)
    first.prompt.save(tmp_path / "prompts")
    again = open_prompt("short", tiny.base(), tmp_path / "prompts")
    second = prune(again, rows, "shorter", keep=2)
    about = second.prompt.card.settings["pruned"]
    assert about["from"] == "moods"
    assert about["kept"] == [first.chosen.kept[p] for p in second.chosen.kept]


@pytest.mark.parametrize(("keep", "front"), [(0, "{soft:6}"), (7, "{soft:6}"), (3, "Hi, {soft:2}")])
def test_a_length_out_of_range_is_refused(keep: int, front: str, tmp_path: Path) -> None:
    inspected, rows = opened(tmp_path, front=front)
    with pytest.raises(ConfigError, match=r"--keep must be from \d to \d, not \d\.$"):
        prune(inspected, rows, "short", keep=keep)


def test_a_bad_name_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    inspected, rows = opened(tmp_path)
    with pytest.raises(ConfigError, match="no name for a prompt"):
        prune(inspected, rows, "../short", keep=2, progress=lambda *_: pytest.fail("scored"))


def test_results_are_json(tmp_path: Path) -> None:
    inspected, rows = opened(tmp_path)
    found: Pruned = prune(inspected, rows, "short", keep=4)
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["name"] == "short"
    assert len(read["curve"]) == 3
    chosen: Length = found.chosen
    assert read["chosen"]["kept"] == list(chosen.kept)
