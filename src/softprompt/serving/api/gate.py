"""The gate every request passes before anything reads it: knows keys, hosts and sizes, not models."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompt.errors import ResourceError
from softprompt.serving.api.errors import ApiError, error_of, reply
from softprompt.serving.keys import Key

__all__ = ["Bounds", "Drain", "Gate", "Keys", "is_loopback"]

log = logging.getLogger("softprompt.serving")

Refused = Callable[[str], None]

ADMIN = "/v1/admin"
SERVED = ("/v1/", "/tokenize", "/detokenize")
"""What these begin with needs a key, where there are keys, and is finished before the server stops."""
_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class Bounds:
    """What one request may ask for.

    Attributes:
        body_bytes: the largest body.
        upload_bytes: the largest artifact that may be put.
        body_seconds: how long a body may take to arrive.
        letters: the most letters of text that one request may bring.
        seconds: how long an answer may take.
        answers: the most answers of one request, prompts x n.
        tokens: the most new tokens of an answer, where the base itself sets no limit.
        stalled_seconds: an engine that had work and did nothing for so long is not healthy.
    """

    body_bytes: int = 4 * 2**20
    upload_bytes: int = 2**30
    body_seconds: float = 60.0
    letters: int = 2**19
    seconds: float = 600.0
    answers: int = 128
    tokens: int = 4_096
    stalled_seconds: float = 30.0


class Keys(Protocol):
    """What knows keys: a ``KeyRing``, or a ``KeyFile`` that is read again when it changes."""

    def find(self, secret: str) -> Key | None:
        """The key a secret belongs to."""


@dataclass
class Drain:
    """Whether the server is about to stop, how many requests are under way, and which bodies are awaited."""

    draining: bool = False
    active: int = 0
    awaited: set[asyncio.Timeout] = field(default_factory=set)

    def hurry(self) -> None:
        """No body is waited for any longer."""
        for limit in self.awaited:
            limit.reschedule(0.0)


class Gate:
    """ASGI middleware: refuses strangers, bodies that are too large, and everybody while the server stops.

    What it lets in carries ``request_id`` and ``key`` (None without keys) in its state.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys | None,
        bounds: Bounds,
        drain: Drain,
        admin: bool,
        refused: Refused,
        origins: Collection[str] = (),
    ) -> None:
        """admin: whether the admin paths are open without keys; refused: told why it turned one away;
        origins: other sites whose pages may ask without keys, too.
        """
        self._app, self._keys, self._bounds, self._drain, self._admin = app, keys, bounds, drain, admin
        self._refused, self._origins = refused, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._pass(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/":
            scope["path"] = scope["path"].rstrip("/") or "/"
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        state["request_id"] = _request_id(headers)
        answer = _Answer(scope, send, state["request_id"])
        served = scope["path"].startswith(SERVED)
        try:
            if scope["method"] == "OPTIONS":
                raise ApiError(405, "OPTIONS is answered to the pages of --allowed-origins only.")
            state["key"] = self._admit(scope, headers)
            limit = self._limit(scope)
            if int(_digits(headers.get("content-length", "0"))) > limit:
                raise _too_large(limit)
        except ApiError as error:
            answer.headers["connection"] = "close"  # its body, if any, stays unread
            self._refused(error.refusal or str(error.status))
            await reply(error)(scope, receive, answer.send)
            answer.log(None)
            return
        if served:
            self._drain.active += 1
        try:
            body = _BoundedBody(receive, limit, self._bounds.body_seconds, self._drain)
            await self._app(scope, body.receive, answer.send)
        except Exception as error:
            if answer.begun:  # too late to say so
                raise
            await reply(error_of(error))(scope, receive, answer.send)
        finally:
            if served:
                self._drain.active -= 1
            answer.log(state["key"])

    def _admit(self, scope: Scope, headers: Headers) -> Key | None:
        path = scope["path"]
        guarded = path.startswith(SERVED) or path == "/metrics"
        key = None
        if self._keys is None:
            _check_host(headers)
            _check_origin(headers, self._origins)
        elif guarded:
            key = _key(self._keys, headers)
        if path.startswith(ADMIN) or (path == "/metrics" and key is not None):
            self._check_admin(key)
        if path.startswith(SERVED) and self._drain.draining:
            raise _draining()
        return key

    def _check_admin(self, key: Key | None) -> None:
        if key is None and not self._admin:
            raise ApiError(403, "This server was started without --admin.", code="not_allowed")
        if key is not None and not key.admin:
            raise ApiError(403, "This needs an admin key.", code="not_allowed")

    def _limit(self, scope: Scope) -> int:
        upload = scope["method"] == "PUT" and scope["path"].startswith(f"{ADMIN}/prompts/")
        return self._bounds.upload_bytes if upload else self._bounds.body_bytes


class _Answer:
    """What goes back: adds headers, and remembers the status for the log."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self._scope, self._send, self._id = scope, send, request_id
        self.headers: dict[str, str] = {**_HEADERS, "x-request-id": request_id}
        if scope["path"].startswith(SERVED):
            self.headers["cache-control"] = "no-store"
        self._status, self._started = 0, time.monotonic()

    @property
    def begun(self) -> bool:
        return self._status > 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self.headers.items():
                headers[name] = value
        await self._send(message)

    def log(self, key: Key | None) -> None:
        """One line without anything of the request's content; the path is quoted as the client sent it."""
        told = {
            "id": self._id,
            "method": self._scope["method"],
            "path": ascii(self._scope["path"][:200]),
            "status": self._status,
            "ms": round(1000 * (time.monotonic() - self._started)),
            "key": key.id if key else "-",
        }
        log.info("%(id)s %(method)s %(path)s -> %(status)s in %(ms)s ms, key %(key)s", told)


class _BoundedBody:
    """A request's body as it comes in, up to a size and within a time."""

    def __init__(self, receive: Receive, limit: int, seconds: float, drain: Drain) -> None:
        self._receive, self._limit, self._seconds, self._drain = receive, limit, seconds, drain
        self._read, self._whole = 0, False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._deadline) as waiting:
                self._drain.awaited.add(waiting)
                try:
                    message = await self._receive()
                finally:
                    self._drain.awaited.discard(waiting)
        except TimeoutError:
            if self._drain.draining:
                raise _draining() from None
            raise ApiError(
                408, "The body took too long to arrive.", code="slow_body", headers={"Connection": "close"}
            ) from None
        self._read += len(message.get("body", b""))
        self._whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
        if self._read > self._limit:
            raise _too_large(self._limit)
        return message


