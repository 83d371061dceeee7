"""Events of jobs on their way to a client: knows asyncio and server-sent events, not the shape of answers.

Whatever ends first ends the rest: an answer, a client that leaves, or the time a request may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from softprompt.errors import CancelledJobError, ConfigError, QueueFullError, SoftpromptError
from softprompt.generation.request import Event, ModelRequest, RequestFailed
from softprompt.generation.scheduler import RequestHandle
from softprompt.generation.sharing import NOBODY, Owner, Places
from softprompt.serving.api.errors import ApiError, bad_request, error_of, log

__all__ = ["DONE", "Crowd", "EventStream", "attended", "sse"]

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
GONE = 499
"""The status nobody sees: the client left before its answer was there."""


class Runner(Protocol):
    """What runs jobs: ``Service``."""

    def run(
        self, job: ModelRequest, owner: Owner, handed_in: Callable[[RequestHandle], None]
    ) -> AsyncIterator[Event]:
        """Events of a job of an owner; closing the iterator cancels the job."""

    def places(self, owner: Owner) -> Places:
        """How many jobs of an owner would be taken on."""


class Crowd:
    """Several jobs at once, their events as they come; leaving it cancels those that have not ended."""

    def __init__(
        self,
        runner: Runner,
        jobs: Sequence[ModelRequest],
        deadline: float | None = None,
        owner: Owner = NOBODY,
    ) -> None:
        """deadline: when to give up, by the loop's clock; owner: whose they are."""
        self._runner, self._jobs, self._deadline, self._owner = runner, jobs, deadline, owner
        self._queue: asyncio.Queue[tuple[int, Event | BaseException | None]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._first: list[tuple[int, Event]] = []
        self._running = len(jobs)
        self._handles: list[RequestHandle] = []

    async def __aenter__(self) -> Crowd:
        """Begin all jobs, or none where not all find a place: nobody is to wait for what is in vain.

        Raises:
            ApiError: there would be no place for so many even if nobody else asked.
            QueueFullError: there is none now.
        """
        wanted = len(self._jobs)
        if wanted > 1:
            places = self._runner.places(self._owner)
            if wanted > places.ever:
                raise bad_request(
                    f"The request is for {wanted:,} answers; this server takes on {places.ever:,} at once: "
                    "ask for fewer."
                )
            if wanted > places.now:
                raise QueueFullError(f"There is no place for {wanted:,} answers; ask again in a moment.")
        self._tasks = [asyncio.create_task(self._pump(*pair)) for pair in enumerate(self._jobs)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def joined(self) -> list[float]:
        """When each of the jobs that were read at all began to be, in ``time.monotonic`` seconds."""
        return [handle.joined for handle in self._handles if handle.joined is not None]

    async def begun(self) -> None:
        """Wait for the first event, so that a refusal can still have its status; raises what failed."""
        found = await self._next()
        if found is not None:
            self._first.append(found)

    async def events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """(number of the job, event) until all have ended; raises what made one of them fail."""
        while self._first:
            yield self._first.pop(0)
        while (found := await self._next()) is not None:
            yield found

    async def _next(self) -> tuple[int, Event] | None:
        while self._running:
            async with asyncio.timeout_at(self._deadline):
                number, event = await self._queue.get()
            if event is None:
                self._running -= 1
            elif isinstance(event, RequestFailed):
                raise _fault(event.error)
            elif isinstance(event, BaseException):
                raise event
            else:
                return number, event
        return None

    async def _pump(self, number: int, job: ModelRequest) -> None:
        events = self._runner.run(job, self._owner, self._handles.append)
        try:
            async for event in events:
                self._queue.put_nowait((number, event))
        except Exception as error:
            self._queue.put_nowait((number, error))
        else:
            self._queue.put_nowait((number, None))
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()


def _fault(error: SoftpromptError) -> Exception:
    """What failed once it was accepted is no fault of the request, but for a grammar too costly to follow."""
    if isinstance(error, CancelledJobError | ConfigError):
        return error
    log.error("a job failed: %s", error, exc_info=error.__cause__)
    return ApiError(500, "The model failed at this request.", code="model_failed")


async def attended(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Do ``work`` while the client is there; when it leaves, the work is cancelled."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return Response(status_code=GONE)
    finally:
        await _cancelled(task, left)


async def _left(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def sse(value: Any) -> bytes:
    """One server-sent event; ASCII, so that no letter of an answer can break a line."""
    return b"data: " + json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Server-sent events from a generator, and what to give back when the stream is over, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes, None], after: contextlib.AsyncExitStack) -> None:
        super().__init__(status_code=200)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"
        self._chunks, self._after = chunks, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; a client that leaves ends them."""
        sending = asyncio.ensure_future(self._send(send))
        left = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sending, left}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _cancelled(sending, left)
            await self._chunks.aclose()
            await self._after.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                return  # nobody listens any more
            await send({"type": "http.response.body", "body": sse(error_of(error).body), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
