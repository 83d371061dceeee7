"""The demo on a tiny base: what it asks, what it counts, and that each line it prints for typing works."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from softprompt import demo as demos
from softprompt.checkpoints.freeze import load_base
from softprompt.cli import demo as verb
from softprompt.cli.main import run
from softprompt.config import Config
from softprompt.data.table import Table
from softprompt.demo import Answer, Demo, openings, run_demo, whole_sentences

WORDS = ("Life is a long road.", "Be kind!", "Act as a cook who bakes.", "Nothing is lost?")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Demo, Path]:
    """The whole demo, its recipes on a few rows of a file, and the folder where it ran."""
    folder = tmp_path_factory.mktemp("demo")
    tiny.model("llama").save_pretrained(folder / "base")
    tiny.tokenizer().save_pretrained(folder / "base")
    made = demos._config

    def quick(recipe: str, output: dict[str, Any]) -> Config:
        config = made(recipe, output)
        labels = config.data.labels or ["none"]
        rows = [{"text": f"{WORDS[i % 4]} {i}", "label": list(labels)[i % len(labels)]} for i in range(10)]
        file = folder / f"{recipe}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        data = config.data.model_copy(
            update=dict.fromkeys(("train", "validation", "test"), str(file))
            | dict.fromkeys(("train_rows", "validation_rows", "test_rows"))
        )
        train = config.train.model_copy(update={"epochs": 1})
        return config.model_copy(update={"data": data, "train": train})

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(demos, "_config", quick)
        base = load_base(str(folder / "base"), dtype="float32")
        return run_demo(base, verb._Stage(), library=str(folder / "my prompts"), runs="runs"), folder


def test_every_opening_is_answered_before_and_after(small: tuple[Demo, Path]) -> None:
    demo, _ = small
    for job, name in ((demo.roles, "roles"), (demo.quotes, "quotes")):
        assert [answer.text for answer in job.before] == list(demos.OPENINGS[name])
        assert [answer.text for answer in job.after] == list(demos.OPENINGS[name])
        assert {answer.prompt for answer in job.before} == {"the bare base"}
        assert [answer.answer for answer in job.after] == job.prompt.generate(
            list(demos.OPENINGS[name]), max_new_tokens=demos.NEW_TOKENS
        )
    assert {answer.prompt for answer in demo.together} == {"roles", "quotes", "bbc-topics", "the bare base"}
    assert not any(text.endswith(" ") for texts in demos.OPENINGS.values() for text in texts)


def test_every_line_to_type_next_works(
    small: tuple[Demo, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo, folder = small
    monkeypatch.chdir(folder)
    verb._tell(demo, str(folder / "my prompts"))
    shown = capsys.readouterr().out
    lines = shown.split("What one would type next:\n")[1].splitlines()
    assert len(lines) == 4
    for line in lines:
        name, *words = shlex.split(line)
        assert name == "softprompt"
        assert run(words) == 0, line
        assert capsys.readouterr().out.strip(), line


def test_what_is_printed_fits_and_marks_answers_that_were_cut(
    small: tuple[Demo, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    demo, _ = small
    cut, whole = (Answer("roles", "A b", "c " * 60, whole) for whole in (False, True))
    job = replace(demo.roles, before=(cut,), after=(whole,))
    verb._tell(replace(demo, roles=job), "prompts")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    before, after = (
        next(i for i, line in enumerate(lines) if line.startswith(f"    {word} "))
        for word in ("before", "after")
    )
    assert "".join(lines[before:after]).endswith("c ...")
    assert lines[after + 1].strip().endswith("c")


@pytest.mark.parametrize(
    ("answer", "whole", "counts"),
    [
        (" is good.", True, True),
        (' is "good!"', True, True),
        (" is good", True, False),  # no mark at its end
        (" is good. It is.", True, False),  # two sentences
        (" is\ngood.", True, False),
        (" is good.", False, False),  # cut by the most tokens there
        (".", True, True),
    ],
)
def test_an_opening_counts_when_one_sentence_ends_it(answer: str, whole: bool, counts: bool) -> None:
    texts = openings(Table(({"text": "To be or not to be."}, {"text": "One two"}), "rows"))
    assert texts == ("To be or", "One two")
    found = whole_sentences(Answer("quotes", text, answer, whole) for text in texts)
    assert (found.hits, found.rows) == (2 * counts, 2)
    assert found.interval[0] <= found.share <= found.interval[1]


def test_the_loss_falls_by_the_difference_of_both_on_the_same_rows(
    small: tuple[Demo, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    demo, _ = small
    before, after = (demo.quotes.scores[way] for way in ("untuned", "soft prompt"))
    change = demo.quotes.change
    assert change is not None
    assert change.difference == pytest.approx(after.nll - before.nll)
    assert change.low < change.difference < change.high
    verb._tell(demo, "prompts")
    assert f"by {-change.difference:.2f} ({-change.high:.2f} to {-change.low:.2f}) for quotes" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_prompt_is_held_against_the_bare_base_on_the_same_openings(small: tuple[Demo, Path]) -> None:
    demo, _ = small
    assert set(demo.quotes.finished) == {"untuned", "soft prompt"}
    assert {found.rows for found in demo.quotes.finished.values()} == {10}
    told = verb._as_json(demo)
    assert told["quotes"]["scores"]["untuned"]["whole_sentences"] == demo.quotes.finished["untuned"].share
    assert len(told["before"]) == len(told["after"]) == 7


def test_shares_are_printed_with_their_intervals(
    small: tuple[Demo, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    demo, _ = small
    verb._tell(demo, "prompts")
    lines = capsys.readouterr().out.splitlines()
    for name in ("finished as one sentence", "given their topic"):
        (line,) = (line for line in lines if name in line)
        assert len(re.findall(r"\d+\.\d% \(\d+\.\d-\d+\.\d\)", line)) == 2, line
