"""Front and input at their places in a chat template."""

from __future__ import annotations

import pytest

from softprompt.data.chat import in_chat
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