def _draining() -> ApiError:
    headers = {"Retry-After": "10", "Connection": "close"}
    return ApiError(503, "The server is stopping; ask another one.", code="draining", headers=headers)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The body is larger than {limit:,} bytes, the most this server reads.",
        code="body_too_large",
        headers={"Connection": "close"},
    )


def _digits(text: str) -> str:
    """A length as the client tells it; nonsense counts as none, since the body is counted anyway."""
    return text if text.isascii() and text.isdigit() and len(text) <= 18 else "0"


def _request_id(headers: Mapping[str, str]) -> str:
    """The client's own id if it is a plain word, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def _key(keys: Keys, headers: Headers) -> Key:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise _no_key("This server needs an API key; send it as `Authorization: Bearer KEY`.")
    try:
        key = keys.find(secret.strip())
    except ResourceError as error:
        raise ApiError(503, str(error), code="keys_unavailable") from None
    if key is None:
        raise _no_key("This API key is not known here, or has expired.")
    return key


def _no_key(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _check_host(headers: Headers) -> None:
    """Without keys only this machine is served, by its own name: a foreign name that leads here is an attack
    on the browser of whoever sits at it (DNS rebinding).
    """
    host = headers.get("host", "")
    if not is_loopback(urlsplit(f"//{host}").hostname if _plain_host(host) else None):
        raise ApiError(
            403, "Without API keys this server answers at localhost only; use that name.", code="wrong_host"
        )


def _check_origin(headers: Headers, allowed: Collection[str]) -> None:
    """A page of another site may not ask this server for anything through its reader's browser."""
    origin = headers.get("origin")
    if origin is None or origin in allowed:
        return
    if origin != "http://" + headers.get("host", ""):
        raise ApiError(403, "Pages of other sites may not use this server.", code="wrong_origin")


def _plain_host(host: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?", host))


def is_loopback(host: str | None) -> bool:
    """Whether a host's name or address means this machine and no other."""
    if not host:
        return False
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
