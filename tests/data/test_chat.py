"""Front and input at their places in a chat template, and conversations as rows."""

from __future__ import annotations

import pytest

from softprompt.data.chat import Answers, conversation_rows, in_chat
from softprompt.data.table import Table
from softprompt.data.template import Template
from softprompt.errors import DataError

Messages = list[dict[str, str]]


def chatml(messages: Messages) -> str:
    text = "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in messages)
    return text + "<|assistant|>\n"


def without_system(messages: Messages) -> str:
    if messages[0]["role"] == "system":
        raise ValueError("no system message here")
    return f"[USER {{}} {messages[0]['content']}][BOT "


def test_the_front_is_the_system_message_and_the_input_the_users() -> None:
    front, text = in_chat("{soft:4}", "Headline: {text}", chatml)
    assert front == "<|system|>\n{soft:4}<|end|>\n<|user|>\n"
    assert text == "Headline: {text}<|end|>\n<|assistant|>\n"


def test_without_a_system_message_the_front_stands_before_the_input() -> None:
    front, text = in_chat("{soft:4}", "{text}", without_system)
    assert front == "[USER {{}} {soft:4}\n\n"
    assert text == "{text}][BOT "


def test_a_template_that_rewrites_its_messages_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.chat is on"):
        in_chat("{soft:4}", "{text}", lambda messages: "always the same")


SAID: Messages = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One {x}?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "No."},
]


@pytest.mark.parametrize(("which", "at"), [("all", (2, 4)), ("last", (4,)), (None, (2, 4))])
def test_each_answer_of_a_conversation_stands_behind_what_was_said_before(
    which: Answers | None, at: tuple[int, ...]
) -> None:
    front, text = in_chat("F", "{turns}", chatml)
    template = Template(text, "{answer}")
    found = conversation_rows(Table(({"talk": SAID, "id": 7},), "talks"), "talk", which, chatml)
    learnt = [front + template.input_text(row) + template.target_text(row) for row in found.rows]
    system = {"role": "system", "content": "F"}
    assert learnt == [chatml([system, *SAID[1:i]]) + SAID[i]["content"] for i in at]
    assert all(row["id"] == 7 and row["conversation"] == 0 and "talk" not in row for row in found.rows)
    assert found.places == ("talks, row 1",) * len(at)


def test_conversations_of_other_spellings_are_the_same() -> None:
    shared = [
        {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]}
        for m in SAID
    ]
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in SAID]
    expected = conversation_rows(Table(({"talk": SAID},), "talks"), "talk", "all", chatml).rows
    for talk in (shared, parts):
        assert conversation_rows(Table(({"talk": talk},), "talks"), "talk", "all", chatml).rows == expected


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        ("hello", "must be a list of messages"),
        ([], "must be a list of messages"),
        ([{"role": "user"}], "message 1 of the conversation has no role and content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 of the conversation"),
        ([{"role": "user", "content": "a"}], "has no answer of the assistant"),
        ([{"role": "assistant", "content": "a"}], "has no answer of the assistant"),
    ],
)
def test_what_is_no_conversation_is_told_with_its_row(talk: object, said: str) -> None:
    with pytest.raises(DataError, match=f"talks, row 2: .*{said}"):
        conversation_rows(Table(({"talk": SAID}, {"talk": talk}), "talks"), "talk", "all", chatml)
