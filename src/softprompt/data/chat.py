"""Chats as text: front and input at their places in a base's chat template, and conversations as rows.

It knows text, not tokens or models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from softprompt.data.rows import collect_faults
from softprompt.data.table import Row, Table
from softprompt.errors import DataError

__all__ = [
    "CONVERSATION",
    "Answers",
    "Render",
    "chat_opening",
    "conversation_rows",
    "in_chat",
    "turns",
]

Message = dict[str, str]
Answers = Literal["all", "last"]
Render = Callable[[list[Message]], str]

TURNS, ANSWER, CONVERSATION = "turns", "answer", "conversation"
"""The columns of rows that were conversations: what was said, what the assistant answers, and where."""

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}

_FRONT, _INPUT = "front-goes-here-5b1d", "input-goes-here-9e27"


def in_chat(front: str, input: str, render: Render) -> tuple[str, str]:
    """Front and input templates that spell out the chat around them.

    The front stands where the system message does, or at the head of the user's message if the
    template has no system message; everything from the end of the input to where the answer
    begins becomes part of the input.

    Args:
        front: front template.
        input: input template.
        render: messages -> text, ending where the assistant's answer begins.

    Raises:
        DataError: the base has no chat template, or one that does not keep its messages as they are.
    """
    try:
        text = render([{"role": "system", "content": _FRONT}, {"role": "user", "content": _INPUT}])
    except Exception:  # a template is a program of its own and may refuse a role with any error
        text = ""
    if _FRONT not in text:
        text = render([{"role": "user", "content": f"{_FRONT}\n\n{_INPUT}"}])
    if text.count(_FRONT) != 1 or text.count(_INPUT) != 1 or text.index(_FRONT) > text.index(_INPUT):
        raise DataError(
            "data.chat is on, but this base's chat template does not keep its messages as they are; "
            "write the chat's marks into method.front and data.input yourself."
        )
    head, rest = _plain(text).split(_FRONT)
    middle, tail = rest.split(_INPUT)
    return head + front + middle, input + tail


def chat_opening(render: Render) -> str:
    """What a chat that nobody set a front in has before a user's only message."""
    return render([{"role": "user", "content": _INPUT}]).partition(_INPUT)[0]


def turns(messages: list[Message], render: Render) -> str:
    """What stands in a chat between the mark of the first user's message and that which ends the last.

    So a chat of one message is that message, and whatever stands in the place of a text in ``in_chat``
    may be a chat of many. The messages hold no system message: the front stands in its place.

    Raises:
        DataError: the template does not put the messages one behind the other.
    """
    opening = chat_opening(render)
    closing = render([{"role": "user", "content": _INPUT}]).rpartition(_INPUT)[2]
    text = render(messages)
    if not text.startswith(opening) or not text.endswith(closing):
        raise DataError("this base's chat template does not keep the messages one behind the other.")
    return text[len(opening) : len(text) - len(closing)]


def conversation_rows(
    table: Table, column: str | None, which: Answers | None = None, render: Render | None = None
) -> Table:
    """A row for every answer of the assistant, or for the last of each conversation.

    Args:
        table: its ``column`` holds lists of messages, ``{"role": ..., "content": ...}`` or
            ``{"from": ..., "value": ...}``. Their system messages are left out.
        column: see there; rows without one stay as they are.
        which: whose answers are learnt; all, unless said otherwise.
        render: messages -> text of the base's chat template; without, they stand one below the other.

    Raises:
        DataError: a conversation is none, or has no answer of the assistant; the row is named.
    """
    if column is None:
        return table
    render = render or _unmarked
    table.require_columns((column,))

    def learnt(index: int, row: Row) -> list[tuple[dict[str, object], str]]:
        said = [m for m in _messages(row[column]) if m["role"] != "system"]
        answers = [i for i, message in enumerate(said) if message["role"] == "assistant" and i]
        if not answers:
            raise DataError(f"The conversation in {column!r} has no answer of the assistant to a message.")
        wanted = answers[-1:] if which == "last" else answers
        others = {name: value for name, value in row.items() if name != column}
        return [
            (
                {**others, TURNS: turns(said[:i], render), ANSWER: said[i]["content"], CONVERSATION: index},
                table.place(index),
            )
            for i in wanted
        ]

    found = [one for rows in collect_faults(table, learnt) for one in rows]
    return Table(tuple(row for row, _ in found), table.origin, tuple(place for _, place in found))


def _unmarked(messages: list[Message]) -> str:
    return "\n".join(message["content"] for message in messages)


def _messages(conversation: Any) -> list[Message]:
    if not isinstance(conversation, list | tuple) or not conversation:
        raise DataError("A conversation must be a list of messages with role and content.")
    return [_message(number, message) for number, message in enumerate(conversation, start=1)]


def _message(number: int, message: Any) -> Message:
    said: Mapping[str, Any] = message if isinstance(message, Mapping) else {}
    role, content = said.get("role", said.get("from")), said.get("content", said.get("value"))
    if isinstance(content, list | tuple) and all(isinstance(part, Mapping) for part in content):
        parts = [part.get("text") for part in content]
        content = None if None in parts else "".join(map(str, parts))
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(f"Message {number} of the conversation has no role and content that are text.")
    return {"role": _ROLES.get(role, role), "content": content}


def _plain(text: str) -> str:
    """Braces of the chat template are letters, not fields."""
    return text.replace("{", "{{").replace("}", "}}")
