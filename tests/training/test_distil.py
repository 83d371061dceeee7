"""A long text learnt into a short prefix: what is kept, resumed, refused and told."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt
import tiny
from softprompt.distillation.study import study
from softprompt.errors import ConfigError, DataError, SoftpromptError
from softprompt.listener import Listener, Report
from softprompt.prefix import Prefix
from softprompt.training.distil import Distilled

TEXT = "the quick brown fox jumps over the lazy dog and runs away from it"


def settings(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question": f"what is {i} and {(7 * i) % 11}?"} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: dict[str, Any] = {
        "name": "fox",
        "teacher": {"text": TEXT, "positions": 8, "max_new_tokens": 6},
        "data": {"train": str(folder / "rows.jsonl"), "input": "{question}"},
        "train": {"epochs": 6, "learning_rate": 0.1, "checkpoint_every": 2},
        "output": {"library": str(folder / "prompts"), "runs": str(folder / "runs")},
    }
    for name, values in sections.items():
        found[name] = found.get(name, {}) | values
    return found


def keys(found: Distilled) -> torch.Tensor:
    front = found.prompt.front
    assert isinstance(front, Prefix)
    return torch.cat([k.flatten() for k in (*front.keys, *front.values)])


def test_a_short_prefix_learns_to_answer_as_the_long_text_does(tmp_path: Path) -> None:
    base = tiny.base()
    found = softprompt.distil(base, settings(tmp_path))
    figures = found.figures
    assert figures is not None
    learnt, start, bare, text = (figures.of(role)[0] for role in ("learnt", "start", "bare", "text"))
    assert learnt.kept.value > start.kept.value
    assert learnt.kept.value > 0.3
    assert learnt.kept.low < learnt.kept.value < learnt.kept.high
    assert bare.kept.value == pytest.approx(0)
    assert text.kept.value == pytest.approx(1, abs=1e-3)
    assert text.same.value == 1
    assert (learnt.positions, text.positions) == (8, len(TEXT))
    assert repr(found).startswith(f"<Distilled fox: 8 positions keep {learnt.kept.value:.0%} (")
    assert f"{learnt.kept.value:.0%} (" in found._repr_html_()
    again = softprompt.load_prompt("fox", base, tmp_path / "prompts")
    assert again.card.scores["test"]["kept"] == learnt.kept.value
    assert again.generate("what is 3 and 1?", max_new_tokens=4)
    assert json.loads((tmp_path / "runs/fox/distilled.json").read_text())["questions"] == figures.questions


def test_several_lengths_learn_at_once_what_each_learns_alone(tmp_path: Path) -> None:
    base = tiny.base()
    both = softprompt.distil(base, settings(tmp_path / "both", teacher={"positions": [4, 8]}))
    assert [prompt.name for prompt in both.prompts] == ["fox-4", "fox-8"]
    alone = softprompt.distil(base, settings(tmp_path / "alone"))
    torch.testing.assert_close(keys(both), keys(alone), atol=1e-3, rtol=1e-2)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits_and_asks_the_teacher_once(tmp_path: Path) -> None:
    base = tiny.base()
    whole = softprompt.distil(base, settings(tmp_path / "whole"))
    reports: list[Report] = []
    listener = Listener(step=reports.append, stop=lambda: reports[-1].step >= 5)
    wanted = settings(tmp_path / "cut")
    part = softprompt.distil(base, wanted, listener=listener)
    assert part.figures is None
    answers = next((tmp_path / "cut/runs/answers").rglob("answers.jsonl"))
    before = answers.stat().st_mtime_ns
    again = softprompt.distil(base, wanted, resume=True)
    assert answers.stat().st_mtime_ns == before
    assert torch.equal(keys(again), keys(whole))


def test_answers_on_disk_are_read_again_and_one_that_was_mended_is_learnt(tmp_path: Path) -> None:
    base = tiny.base()
    softprompt.distil(base, settings(tmp_path))
    path = next((tmp_path / "runs/answers").rglob("answers.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 40
    lines[3]["answer"] = "mended"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:-2]))
    found = softprompt.distil(base, settings(tmp_path, output={"overwrite": True}))
    assert found.figures is not None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 40
    assert "mended" in {line["answer"] for line in lines}


def test_labels_are_answered_by_the_likeliest_and_scored(tmp_path: Path) -> None:
    wanted = settings(tmp_path)
    rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted["data"] |= {"input": "{text}", "target": "{label}", "labels": ["x", "y", "z"]}
    wanted["teacher"] |= {"text": "Say it: {demos:4}"}
    found = softprompt.distil(tiny.base(), wanted)
    assert found.figures is not None
    assert all(row.accuracy is not None for row in found.figures.rows)
    assert all(row.rouge is None for row in found.figures.rows)


def test_a_saved_prompt_can_be_the_teacher(tmp_path: Path) -> None:
    base = tiny.base()
    softprompt.distil(base, settings(tmp_path, teacher={"positions": 16}))
    wanted = settings(tmp_path) | {"name": "short"}
    wanted["teacher"] = {"prompt": "fox", "positions": 6, "max_new_tokens": 6}
    found = softprompt.distil(base, wanted)
    assert found.prompt.card.positions == 6
    assert found.figures is not None
    assert found.figures.of("text")[0].positions == 16


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"teacher": {"text": "fox " * 200}}, DataError, "holds 512"),
        ({"teacher": {"file": "there is none.txt"}}, ConfigError, "one of text, file and prompt"),
        ({"teacher": {"positions": [8, 8]}}, ConfigError, "different lengths"),
        ({"teacher": {"positions": 1}}, ConfigError, "from 2 to 4096"),
        ({"method": {"kind": "lora"}}, ConfigError, "has no length"),
        ({"search": {"seeds": [0, 1]}}, ConfigError, "leave \\[search\\] out"),
        ({"data": {"input": "{query}"}}, DataError, "no column 'query'"),
    ],
)
def test_what_cannot_work_is_said_before_the_work(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    never = Listener(step=lambda report: pytest.fail("it trained"))
    with pytest.raises(error, match=said):
        softprompt.distil(tiny.base(), settings(tmp_path, **change), listener=never)


def test_a_text_that_changes_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softprompt.training.distil.LEAST", 100.0)
    never = Listener(step=lambda report: pytest.fail("it trained"))
    with pytest.raises(DataError, match="changes hardly anything"):
        softprompt.distil(tiny.base(), settings(tmp_path), listener=never)


def test_a_text_that_does_not_help_is_said_before_training(tmp_path: Path) -> None:
    wanted = settings(tmp_path)
    rows = [{"text": f"{i}", "label": "xyz"[i % 3]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted["data"] |= {"input": "{text}", "target": "{label}", "labels": ["x", "y", "z"]}
    wanted["train"] |= {"epochs": 0}
    told: list[str] = []
    softprompt.distil(tiny.base(), wanted, listener=Listener(note=told.append))
    helped = softprompt.load_prompt("fox", tiny.base(), tmp_path / "prompts").card.scores
    better = helped["test, teacher"]["accuracy"] > 0.5
    assert better or any("does not help" in note for note in told)


def test_the_base_makes_its_own_questions_and_they_can_be_mended(tmp_path: Path) -> None:
    base = tiny.base()
    wanted = settings(tmp_path, teacher={"study": 12})
    del wanted["data"]["train"]
    told: list[str] = []
    softprompt.distil(base, wanted, listener=Listener(note=told.append))
    (path,) = (tmp_path / "runs/questions").glob("*.jsonl")
    assert str(path) in "".join(told)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["question"] for row in rows}) == len(rows) == 12
    rows[0]["question"] = "what is mended?"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    softprompt.distil(base, wanted | {"output": wanted["output"] | {"overwrite": True}})
    assert "what is mended?" in path.read_text()


def test_questions_go_on_where_a_kill_left_them(tmp_path: Path) -> None:
    base, ids = tiny.base(), tiny.base().encode(TEXT)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert study(base, ids, 40, "q", whole, seed=3) == 40
    lines = whole.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:32]) + lines[32][:9])
    assert study(base, ids, 40, "q", cut, seed=3) == 40
    assert [json.loads(line)["q"] for line in cut.read_text().splitlines()[:32]] == [
        json.loads(line)["q"] for line in lines[:32]
    ]


def test_own_questions_stand_beside_those_the_base_makes(tmp_path: Path) -> None:
    wanted = settings(tmp_path, teacher={"study": 5}, train={"epochs": 0})
    own = [json.loads(line)["question"] for line in Path(wanted["data"]["train"]).read_text().splitlines()]
    rows = tmp_path / "own.csv"
    rows.write_text("question;seen, when\n" + "".join(f"{question};a, b\n" for question in own))
    wanted["data"] |= {"train": str(rows), "separator": ";"}
    found = softprompt.distil(tiny.base(), wanted)
    assert sum(found.prompt.card.data[s].rows for s in ("train", "validation", "test")) == len(own) + 5


def test_an_adapter_can_be_the_teacher(tmp_path: Path) -> None:
    base = tiny.base()
    rows = [{"text": f"{i} {'xyz'[i % 3]}", "label": "xyz"[i % 3]} for i in range(40)]
    wanted = settings(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {"train": str(tmp_path / "rows.jsonl"), "input": "{text}", "target": ":{label}"}
    method = {"kind": "lora", "targets": ["q_proj"]}
    train = {"epochs": 2, "learning_rate": 0.05}
    softprompt.train(
        base,
        {"name": "adapter", "data": job, "method": method, "train": train, "output": wanted["output"]},
    )
    wanted["data"] |= {"input": "{text}"}
    wanted["teacher"] = {"prompt": "adapter", "positions": 8, "max_new_tokens": 4}
    wanted["train"] |= {"epochs": 12}
    told: list[str] = []
    found = softprompt.distil(base, wanted, listener=Listener(note=told.append))
    assert found.figures is not None
    assert found.figures.of("text")[0].kept.value == pytest.approx(1, abs=1e-3)
    learnt, start = (found.figures.of(role)[0].kept.value for role in ("learnt", "start"))
    assert learnt > start


def test_another_base_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    softprompt.distil(tiny.base(), settings(tmp_path))
    with pytest.raises(SoftpromptError, match="another configuration, data or base"):
        softprompt.distil(tiny.base("llama", seed=1), settings(tmp_path), resume=True)


def test_conversations_are_questions_too(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}<assistant>"
    base = dataclasses.replace(tiny.base(), tokenizer=tokenizer)
    wanted = settings(tmp_path)
    talks = [
        {"messages": [{"role": "user", "content": f"what is {i}?"}, {"role": "assistant", "content": "x"}]}
        for i in range(40)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    wanted["data"] = {"train": str(tmp_path / "talks.jsonl"), "messages": "messages"}
    found = softprompt.distil(base, wanted)
    assert found.figures is not None
    assert found.prompt.card.template.input == "{turns};<assistant>"
    wanted["name"], wanted["teacher"]["study"] = "studied", 4
    with pytest.raises(ConfigError, match=r"teacher\.study .* data\.messages"):
        softprompt.distil(base, wanted)
