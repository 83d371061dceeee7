"""One request inside: admitted, bound to a version and measured, until it ends. Knows no endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request

from softprompt.errors import ArtifactError, CancelledJobError, SoftpromptError, WrongBaseError
from softprompt.generation.request import Event, Finished, ModelRequest, PromptLogprobs, TextDelta
from softprompt.generation.sharing import NOBODY, Owner
from softprompt.serving.api.errors import ApiError, error_of, log, no_such_model
from softprompt.serving.api.gate import Bounds, Drain, Keys
from softprompt.serving.api.guard import Guard
from softprompt.serving.api.metrics import Finish, Metrics, RequestTimer
from softprompt.serving.api.stream import Crowd
from softprompt.serving.keys import Key
from softprompt.serving.limits import Limiter, Pass, TooManyError
from softprompt.serving.service import Service
from softprompt.serving.version import Version

if TYPE_CHECKING:
    from softprompt.serving.api.traces import RequestTrace, Traces

__all__ = ["Serving", "Tally", "Visit", "pass_of", "serving_of", "visiting"]

T = TypeVar("T")

LONG_TEXT = 4_096
"""Letters from which tokenising is moved off the event loop."""


@dataclass(frozen=True, eq=False)
class Serving:
    """Everything an endpoint needs, made once.

    Attributes:
        service: the engine.
        guard: keeps clients' texts from giving orders.
        limiter: counts what every key uses.
        metrics: where requests are counted.
        bounds: what one request may ask for.
        drain: whether the server is about to stop.
        keys: who may ask; None for everybody on this machine.
        readers: turns long texts into tokens.
        compilers: makes grammars ready.
        traces: tells where the time of every request went, if somebody collects that.
    """

    service: Service
    guard: Guard
    limiter: Limiter
    metrics: Metrics
    bounds: Bounds
    drain: Drain
    keys: Keys | None = None
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "reader"))
    compilers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "compiler"))
    traces: Traces | None = None

    def may(self, key: Key | None, name: str) -> bool:
        """Whether a client may know of a model; without keys everybody may."""
        return self.keys is None or (key is not None and key.may(name))


def serving_of(request: Request) -> Serving:
    """What the request's app serves with."""
    serving: Serving = request.app.state.serving
    return serving


@dataclass
class Tally:
    """Tokens of a request."""

    prompt: int = 0
    virtual: int = 0
    completion: int = 0

    @property
    def usage(self) -> dict[str, Any]:
        """In OpenAI's shape; virtual tokens are told apart, since nobody sent them."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": 0, "virtual_tokens": self.virtual},
        }


@dataclass(eq=False)
class Visit:
    """A request that was let in.

    Attributes:
        serving: what it is served with.
        version: what answers it.
        timing: its measurements.
        deadline: when it is given up, by the loop's clock.
        stack: what is given back when it ends.
        tally: its tokens so far.
        owner: whose its answers are.
        spend: counts tokens against its key's limit.
        trace: its spans, where they are collected.
    """

    serving: Serving
    version: Version
    timing: RequestTimer
    deadline: float
    stack: contextlib.AsyncExitStack
    tally: Tally = field(default_factory=Tally)
    owner: Owner = NOBODY
    spend: Callable[[int], None] = lambda tokens: None
    trace: RequestTrace | None = None
    _crowd: Crowd | None = None

    async def crowd(self, jobs: Sequence[ModelRequest]) -> Crowd:
        """Begin ``jobs``; returns when the first event is there, so that a refusal has its own status.

        Unless they are refused their texts count against the key's limit, also where the client leaves.
        """
        crowd = self._crowd = await self.stack.enter_async_context(
            Crowd(self.serving.service, jobs, self.deadline, self.owner)
        )
        if self.trace is not None:
            self.trace.handed_in()
        refused = False
        try:
            await crowd.begun()
            if self.trace is not None:
                self.trace.first()
        except Exception:
            refused = True
            raise
        finally:
            if not refused:
                self.spend(sum(map(len, {job.ids for job in jobs})))
        return crowd

    async def events(self, crowd: Crowd, answers: int = 1) -> AsyncIterator[tuple[int, Event]]:
        """The events of a crowd, counted; ``answers`` jobs in a row share one prompt."""
        cut = False
        try:
            async for number, event in crowd.events():
                if isinstance(event, TextDelta):
                    self.timing.token(len(event.tokens))
                    self.spend(len(event.tokens))
                elif isinstance(event, PromptLogprobs):
                    self.timing.first_token()
                elif isinstance(event, Finished):
                    self.count(event, first=number % answers == 0)
                    cut = cut or event.reason == "length"
                yield number, event
        except Exception as error:
            self._ended("abort" if isinstance(error, CancelledJobError) else "error")
            raise
        self._ended("length" if cut else "stop")

    def _ended(self, reason: Finish) -> None:
        """Tell the metrics and the trace; only the first time counts."""
        tally = self.tally
        self.timing.ended(reason, tally.prompt, tally.virtual, tally.completion)
        trace, self.trace = self.trace, None
        if trace is not None:
            trace.ended(
                reason,
                [] if self._crowd is None else self._crowd.joined,
                {
                    "gen_ai.usage.input_tokens": tally.prompt,
                    "gen_ai.usage.output_tokens": tally.completion,
                    "softprompt.virtual_tokens": tally.virtual,
                },
            )

    def close(self, kind: object, error: BaseException | None, trace: object) -> None:
        """What ended neither well nor with a fault was left; what was refused has never begun."""
        if not isinstance(error, Exception):
            self._ended("abort")

    def count(self, ended: Finished, *, first: bool = True) -> None:
        """Add a job's tokens; those of a prompt count once, however many answers it gets."""
        self.tally.completion += ended.completion_tokens
        if first:
            self.tally.prompt += ended.prompt_tokens
            self.tally.virtual += ended.virtual_tokens

    async def tokenised(self, letters: int, param: str, work: Callable[..., T], *args: Any) -> T:
        """Do ``work`` on texts of so many letters: long ones in one of two threads, so that nobody waits.

        A client that leaves has its texts dropped, unless work on them has begun: that counts as the client's
        until it is done.

        Raises:
            ApiError: there is more than this server reads in one request.
        """
        most = self.serving.bounds.letters
        if letters > most:
            raise ApiError(
                400,
                f"The texts have {letters:,} letters in all, but this server reads {most:,} of a request; "
                "shorten them, or send several requests.",
                param=param,
                code="context_length_exceeded",
            )
        return await _apart(self.serving.readers, work, *args) if letters > LONG_TEXT else work(*args)

    async def compiled(self, work: Callable[..., T], *args: Any) -> T:
        """Do ``work`` on a grammar, one after another in a thread of their own, so that no text waits."""
        return await _apart(self.serving.compilers, work, *args)

    def check_room(self, text: int, new: int, param: str | None = None) -> None:
        """Refuse what the base has no positions for.

        Raises:
            ApiError: a text of that many tokens and that many new ones are too many; it names the numbers.
        """
        limit, front = self.version.model.max_positions, self.version.prefix.length
        if limit is not None and front + text + new > limit:
            raise ApiError(
                400,
                f"This model holds {limit:,} positions, but the request needs {front + text + new:,}: "
                f"{front:,} of the prompt, {text:,} of the text and {new:,} new ones. Shorten the text or "
                "lower max_tokens.",
                param=param,
                code="context_length_exceeded",
            )
        if text == 0 and self.version.prefix.hidden is None:
            raise ApiError(400, "There is no text to go on from; send at least one token.", param=param)

    def room(self, text: int, asked: int | None, usual: int | None) -> int:
        """How many new tokens an answer to a text may have.

        Args:
            text: tokens of the text.
            asked: what the client asked for.
            usual: what it gets where it did not; None for all there is.
        """
        if asked is not None:
            return asked
        limit = self.version.model.max_positions
        left = self.serving.bounds.tokens
        if limit is not None:
            left = min(left, limit - self.version.prefix.length - text)
        return max(1, left if usual is None else min(left, usual))


