"""JSON from strangers: knows how deep, how large and how well formed it may be, not what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from softprompt.serving.api.errors import bad_request

__all__ = ["StrictRoute", "parse"]

DEEPEST = 32
"""Levels of lists and objects; a chat needs five."""

LONGEST_NUMBER = 40
"""Digits of an integer; the largest that is used has twenty."""


def parse(content: bytes) -> Any:
    """What a request's body says.

    Raises:
        ApiError: it is not JSON, is nested too deeply, or holds numbers or letters that cannot be.
    """
    try:
        value = json.loads(
            content.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
        )
    except RecursionError:
        raise bad_request("The body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise bad_request("The body is not UTF-8 text.") from None
    except ValueError as error:
        said = str(error).split(": line")[0]
        raise bad_request(f"The body is not valid JSON: {said[:1].lower()}{said[1:]}.") from None
    _check(value)
    return value


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse(await self.body())


class StrictRoute(APIRoute):
    """A route whose JSON body is read by ``parse``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds the number {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("it holds a number that is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError("it holds a number that is too large")
    return int(text)


def _check(value: Any) -> None:
    """Level by level, so that depth costs no stack."""
    level = [value]
    for _ in range(DEEPEST):
        for inner in level:
            if isinstance(inner, str):
                _check_text(inner)
            elif isinstance(inner, dict):
                for key in inner:
                    _check_text(key)
        level = [
            deeper
            for inner in level
            if isinstance(inner, dict | list)
            for deeper in (inner.values() if isinstance(inner, dict) else inner)
            if isinstance(deeper, str | dict | list)
        ]
        if not level:
            return
    raise bad_request(f"The body is nested deeper than {DEEPEST} levels.")


def _check_text(text: str) -> None:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise bad_request("The body holds half a character (a lone surrogate).")
