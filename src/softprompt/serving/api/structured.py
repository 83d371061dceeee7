"""What form a client wants an answer in: from OpenAI's fields and vLLM's to a grammar. Knows no route."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from softprompt.base.model import Base
from softprompt.errors import ConfigError
from softprompt.generation.grammar import Grammar
from softprompt.serving.api.errors import bad_request
from softprompt.serving.api.schemas import SamplingRequest
from softprompt.serving.api.visit import Visit

__all__ = ["Form", "check_form", "form_of", "grammar_of"]

LONGEST = 2**16
"""Letters of a schema, a regular expression or all choices together."""
MOST_CHOICES = 1_000


class Form(NamedTuple):
    """A form to hold answers to.

    Attributes:
        compiled: makes a grammar of ``value`` for a base.
        value: a schema, a regular expression or choices.
        param: the field it came in, for messages.
    """

    compiled: Callable[[Base, Any], Grammar]
    value: Any
    param: str


def form_of(body: SamplingRequest) -> Form | None:
    """The form that a request asks for, None for any text.

    Raises:
        ApiError: it asks for two, or for one that is not served, or too large.
    """
    found = [
        form
        for form in (
            _response_format(body.response_format),
            *_guided(body.guided_json, body.guided_regex, body.guided_choice),
            *_structured_outputs(body.structured_outputs),
        )
        if form is not None
    ]
    if len(found) > 1:
        raise bad_request(
            f"{found[0].param} and {found[1].param} both say what form to answer in; send one.",
            found[1].param,
        )
    if not found:
        return None
    check_form(body, found[0])
    return found[0]


def check_form(body: SamplingRequest, form: Form) -> None:
    """Refuse what contradicts a form, and one that is too large.

    Raises:
        ApiError: it is, or something does.
    """
    if body.ignore_eos or body.min_tokens:
        name = "ignore_eos" if body.ignore_eos else "min_tokens"
        raise bad_request(
            f"{name} cannot be kept beside {form.param}: an answer ends where its form does.", name
        )
    if isinstance(form.value, str):
        _check_size(len(form.value), form.param)


async def grammar_of(visit: Visit, form: Form | None) -> Grammar | None:
    """The grammar of a form, compiled in a thread of its own.

    Raises:
        ApiError: it cannot be compiled.
    """
    if form is None:
        return None
    try:
        return await visit.compiled(form.compiled, visit.version.model, form.value)
    except ConfigError as error:
        raise bad_request(f"{form.param}: {error}", form.param) from None


def schema_form(schema: Any, param: str) -> Form:
    """JSON that fits a schema."""
    if not isinstance(schema, Mapping) and schema is not True:
        raise bad_request(f"{param} must be a JSON schema, an object.", param)
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise bad_request(f"{param} is nested too deeply.", param) from None
    _check_size(len(text), param)
    return Form(Grammar.of_schema, schema, param)


def _response_format(asked: Any) -> Form | None:
    param = "response_format"
    if asked in (None, {}):
        return None
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Form(Grammar.of_schema, {"type": "object"}, param)
    if kind == "json_schema":
        about = asked.get("json_schema")
        if not isinstance(about, dict) or "schema" not in about:
            raise bad_request('response_format needs {"json_schema": {"name": ..., "schema": ...}}.', param)
        return schema_form(about["schema"], param)
    raise bad_request("response_format must have the type text, json_object or json_schema.", param)


def _structured_outputs(asked: Any) -> list[Form | None]:
    """VLLM's newer spelling of the same."""
    param = "structured_outputs"
    if asked in (None, {}):
        return []
    known = {"json", "regex", "choice", "json_object"}
    if not isinstance(asked, dict) or not {key for key, value in asked.items() if value is not None} <= known:
        raise bad_request("structured_outputs may hold json, regex, choice or json_object.", param)
    found = _guided(asked.get("json"), asked.get("regex"), asked.get("choice"), param)
    return [*found, Form(Grammar.of_schema, {"type": "object"}, param)] if asked.get("json_object") else found


def _guided(schema: Any, regex: Any, choices: Any, param: str | None = None) -> list[Form | None]:
    found: list[Form | None] = []
    if schema is not None:
        found.append(_schema(schema, param or "guided_json"))
    if regex is not None:
        found.append(_regex(regex, param or "guided_regex"))
    if choices is not None:
        found.append(_choices(choices, param or "guided_choice"))
    return found


def _schema(schema: Any, param: str) -> Form:
    """A schema, or one as text."""
    if isinstance(schema, str):
        _check_size(len(schema), param)
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise bad_request(f"{param} is no JSON.", param) from None
    return schema_form(schema, param)


def _regex(regex: Any, param: str) -> Form:
    if not isinstance(regex, str) or not regex:
        raise bad_request(f"{param} must be a regular expression, a text.", param)
    return Form(Grammar.of_regex, regex, param)


def _choices(choices: Any, param: str) -> Form:
    if not isinstance(choices, list) or not 0 < len(choices) <= MOST_CHOICES:
        raise bad_request(f"{param} must be a list of 1 to {MOST_CHOICES:,} texts.", param)
    if any(not isinstance(choice, str) or not choice for choice in choices):
        raise bad_request(f"{param} must be a list of texts, none of them empty.", param)
    _check_size(sum(map(len, choices)), param)
    return Form(Grammar.of_choices, tuple(choices), param)


def _check_size(letters: int, param: str) -> None:
    if letters > LONGEST:
        raise bad_request(f"{param} has {letters:,} letters, but this server reads {LONGEST:,}.", param)