async def _apart(threads: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T:
    """Do ``work`` in one of these threads; left while it waits it is dropped, once begun it is waited for."""
    working = asyncio.get_running_loop().run_in_executor(threads, work, *args)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        if not working.cancel():
            await asyncio.wait({working})
        raise


@contextlib.asynccontextmanager
async def visiting(request: Request, name: str) -> AsyncIterator[Visit]:
    """Let a request in: its key's limits, its version, its time. What it took is given back in the end,
    unless the visit's ``stack`` was moved elsewhere (``pop_all``).

    Raises:
        ApiError: there is no such model for this client, it cannot be loaded, or the client asks too much.
    """
    serving = serving_of(request)
    key = request.state.key
    deadline = asyncio.get_running_loop().time() + serving.bounds.seconds
    if not serving.may(key, name):
        raise no_such_model(name)
    async with contextlib.AsyncExitStack() as stack:
        trace = None if serving.traces is None else _traced(serving.traces, request, stack)
        held = None if key is None else pass_of(serving.limiter, key)
        if held is not None:
            stack.callback(held.close)
        async with asyncio.timeout_at(deadline):
            version = await _leased(serving, name, stack)
        timing = serving.metrics.started(version.name)
        visit = Visit(serving, version, timing, deadline, stack, trace=trace)
        if trace is not None:
            trace.found(version.name)
        if key is not None and held is not None:
            visit.owner, visit.spend = Owner(key.id, key.weight), held.spend
        stack.push(visit.close)
        yield visit


def _traced(traces: Traces, request: Request, stack: contextlib.AsyncExitStack) -> RequestTrace:
    """The spans of a request, which end with the stack; they know its id and its key's, nothing it says."""
    about = {"softprompt.request_id": request.state.request_id}
    if request.state.key is not None:
        about["softprompt.key_id"] = request.state.key.id
    trace = traces.request(request.scope["route"].path, request.headers, **about)
    stack.push(lambda kind, error, where: trace.close(error))
    return trace


def pass_of(limiter: Limiter, key: Key) -> Pass:
    """Leave for one request of a key.

    Raises:
        ApiError: it reached one of its limits.
    """
    try:
        return limiter.enter(key)
    except TooManyError as error:
        wait = str(max(1, math.ceil(error.retry_after)))
        raise ApiError(429, str(error), code=error.limit, headers={"Retry-After": wait}) from None


async def _leased(serving: Serving, name: str, stack: contextlib.AsyncExitStack) -> Version:
    """The version of a name; the stack gives it back."""
    leasing = asyncio.ensure_future(serving.service.lease(name))
    try:
        lease = await asyncio.shield(leasing)
    except asyncio.CancelledError:
        leasing.add_done_callback(_give_back)  # loading goes on in its thread
        raise
    except (ArtifactError, WrongBaseError) as error:
        known = {model.id for model in await asyncio.to_thread(serving.service.models)}
        if name not in known:
            raise no_such_model(name) from None
        log.error("%s cannot be loaded: %s", ascii(name), error)
        raise ApiError(
            503, f"The model {name!r} cannot be loaded; the server's log says why.", code="model_unavailable"
        ) from None
    except SoftpromptError as error:
        raise error_of(error) from None
    stack.callback(lease.close)
    return lease.version


def _give_back(leasing: asyncio.Future[Any]) -> None:
    if not leasing.cancelled() and leasing.exception() is None:
        leasing.result().close()
