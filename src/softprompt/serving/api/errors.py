"""Errors as a client sees them: knows OpenAI's shape and the status of a fault, not where it comes from.

Messages reach strangers, so only sentences written for them pass: those about their own request. What
softprompt says of files, folders and other prompts stays in the server's log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from softprompt.errors import (
    BaseModelError,
    CancelledJobError,
    ConfigError,
    DataError,
    QueueFullError,
    ResourceError,
    SoftpromptError,
    WrongBaseError,
)
from softprompt.serving.api.replies import ErrorBody

__all__ = ["ERRORS", "ApiError", "bad_request", "error_of", "install", "no_such_model", "reply"]

log = logging.getLogger("softprompt.serving")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_SENTENCES = {
    400: "The request could not be read.",
    404: "There is nothing at this address; see /docs.",
    405: "This address does not take that method; see /docs.",
}


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": words}
    for status, words in (
        (400, "A value of the request is wrong."),
        (401, "The API key is missing or not known."),
        (403, "The key, or the page the request comes from, may not do this."),
        (404, "There is no such model."),
        (408, "The body took too long to arrive."),
        (413, "The body is too large."),
        (429, "Too many requests; Retry-After tells when to ask again."),
        (500, "A fault in the server."),
        (503, "The server is stopping, or has no room for the model."),
        (504, "The answer took too long."),
    )
}
"""What an endpoint may refuse with, for the OpenAPI page."""


class ApiError(HTTPException):
    """A refusal: a status, one sentence, and the field of the request it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def kind(self) -> str:
        """The error's type in OpenAI's words."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def refusal(self) -> str | None:
        """Why the request was turned away, as metrics count it; None for a fault of the server."""
        return None if self.status in (500, 504) else self.code or str(self.status)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object a client gets."""
        said = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": said}


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A value of the request is wrong."""
    return ApiError(400, message, param=param, code="invalid_value")


def no_such_model(name: str) -> ApiError:
    """There is no such model, or none this client may know of."""
    shown = name if len(name) <= 100 else f"{name[:97]}..."
    return ApiError(
        404,
        f"There is no model {shown!r} here; see /v1/models for what there is.",
        param="model",
        code="model_not_found",
    )


def error_of(error: BaseException) -> ApiError:
    """What to tell a client about a fault met while its request was answered."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(
            429,
            "Too many requests are waiting; try again in a moment.",
            code="queue_full",
            headers={"Retry-After": "1"},
        )
    if isinstance(error, CancelledJobError):
        return ApiError(503, "The answer was given up: the server is stopping.", code="cancelled")
    if isinstance(error, TimeoutError):
        return ApiError(504, "The answer took longer than this server allows.", code="timeout")
    if isinstance(error, DataError | ConfigError | BaseModelError) and not isinstance(error, WrongBaseError):
        return bad_request(str(error))
    if isinstance(error, ResourceError):
        log.warning("a request could not be served: %s", error)
        return ApiError(
            503,
            "The server has no room for this model now; try again later.",
            code="no_room",
            headers={"Retry-After": "5"},
        )
    if isinstance(error, SoftpromptError):
        log.error("a request failed: %s", error)
    else:
        log.error("a request failed", exc_info=error)
    return ApiError(500, "Something went wrong in the server; the request was not answered.", code="internal")


def reply(error: ApiError) -> JSONResponse:
    """The response that carries an error."""
    return JSONResponse(error.body, error.status, headers=error.headers)


def install(app: FastAPI, refused: Callable[[str], None]) -> None:
    """Give every error of ``app`` OpenAI's shape; ``refused`` is told why a request was turned away."""

    def told(error: ApiError) -> JSONResponse:
        if error.refusal is not None:
            refused(error.refusal)
        return reply(error)

    async def failed(_: Request, error: Exception) -> JSONResponse:
        return told(error_of(error))

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return told(_of_validation(error))

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = _SENTENCES.get(error.status_code, "The request was refused.")
        return told(ApiError(error.status_code, message, headers=error.headers))

    app.add_exception_handler(ApiError, failed)
    app.add_exception_handler(SoftpromptError, failed)
    app.add_exception_handler(TimeoutError, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _of_validation(error: RequestValidationError) -> ApiError:
    """The first fault pydantic found, as one sentence that names the field."""
    first = error.errors()[0]
    where = [part for part in first["loc"] if part != "body"]
    param = str(where[0]) if where and isinstance(where[0], str) else None
    if param is None and first["type"] == "value_error":
        return bad_request(f"{first['ctx']['error']}.")
    if param is None:
        return bad_request("The body must be a JSON object, sent with Content-Type: application/json.")
    path = _dotted(where)
    if first["type"] == "missing":
        return bad_request(f"{path} is missing.", param)
    if first["type"] == "value_error":
        return bad_request(f"{path} {first['ctx']['error']}.", param)
    said = str(first["msg"]).replace("Input should be", "must be", 1)
    return bad_request(f"{path} {said[:1].lower()}{said[1:]}.", param)


def _dotted(where: list[Any]) -> str:
    """A path of field names and numbers, without the names pydantic gives to kinds of value."""
    parts = [str(where[0])]
    parts += [str(part) for part in where[1:] if isinstance(part, int) or part.isidentifier()]
    text = ".".join(part for part in parts if part not in {"str", "int", "float", "bool", "list", "dict"})
    return text if len(text) <= 100 else f"{text[:97]}..."
