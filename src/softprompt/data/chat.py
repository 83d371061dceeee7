"""Puts front and input at their places in a base's chat template; knows text, not tokens or models."""

from __future__ import annotations

from collections.abc import Callable

from softprompt.errors import DataError

__all__ = ["Render", "chat_opening", "in_chat"]

Render = Callable[[list[dict[str, str]]], str]

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


def _plain(text: str) -> str:
    """Braces of the chat template are letters, not fields."""
    return text.replace("{", "{{").replace("}", "}}")
