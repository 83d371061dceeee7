"""A saved prompt is opened with the start it was trained from and with the rows it was validated on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from interpretation.saved import saved, write_rows
from softprompt.config import parse
from softprompt.errors import ArtifactError, DataError, WrongBaseError
from softprompt.interpretation.inspected import (
    InspectedPrompt,
    card_of,
    open_prompt,
    part_of,
    rows_of,
    training_rows,
)
from softprompt.library.folder import Library
from softprompt.library.prompt import load_prompt
from softprompt.prefix import Prefix
from softprompt.training.job import Job


def opened(folder: Path, name: str = "moods", base: Any = None) -> InspectedPrompt:
    return open_prompt(name, base or tiny.base(), folder / "prompts")


def begun(folder: Path, name: str = "moods", base: Any = None) -> Any:
    """The front that training began with, by the trainer's own words."""
    card = load_prompt(name, base or tiny.base(), folder / "prompts").card
    with torch.no_grad():
        return Job.prepare(base or tiny.base(), parse(card.settings)).method.front()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Prefix):
        pairs = zip((*a.keys, *a.values), (*b.keys, *b.values), strict=True)
        return all(torch.equal(x, y) for x, y in pairs)
    return bool(torch.equal(a, b))


SOFT = [
    {"init": "text", "init_text": "mood?"},
    {"init": "vocabulary"},
    {"init": "random"},
    {"init": "labels"},
    {"init": "random", "reparametrisation": "residual"},
    {"init": "vocabulary", "reparametrisation": "mlp"},
    {"front": "Say {soft:3} or {{so}} {soft:2}{demos:2}"},
]
PREFIX: list[dict[str, Any]] = [
    {"front": "{demos:2}"},
    {"front": "Good or bad?", "positions": 9, "freeze_first": False},
    {"front": "", "init": "random", "positions": 4},
]


@pytest.mark.parametrize("method", [*SOFT, *({"kind": "prefix-tuning"} | m for m in PREFIX)], ids=str)
def test_the_start_is_the_one_training_began_with(method: dict[str, Any], tmp_path: Path) -> None:
    prompt = saved(tmp_path, "moods", **method)
    found = opened(tmp_path)
    assert found.start is not None
    assert found.start_note == ""
    assert same(found.start, begun(tmp_path))
    assert prompt.card.training is not None
    assert same(found.start, found.front) == (prompt.card.training.best_step == 0)
    assert found.kind == ("KV prefix" if isinstance(prompt.front, Prefix) else "soft prompt")


def test_a_start_from_another_prompt_is_found_in_the_library(tmp_path: Path) -> None:
    first = saved(tmp_path, "first")
    saved(tmp_path, "moods", init="artifact", init_artifact="first")
    found = opened(tmp_path)
    assert isinstance(found.start, torch.Tensor)
    assert same(found.start, first.front)
    (tmp_path / "prompts" / "first").rename(tmp_path / "gone")
    assert "cannot be made again (There is no prompt called first" in opened(tmp_path).start_note


def test_words_are_told_from_what_was_learnt(tmp_path: Path) -> None:
    saved(tmp_path, "moods", front="Hi {soft:2}!{soft:1}")
    found = opened(tmp_path)
    assert found.words == {0: "H", 1: "i", 2: " ", 5: "!"}
    assert found.learnt == (3, 4, 6)
    assert found.positions == 7


def test_the_frozen_position_of_a_prefix_was_not_learnt(tmp_path: Path) -> None:
    saved(tmp_path, "moods", kind="prefix-tuning", front="abc")
    saved(tmp_path, "free", kind="prefix-tuning", front="abc", freeze_first=False)
    assert opened(tmp_path).learnt == (1, 2)
    assert opened(tmp_path, "free").learnt == (0, 1, 2)


def test_demonstrations_that_changed_are_no_start(tmp_path: Path) -> None:
    saved(tmp_path, "moods", kind="prefix-tuning", front="{demos:2}")
    write_rows(tmp_path / "train.jsonl", 22)
    found = opened(tmp_path)
    assert found.start is None
    assert "The training rows of moods have changed since" in found.start_note
    (tmp_path / "train.jsonl").unlink()
    assert "There is no file" in opened(tmp_path).start_note


