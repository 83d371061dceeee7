"""JSON from strangers, through pydantic's parser: bounded in depth, free of broken text. Knows no field."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from softprompt.serving.api.errors import bad_request

__all__ = ["StrictRoute"]


class _StrictRequest(Request):
    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise bad_request(f"The body is not valid JSON: {error}.") from None


class StrictRoute(APIRoute):
    """A route whose JSON body must be sound in every field; Python's parser takes NaN and half letters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict
