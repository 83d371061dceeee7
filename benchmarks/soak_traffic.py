"""The clients of ``soak.py``: patient, hasty, confused and too many ones, and somebody at the disk.

It knows HTTP and counts how requests end; it does not know which answers are right.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import httpx

from soak_prompts import BASE, MARKS, TEXTS, Answer, Shelves

__all__ = ["BOUND", "Traffic"]

BOUND = 60.0
"""Seconds within which every request must end."""

CHAOS = (0.4, 1.6)
"""Seconds between two things that happen to the library."""

LENGTHS = (5, 24)
LETTERS = {"temperature": 0, "logit_bias": {str(mark): -100 for mark in MARKS}}
"""Greedy, and nothing but letters: so an answer is as long as was asked for, and says which tokens it is."""

NONSENSE: tuple[tuple[str, Any, set[int]], ...] = (
    ("/v1/completions", {"model": BASE, "prompt": []}, {400}),
    ("/v1/completions", {"model": BASE, "prompt": [10**9]}, {400}),
    ("/v1/completions", {"model": BASE, "prompt": "a", "max_tokens": 10**6}, {400}),
    ("/v1/completions", {"model": BASE, "prompt": "a", "temperature": -1}, {400}),
    ("/v1/completions", {"model": "../soft-0", "prompt": "a"}, {404}),
    ("/v1/completions", {"model": "soft-99", "prompt": "a"}, {404}),
    ("/v1/completions", {"model": "\x00\ud800", "prompt": "a"}, {400, 404}),
    ("/v1/completions", ["no", "object"], {400}),
    ("/v1/classify", {"model": "soft-0", "input": "a"}, {400, 503}),
    ("/v1/classify", {"model": BASE, "input": "a"}, {400}),
    ("/v1/chat/completions", {"model": BASE, "messages": []}, {400}),
    ("/v1/nowhere", {}, {404}),
)
"""What some clients send, and how it may be refused."""


class Traffic:
    """Requests to one server, and how they ended.

    Attributes:
        answers: what came back whole, to be checked.
        ends: how many requests ended how: answered, left, refused (nonsense), queue full, no room, broken.
        events: what happened to the library and the registry.
        odd: replies that should not be.
        stuck: requests that did not end in time.
        slowest: seconds of the slowest request that was not left.
        counts: the server's own counters at the end.
        last_ends: how requests ended that were under way when the server was told to stop.
    """

    def __init__(self, shelves: Shelves, url: str, queue: int, secret: str) -> None:
        self._shelves, self._url, self._queue = shelves, url, queue
        self._headers = {"authorization": f"Bearer {secret}"}
        self._draw = random.Random(0)
        self._broken: dict[str, float] = {}
        self._awake = 0.0
        self.answers: list[Answer] = []
        self.ends, self.events = Counter[str](), Counter[str]()
        self.odd: list[str] = []
        self.requests = self.stuck = 0
        self.slowest = 0.0
        self.counts: dict[str, float] = {}
        self.last_ends = Counter[str]()

    async def __aenter__(self) -> Traffic:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._http = httpx.AsyncClient(base_url=self._url, timeout=None, limits=limits, headers=self._headers)
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ticking.cancel()
        await self._http.aclose()

    # -- the long part -------------------------------------------------------------------------

    async def flow(self, seconds: float, clients: int) -> None:
        """Mixed traffic for so long; returns when every request has ended."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client(end))
            group.create_task(self._chaos(end))
            group.create_task(self._bursts(end, clients))

    async def _client(self, end: float) -> None:
        while time.monotonic() < end:
            draw = self._draw.random()
            if draw < 0.1:
                await self._bounded(self._nonsense())
            elif draw < 0.25:
                await self._bounded(self._leave())
            else:
                await self._bounded(self._ask())
            await asyncio.sleep(self._draw.random() * 0.05)

    async def _bursts(self, end: float, clients: int) -> None:
        """Now and then more at once than may wait."""
        while time.monotonic() + 6 < end:
            await asyncio.sleep(self._draw.uniform(3, 6))
            self.events["bursts"] += 1
            many = 3 * self._queue
            await asyncio.gather(*(self._bounded(self._ask()) for _ in range(many)))

    async def _chaos(self, end: float) -> None:
        """Prompts are replaced, dropped, damaged and mended."""
        while time.monotonic() < end:
            await asyncio.sleep(self._draw.uniform(*CHAOS))
            name = self._draw.choice(self._shelves.names)
            what = self._draw.choice(("replaced", "replaced", "dropped", "broken"))
            if what == "dropped":
                await self._http.post(f"/v1/admin/prompts/{name}/evict")
            elif what == "replaced":
                await asyncio.to_thread(self._shelves.put, name)
            else:
                self._broken[name] = float("inf")
                mend = await asyncio.to_thread(self._shelves.broken, name)
                await asyncio.sleep(self._draw.uniform(0.2, 1.0))
                await asyncio.to_thread(mend)
                self._broken[name] = time.monotonic()
            self.events[what] += 1

    async def _bounded(self, request: Coroutine[Any, Any, None]) -> None:
        """One request, which must end in time."""
        self.requests += 1
        begun = self._awake
        try:
            await self._within(request, BOUND)
        except httpx.HTTPError as error:
            self.odd.append(f"{type(error).__name__}: {error}")
        self.slowest = max(self.slowest, self._awake - begun)

    async def _within(self, request: Coroutine[Any, Any, None], seconds: float) -> None:
        """Wait for a request; one that takes longer is stuck. A machine that sleeps makes nobody late."""
        task, begun = asyncio.create_task(request), self._awake
        while not task.done() and self._awake - begun < seconds:
            await asyncio.wait({task}, timeout=1)
        if not task.done():
            self.stuck += 1
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _tick(self) -> None:
        """Count the seconds this process is awake."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.2)
            self._awake += min(time.monotonic() - before, 1.0)

    # -- kinds of requests ---------------------------------------------------------------------

    async def _ask(self, tokens: int | None = None) -> None:
        """Something sensible, waited for."""
        name, text = self._draw.choice([BASE, *self._shelves.names]), self._draw.choice(TEXTS)
        begun = time.monotonic()
        if name.startswith("labels") and tokens is None and self._draw.random() < 0.7:
            reply = await self._http.post("/v1/classify", json={"model": name, "input": text})
            if reply.status_code == 200:
                said = reply.json()["data"][0]["probabilities"]
                self._answered(Answer(name, text, 0, said, None, begun, time.monotonic()))
            else:
                self._refused(name, reply, begun)
            return
        tokens = tokens or self._draw.choice(LENGTHS)
        body = LETTERS | {"model": name, "prompt": text, "max_tokens": tokens}
        if self._draw.random() < 0.5:
            await self._streamed(body, begun)
            return
        reply = await self._http.post("/v1/completions", json=body)
        if reply.status_code != 200:
            self._refused(name, reply, begun)
            return
        found = reply.json()
        said, version = found["choices"][0]["text"], found["system_fingerprint"]
        self._answered(Answer(name, text, tokens, said, version, begun, time.monotonic()))

    async def _streamed(self, body: dict[str, Any], begun: float, first: asyncio.Event | None = None) -> None:
        """An answer piece by piece; ``first`` is set when the first piece has come."""
        async with self._http.stream("POST", "/v1/completions", json=body | {"stream": True}) as reply:
            if reply.status_code != 200:
                await reply.aread()
                self._refused(body["model"], reply, begun)
                return
            said, version, last = "", None, ""
            async for line in reply.aiter_lines():
                if first is not None:
                    first.set()
                if not line.startswith("data: {"):
                    last = line or last
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    self._told(chunk["error"]["code"])
                    return
                said += chunk["choices"][0]["text"]
                version = chunk["system_fingerprint"]
        if last != "data: [DONE]":
            raise httpx.RemoteProtocolError("a stream ended without [DONE]")
        name, text, tokens = body["model"], body["prompt"], body["max_tokens"]
        self._answered(Answer(name, text, tokens, said, version, begun, time.monotonic()))

    async def _leave(self) -> None:
        """Ask for something long and go away before it is there."""
        name = self._draw.choice([BASE, *self._shelves.names])
        body = LETTERS | {"model": name, "prompt": TEXTS[-1], "max_tokens": 300}
        if self._draw.random() < 0.5:
            with contextlib.suppress(TimeoutError):
                post = self._http.post("/v1/completions", json=body)
                await asyncio.wait_for(post, self._draw.uniform(0.01, 0.5))
        else:
            pieces = self._draw.randrange(6)
            async with self._http.stream("POST", "/v1/completions", json=body | {"stream": True}) as reply:
                async for _ in reply.aiter_lines():
                    pieces -= 1
                    if pieces < 0:
                        break
        self.ends["left"] += 1

    async def _nonsense(self) -> None:
        path, body, right = self._draw.choice(NONSENSE)
        content = json.dumps(body).encode()
        reply = await self._http.post(path, content=content, headers={"content-type": "application/json"})
        self.ends["refused"] += 1
        if reply.status_code not in {*right, 429}:
            self.odd.append(f"{path} {content[:80]!r}: {reply.status_code} {reply.text[:200]}")

    # -- how they end --------------------------------------------------------------------------

    def _answered(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.ends["answered"] += 1

    def _refused(self, name: str, reply: httpx.Response, begun: float) -> None:
        """A refusal is fine where it is told, and for a reason there is."""
        try:
            code = reply.json()["error"]["code"]
        except (ValueError, KeyError):
            code = None
        if code == "model_unavailable" and begun <= self._broken.get(name, 0.0):
            self.ends["broken"] += 1
        elif code in {"queue_full", "no_room", "draining", "cancelled"}:
            self._told(code)
        else:
            self.odd.append(f"{name}: {reply.status_code} {reply.text[:300]}")

    def _told(self, code: str) -> None:
        self.ends[code.replace("_", " ")] += 1

    async def counted(self) -> None:
        """Read the server's counters, and see that nothing is left of the traffic."""
        for _ in range(100):
            health = (await self._http.get("/health")).json()
            held = (await self._http.get("/v1/admin/prompts")).json()["data"]
            if not (health["running"] or health["waiting"] or any(one["users"] for one in held)):
                break
            await asyncio.sleep(0.1)
        else:
            self.odd.append(f"after the traffic: {health}, {[one for one in held if one['users']]}")
        for line in (await self._http.get("/metrics")).text.splitlines():
            name, _, value = line.partition(" ")
            if name.startswith("softprompt:") and "{" not in name:
                self.counts[name] = float(value)

    # -- the end -------------------------------------------------------------------------------

    async def ended(self, stop: Callable[[], None], clients: int) -> None:
        """Tell the server to stop amid long answers; each must be finished, or told that it is not."""
        streams = [asyncio.Event() for _ in range(clients)]
        waited = asyncio.gather(*(self._last(first) for first in streams))
        await asyncio.gather(*(first.wait() for first in streams[::2]))
        stop()
        await asyncio.gather(waited, *(self._late() for _ in range(clients)))

    async def _last(self, first: asyncio.Event) -> None:
        name, before = self._draw.choice([BASE, "soft-0", "lora-0", "full-0"]), Counter(self.ends)
        body = LETTERS | {"model": name, "prompt": self._draw.choice(TEXTS), "max_tokens": 150}
        try:
            await self._within(self._streamed(body, time.monotonic(), first), 2 * BOUND)
        except httpx.HTTPError as error:
            self.last_ends["cut"] += 1
            self.odd.append(f"at the end: {type(error).__name__}: {error}")
        else:
            told = Counter(self.ends) - before
            self.last_ends["finished" if told["answered"] else "told"] += 1
        finally:
            first.set()

    async def _late(self) -> None:
        """Somebody who comes when the server is about to stop is told, or finds nobody."""
        await asyncio.sleep(self._draw.random())
        async with httpx.AsyncClient(base_url=self._url, timeout=None, headers=self._headers) as http:
            try:
                reply = await http.post("/v1/completions", json={"model": BASE, "prompt": "a"})
            except httpx.TransportError:
                self.last_ends["late ones that found nobody"] += 1
                return
        if reply.status_code == 503:
            self.last_ends["late ones refused"] += 1
        else:
            self.odd.append(f"late: {reply.status_code} {reply.text[:200]}")
