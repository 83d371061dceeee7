"""The one address: lets requests in, counts them against their key's limits, and sends each to a replica.

It knows keys, limits and which prompt a request is for; how a replica is reached it is told (``Ask``). A
request whose replica dies before the client has heard of it is sent again, to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing
from typing import Any

from softprompt.cluster.replica import Asked, Begun, Message, Part, Spent
from softprompt.errors import ResourceError
from softprompt.serving.api.errors import ApiError, no_such_model, reply
from softprompt.serving.api.gate import Bounds, Drain, Gate, Keys
from softprompt.serving.api.visit import pass_of
from softprompt.serving.keys import Key
from softprompt.serving.limits import Limiter

__all__ = ["Ask", "Door", "LostError"]

log = logging.getLogger("softprompt.serving")

Ask = Callable[[Asked], AsyncIterator[Part]]
"""Sends a request to a replica of its prompt; raises ``LostError`` where that was lost with it."""
Spend = Callable[[int], None]

TRIES = 5
_PAUSE = 0.2
"""Seconds before a request is sent again, twice as long each time: a new replica may have to start."""
_ASKING = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/classify", "/tokenize",
           "/detokenize")  # fmt: skip
"""What counts against a key's limits: whatever a server of its own lets in by ``visiting``."""
_ADMIN = "/v1/admin/prompts/"
_SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path",
          "headers", "client", "server")  # fmt: skip


class LostError(ResourceError):
    """The replica that a request was at is gone, or is about to go and refuses it."""


class Door:
    """An ASGI application in front of replicas.

    Attributes:
        counts: requests by what became of them: "answered", "sent again", "lost".

    Args:
        ask: sends a request on.
        keys: who may ask; None for everybody on this machine.
        limits: counts what every key uses, over all replicas.
        bounds: what one request may ask for.
        drain: tells that the server is about to stop.
        admin: whether the admin paths are open without keys.
        origins: sites whose pages may ask.
        tries: how often a request is sent at most.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        keys: Keys | None = None,
        limits: Limiter | None = None,
        bounds: Bounds | None = None,
        drain: Drain | None = None,
        admin: bool = False,
        origins: Collection[str] = (),
        tries: int = TRIES,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._ask, self._limits, self._tries = ask, limits or Limiter(), tries
        self._gate = Gate(
            self._let_in, keys, bounds or Bounds(), drain or Drain(), admin, lambda _: None, origins
        )

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer a request as ASGI hands it over; there is nothing to begin or end with the server."""
        if scope["type"] != "lifespan":
            await self._gate(scope, receive, send)
            return
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    async def _let_in(self, scope: Message, receive: Any, send: Any) -> None:
        key: Key | None = scope["state"]["key"]
        body = await _whole(receive)
        if body is None:
            return
        name = _name(scope, body)
        spend: Spend = _uncounted
        with contextlib.ExitStack() as stack:
            try:
                if key is not None and scope["path"] in _ASKING:
                    if name and not key.may(name):  # where none is named the replica knows what is meant
                        raise no_such_model(name)
                    spend = stack.enter_context(pass_of(self._limits, key)).spend
            except ApiError as error:
                await reply(error)(scope, receive, send)
                return
            asked = Asked(name, {field: scope[field] for field in _SCOPE if field in scope}, body, _free(key))
            await _while_there(self._answer(asked, scope, send, spend), receive)

    async def _answer(self, asked: Asked, scope: Message, send: Any, spend: Spend) -> None:
        """Send a request until it is answered; what a client has heard of is not sent again."""
        for again in range(self._tries):
            begun = False
            try:
                async with aclosing(_held_back(self._ask(asked))) as parts:
                    async for part in parts:
                        if isinstance(part, Spent):
                            spend(part.tokens)
                            continue
                        begun = True
                        await send(_message(part))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                self.counts["answered"] += 1
                return
            except LostError as error:
                if begun:
                    self.counts["lost"] += 1
                    raise
                self.counts["sent again"] += 1
                log.warning("a request for %s is sent again: %s", ascii(asked.name), error)
                await asyncio.sleep(_PAUSE * 2**again)
        self.counts["lost"] += 1
        after = {"Retry-After": "5"}
        told = ApiError(503, "No replica could answer; ask again.", code="lost", headers=after)
        await reply(told)(scope, _nothing, send)


async def _held_back(parts: AsyncIterator[Part]) -> AsyncGenerator[Part]:
    """An answer as it comes, but one whose length is told only when all of it is there: till then it can be
    asked for again. A replica that is about to stop refuses; that is as if it were gone.
    """
    async with aclosing(parts) as coming:  # type: ignore[type-var]
        first = await anext(coming, None)
        if not isinstance(first, Begun):
            raise LostError("it gave no answer")
        if first.status == 503 and b"connection" in dict(first.headers):
            raise LostError("the replica is stopping")
        if b"content-length" not in dict(first.headers):
            yield first
            async for part in coming:
                yield part
            return
        rest = [part async for part in coming]
    yield first
    for part in rest:
        yield part


def _message(part: Begun | bytes) -> Message:
    if isinstance(part, Begun):
        return {"type": "http.response.start", "status": part.status, "headers": list(part.headers)}
    return {"type": "http.response.body", "body": part, "more_body": True}


async def _whole(receive: Any) -> bytes | None:
    """The body, whose size the gate bounds; None if the client left."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _name(scope: Message, body: bytes) -> str:
    """The prompt that a request is for; what cannot be read is for a replica to refuse."""
    if scope["path"].startswith(_ADMIN):
        return str(scope["path"].removeprefix(_ADMIN).partition("/")[0])
    try:
        name = json.loads(body).get("model", "") if body else ""
    except (ValueError, AttributeError, RecursionError):
        return ""
    return name[:100] if isinstance(name, str) else ""


def _uncounted(tokens: int) -> None:
    """Where there are no keys nobody has a limit."""


def _free(key: Key | None) -> Key | None:
    """A key without limits: they are counted here."""
    limits = ("requests_per_minute", "tokens_per_minute", "concurrent")
    return None if key is None else key.model_copy(update=dict.fromkeys(limits))


async def _while_there(answer: Any, receive: Any) -> None:
    """Answer until the client leaves."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(receive())
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
    finally:
        for task in (answering, leaving):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, LostError):
            await answering


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
