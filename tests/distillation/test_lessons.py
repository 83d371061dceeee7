"""What a teacher answers: its own words to their end, drawn once, each with what it expected there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from softprompt.base.packing import TokenRow
from softprompt.config import TeacherConfig
from softprompt.data.rows import Encoded, Example
from softprompt.distillation.lessons import ANSWERS, Lessons, draw
from softprompt.distillation.teacher import Teacher, teacher_of, text_of
from softprompt.errors import ConfigError, DataError, ResourceError
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling
from softprompt.methods.front import Soft, Words


def questions(count: int = 5) -> Encoded:
    made = [Example((20 + i, 21, 22), (), None, i) for i in range(count)]
    return Encoded(tuple(made), 0, None, False, ())


def ask(folder: Path, rows: Mapping[str, Encoded] | None = None, **more: Any) -> Lessons:
    base = tiny.base()
    config = TeacherConfig.model_validate({"text": "a long text", "max_new_tokens": 5} | more)
    teacher = teacher_of(config, base, (Words(config.text or ""),), "prompts")
    return draw(teacher, base.embed([1]), rows or {"train": questions()}, config, folder, end=(2,))


def test_answers_are_what_the_teacher_writes_and_expectations_its_own(tmp_path: Path) -> None:
    base = tiny.base()
    found = ask(tmp_path)
    prefix = base.prefill_text("a long text")
    sampling = Sampling(max_new_tokens=5)
    wanted = generate(
        [
            GenerateRequest(model=base, prefix=prefix, ids=e.input_ids, sampling=sampling)
            for e in questions().examples
        ]
    )
    assert [answer.text for answer in found.answers["train"]] == wanted
    for row, answer in zip(found.rows["train"], found.answers["train"], strict=True):
        assert row.ids[row.scored_from :] == answer.ids
        assert row.teacher is not None
        assert row.teacher.ids[:, 0].tolist() == list(answer.ids)  # greedy: the likeliest each time
    assert found.score(base, prefix, "train").nll == pytest.approx(0, abs=1e-5)
    assert found.score(base, found.bare, "train").nll > 0.01


def test_the_end_of_an_answer_is_learnt_and_a_stop_string_belongs_to_it(tmp_path: Path) -> None:
    base, greedy = tiny.base(), ask(tmp_path / "whole")
    first = greedy.answers["train"][0]
    stop = base.decode(first.ids[1:2])
    (cut, *_) = ask(tmp_path / "cut", stop=[stop]).answers["train"]
    assert cut.text == base.decode(first.ids[:1]).split(stop)[0]
    assert base.decode(cut.ids).startswith(cut.text + stop)
    assert 2 not in cut.ids


def test_among_candidates_the_likeliest_is_the_answer(tmp_path: Path) -> None:
    words = ((10,), (11,), (12,))
    rows = Encoded(questions().examples, 0, words, False, ())
    found = ask(tmp_path, {"train": rows})
    base = tiny.base()
    with torch.no_grad():
        prefix = base.prefill_text("a long text")
        logits = base.next_logits([TokenRow(e.input_ids) for e in rows.examples], prefix)
    best = logits[:, [10, 11, 12]].argmax(1).tolist()
    assert [answer.ids for answer in found.answers["train"]] == [words[place] for place in best]


def test_they_are_drawn_once_and_again_only_for_what_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(tmp_path)
    monkeypatch.setattr(
        "softprompt.distillation.lessons.generate", lambda *_, **__: pytest.fail("it was asked again")
    )
    again = ask(tmp_path)
    assert again.digest == first.digest
    for ours, theirs in zip(again.rows["train"], first.rows["train"], strict=True):
        assert ours.teacher is not None
        assert theirs.teacher is not None
        assert torch.equal(ours.teacher.probabilities, theirs.teacher.probabilities)
    with pytest.raises(BaseException, match="asked again"):
        ask(tmp_path, text="another text")


def test_a_kill_costs_what_was_not_yet_on_disk_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softprompt.distillation.lessons._TOGETHER", 2)
    whole = ask(tmp_path / "whole", {"train": questions(7)}, temperature=1.0)
    path = next((tmp_path / "whole").rglob(ANSWERS))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:20])
    again = ask(tmp_path / "whole", {"train": questions(7)}, temperature=1.0)
    assert again.digest == whole.digest


def test_what_is_asked_must_fit_into_the_context(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 512"):
        ask(tmp_path, text="a" * 507)
    with pytest.raises(DataError, match="holds 512"):
        ask(tmp_path, text="a" * 600)


def test_a_text_has_words_only_and_a_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="words only"):
        teacher_of(TeacherConfig(text="x"), tiny.base(), (Soft(3),), "prompts")
    with pytest.raises(ResourceError, match="cannot be read"):
        text_of(TeacherConfig(file=str(tmp_path / "none.txt")))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="no text to learn"):
        text_of(TeacherConfig(file=str(tmp_path / "empty.txt")))
    (tmp_path / "braces.txt").write_text("{x}")
    assert text_of(TeacherConfig(file=str(tmp_path / "braces.txt"))) == "{{x}}"


def test_a_teacher_is_named_after_its_text_and_base() -> None:
    def named(text: str, seed: int = 0) -> str:
        base = tiny.base("llama", seed=seed)
        teacher: Teacher = teacher_of(TeacherConfig(text=text), base, (Words(text),), "prompts")
        return teacher.identity

    assert named("one") == named("one")
    assert len({named("one"), named("two"), named("one", seed=1)}) == 3