def test_a_start_that_does_not_fit_what_was_left_alone_is_refused(tmp_path: Path) -> None:
    """The first position was frozen: a start that has another one is not this prompt's."""
    prompt = saved(tmp_path, "moods", kind="prefix-tuning", front="abc")
    settings = json.loads(json.dumps(prompt.card.settings))
    settings["method"]["front"] = "xbc"
    other = replace(prompt, card=prompt.card.model_copy(update={"settings": settings, "name": "other"}))
    other.save(tmp_path / "prompts")
    found = opened(tmp_path, "other")
    assert found.start is None
    assert "is not what it was trained from" in found.start_note


def test_a_card_without_settings_says_so(tmp_path: Path) -> None:
    prompt = saved(tmp_path, "moods")
    card = prompt.card.model_copy(update={"settings": {}, "name": "bare"})
    replace(prompt, card=card).save(tmp_path / "prompts")
    found = opened(tmp_path, "bare")
    assert found.start is None
    assert "does not say what it was trained from" in found.start_note
    with pytest.raises(DataError, match="give rows to try it on with --data"):
        rows_of(found)


def test_rows_are_the_validation_rows(tmp_path: Path) -> None:
    prompt = saved(tmp_path, "moods", data={"validation_rows": 8})
    rows = rows_of(opened(tmp_path))
    assert len(rows) == 8
    assert rows.split == "validation"
    assert rows.table.digest == prompt.card.data["validation"].digest
    assert prompt.evaluate(rows.table).nll == prompt.card.scores["validation"]["nll"]
    assert rows.told == "8 validation rows"
    some = rows_of(opened(tmp_path), most=4)
    assert (len(some), some.told) == (4, "4 of 8 validation rows")
    assert [row["label"] for row in some.table.rows].count("pos") == 2


def test_rows_held_back_from_training_rows_are_found_again(tmp_path: Path) -> None:
    prompt = saved(tmp_path, "moods", data={"validation": None})
    assert rows_of(opened(tmp_path)).table.digest == prompt.card.data["validation"].digest


def test_given_rows_stand_for_them(tmp_path: Path) -> None:
    saved(tmp_path, "moods")
    write_rows(tmp_path / "other.jsonl", 5)
    rows = rows_of(opened(tmp_path), str(tmp_path / "other.jsonl"))
    assert len(rows) == 5
    assert rows.told.endswith("other.jsonl")


def test_rows_that_changed_or_went_are_not_taken(tmp_path: Path) -> None:
    saved(tmp_path, "moods")
    write_rows(tmp_path / "validation.jsonl", 11)
    with pytest.raises(DataError, match=r"have changed since .*; give rows to try it on with --data\.$"):
        rows_of(opened(tmp_path))
    (tmp_path / "validation.jsonl").unlink()
    with pytest.raises(DataError, match=r"not at hand \(There is no file .*--data\.$"):
        rows_of(opened(tmp_path))


def test_training_rows_are_drawn_by_label(tmp_path: Path) -> None:
    saved(tmp_path, "moods")
    labels = [example.label for example in training_rows(opened(tmp_path), 8).examples]
    assert sorted(labels, key=str) == [0] * 4 + [1] * 4
    write_rows(tmp_path / "train.jsonl", 22)
    with pytest.raises(DataError, match="training rows of moods have changed"):
        training_rows(opened(tmp_path), 8)


def test_another_base_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path, "moods")
    with pytest.raises(WrongBaseError, match="moods was learnt on tiny-llama-0"):
        opened(tmp_path, base=tiny.base("llama", seed=1))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_changes_the_model_is_refused(kind: str, tmp_path: Path) -> None:
    saved(tmp_path, "moods", kind=kind, front="")
    with pytest.raises(
        ArtifactError, match=r"^moods changes the model; inspect shows .* try softprompt eval\.$"
    ):
        opened(tmp_path)


def test_text_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "moods", kind="text", front="Say + or -.")
    with pytest.raises(ArtifactError, match="holds no learnt vectors"):
        opened(tmp_path)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "moods")
    (tmp_path / "prompts" / "moods" / "softprompt.json").unlink()
    with pytest.raises(ArtifactError, match="has no card"):
        card_of(Library(tmp_path / "prompts").load(tmp_path / "prompts" / "moods"))


def test_a_part_of_a_front_is_its_vectors_or_its_keys_and_values() -> None:
    base = tiny.base()
    front = base.embed([5, 6, 7])
    assert torch.equal(part_of(front, [0, 2]), base.embed([5, 7]))  # type: ignore[arg-type]
    prefix = base.prefill(front)
    part = part_of(prefix, [0, 2])
    assert isinstance(part, Prefix)
    assert part.length == 2
    assert part.hidden is None
    assert torch.equal(part.keys[1], prefix.keys[1][:, [0, 2]])
