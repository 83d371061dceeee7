"""What is learnt in a base's chat template, from single messages and from conversations."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tokenizers import processors

import softprompt
import tiny
from softprompt.data.sources import read
from softprompt.errors import ConfigError
from softprompt.listener import Listener
from training.letters import config


def test_a_front_of_chat_marks_is_kept_in_the_card(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}<assistant>"
    base = dataclasses.replace(tiny.base(), tokenizer=tokenizer)
    prompt = softprompt.train(base, config(tmp_path, data={"chat": True}))
    assert prompt.card.template.front == "<system>Say: {soft:4};<user>"
    assert prompt.card.template.input == "{text};<assistant>"
    assert base.decode(prompt.request("1 x").ids) == "1 x;<assistant>"


def test_conversations_are_learnt_answer_by_answer(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}<assistant>"
    base = dataclasses.replace(tiny.base(), tokenizer=tokenizer)
    said = [
        {"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "axby", strict=True)
    ]
    (tmp_path / "talks.jsonl").write_text((json.dumps({"messages": said}) + "\n") * 10)
    settings = config(tmp_path).model_dump(exclude_none=True)
    data = {"train": str(tmp_path / "talks.jsonl"), "messages": "messages"}
    told: list[str] = []
    prompt = softprompt.train(base, settings | {"data": data}, listener=Listener(note=told.append))
    assert not [note for note in told if "white space" in note or "data.labels" in note]
    assert prompt.card.data["train"].rows == 16  # of ten conversations two are held back, whole
    assert prompt.card.data["validation"].rows == 4
    rows = prompt.rows(data["train"])
    assert [(row["turns"], row["answer"]) for row in rows.rows[:2]] == [
        ("a", "x"),
        ("a;<assistant>x;<user>b", "y"),
    ]
    assert prompt.evaluate(data["train"]) == prompt.evaluate(rows)
    asked = prompt.request({"turns": "a;<assistant>x;<user>b"})
    assert base.decode(asked.ids) == "a;<assistant>x;<user>b;<assistant>"
    for setting, wrong in [("input", "{text}"), ("labels", ["x", "y"]), ("chat", False), ("group", "id")]:
        with pytest.raises(ConfigError, match=f"data.{setting}: cannot be set beside data.messages"):
            softprompt.train(base, settings | {"data": data | {setting: wrong}})


def test_a_chat_begins_once_and_its_bare_base_reads_the_opening(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.chat_template = (
        "<s>{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}<assistant>"
    )
    base = dataclasses.replace(tiny.base(), tokenizer=tokenizer)
    assert base.start_ids == (1,)
    method = {"kind": "text", "front": "Say"}
    prompt = softprompt.train(
        base, config(tmp_path, data={"chat": True}).model_dump(exclude_none=True) | {"method": method}
    )
    messages = [{"role": "system", "content": "Say"}, {"role": "user", "content": "1 x"}]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    ids = base.embed((*theirs[: prompt.card.positions],))
    assert torch.equal(prompt.front, ids.float())  # type: ignore[arg-type]
    assert prompt.request("1 x").ids == tuple(theirs[prompt.card.positions :])
    bare = tokenizer.apply_chat_template(messages[1:], add_generation_prompt=True)["input_ids"]
    opening = bare[: len(bare) - len(prompt.request("1 x").ids)]
    assert torch.equal(prompt.bare().front, base.embed(opening))  # type: ignore[arg-type]
    rows = read(str(tmp_path / "test.jsonl"))
    untuned = softprompt.train(base, config(tmp_path / "soft", data={"chat": True})).card.scores
    expected = prompt.bare().evaluate(rows).summary()
    assert untuned["test, untuned"]["nll"] == pytest.approx(expected["nll"], rel=1e-5)
