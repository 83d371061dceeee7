"""Calls of a client's functions: how a chat with them is put to a base, and how its answer is read.

It knows two families of chat templates by what they write (Hermes, and Qwen after it; Llama 3's JSON). A call
that is required is held to a grammar, so it comes out whole on any base. It knows no route and no engine.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from softprompt.generation.grammar import Grammar, json_rule
from softprompt.serving.api.errors import bad_request
from softprompt.serving.api.schemas import ChatRequest, Tool
from softprompt.serving.api.structured import Form, check_form

__all__ = ["Call", "ToolUse", "flattened", "message_of", "told", "tool_use"]

Family = Literal["hermes", "llama"]

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
_ANYTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class Call(NamedTuple):
    """One call of a function; arguments as JSON text."""

    name: str
    arguments: str


class ToolUse(NamedTuple):
    """How one chat uses functions.

    Attributes:
        tools: those the model is told of.
        family: how calls are written in the answer; None where they are required and so have a form of ours.
        form: what an answer that must be a call is held to.
        single: whether one call is the most.
    """

    tools: Sequence[Tool]
    family: Family | None
    form: Form | None
    single: bool

    @property
    def described(self) -> list[dict[str, Any]]:
        """The functions as chat templates take them."""
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    def read(self, text: str) -> tuple[str, list[Call]]:
        """What an answer says beside its calls, and these."""
        if self.form is not None:
            return _required(text)
        content, calls = _hermes(text) if self.family == "hermes" else _llama(text)
        return content, calls[:1] if self.single else calls

    def settled(self, text: str) -> int:
        """How many letters of an answer under way can be no part of a call."""
        if self.form is not None:
            return 0
        if self.family == "llama":
            return 0 if not text.strip() or text.lstrip()[0] == "{" else len(text)
        begun = text.find(_OPENING)
        if begun >= 0:
            return begun
        kept = next((n for n in range(len(_OPENING) - 1, 0, -1) if text.endswith(_OPENING[:n])), 0)
        return len(text) - kept


def tool_use(body: ChatRequest, template: str) -> ToolUse | None:
    """How a chat uses functions; None where it does not.

    Raises:
        ApiError: the template has no form for calls that is known here, or the choice is of no such function.
    """
    choice = body.tool_choice
    if not body.tools or choice == "none":
        if choice not in (None, "none", "auto"):
            raise bad_request("tool_choice asks for a call, but there are no tools.", "tool_choice")
        return None
    single = body.parallel_tool_calls is False
    if choice in (None, "auto"):
        family = _family(template)
        if family is None:
            raise bad_request(
                "The chat template of this base writes calls of functions in no form that is known here; "
                'require one (tool_choice "required" or a function), or send tool_choice "none".',
                "tools",
            )
        return ToolUse(body.tools, family, None, single)
    tools = body.tools
    if not isinstance(choice, str):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            raise bad_request(f"tool_choice names {choice.function.name}, which is no tool.", "tool_choice")
    form = Form(Grammar.of_lark, _grammar(tools), "tools")
    check_form(body, form)
    return ToolUse(body.tools, None, form, True)


def flattened(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls and their answers as text, for templates that know none of them; in the form of Hermes."""
    found: list[dict[str, Any]] = []
    for message in messages:
        content, role = message["content"], message["role"]
        if role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if found and found[-1]["role"] == "user" and found[-1]["content"].endswith("</tool_response>"):
                found[-1]["content"] += f"\n{content}"
                continue
            role = "user"
        for call in message.get("tool_calls", ()):
            said = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            content = f"{content}\n{_OPENING}\n{json.dumps(said)}\n{_CLOSING}".lstrip("\n")
        found.append({"role": role, "content": content})
    return found


def told(tools: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The functions as a system's message, for templates that do not know them."""
    lines = "\n".join(json.dumps(tool) for tool in tools)
    return {"role": "system", "content": f"You may call these functions:\n{lines}"}


def message_of(content: str, calls: Sequence[Call]) -> dict[str, Any]:
    """Calls in OpenAI's form; what is said beside them is None where there is nothing."""
    made = [
        {
            "index": number,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(calls)
    ]
    return {"content": content or None, "tool_calls": made} if made else {"content": content}


def _family(template: str) -> Family | None:
    if _OPENING in template:
        return "hermes"
    return "llama" if "ipython" in template and '"parameters"' in template else None


def _grammar(tools: Sequence[Tool]) -> str:
    """One call of any of these, its arguments as their schema says."""
    names = " | ".join(f"t{number}" for number in range(len(tools)))
    lines = [f"start: {names}"]
    for number, tool in enumerate(tools):
        head = json.dumps('{"name": ' + json.dumps(tool.function.name) + ', "arguments": ')
        lines.append(f't{number}: {head} a{number} "}}"')
        lines.append(f"a{number}: {json_rule(tool.function.parameters or _ANYTHING)}")
    return "\n".join(lines)


def _required(text: str) -> tuple[str, list[Call]]:
    try:
        call = _call(json.loads(text))
    except ValueError:  # cut at its greatest length
        call = None
    return (text, []) if call is None else ("", [call])


def _hermes(text: str) -> tuple[str, list[Call]]:
    before, *parts = text.split(_OPENING)
    calls = [_call(value) for part in parts for value in _objects(part.partition(_CLOSING)[0])]
    good = [call for call in calls if call is not None]
    if len(good) < len(parts):  # a call that is none is text
        return text, []
    return before.strip() if good else text, good


def _llama(text: str) -> tuple[str, list[Call]]:
    calls = [_call(value) for value in _objects(text)]
    good = [call for call in calls if call is not None]
    return ("", good) if good and len(good) == len(calls) else (text, [])


def _objects(text: str) -> Iterator[Any]:
    """The JSON objects of which a text consists, one behind another; None for what is none."""
    decoder, rest = json.JSONDecoder(), text.strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            yield None
            return
        yield value
        rest = re.sub(r"^[\s;,]+", "", rest[end:])


def _call(value: Any) -> Call | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return Call(value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))
