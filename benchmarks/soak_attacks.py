"""Those who mean no good to the server of ``soak.py``, and one key that behaves and is timed.

Connections that send half a head and stay, long texts whose sender hangs up, one key's floods of answers,
long ones without a pause. It knows HTTP and sockets; it does not know which answers are right.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from soak_prompts import BASE

__all__ = ["Attacks", "Keys"]

SLOW = 40
"""Connections that stay silent at once."""
ANSWERS = 12
"""Answers that one request of the flood asks for, of the 16 that the server takes on of one key; three such
requests are under way at once."""
PERIOD = 6.0
"""Seconds of peace, and then of flood, in turns: the well-behaved key is timed in both."""


@dataclass(frozen=True)
class Keys:
    """Secrets: of the traffic that is checked, of the flood, and of the key that behaves."""

    boss: str
    flood: str
    quiet: str


@dataclass
class Attacks:
    """What is done to one server while other traffic flows.

    Attributes:
        done: how often each was done.
        odd: replies that should not be.
        peaceful, flooded: seconds of the well-behaved key's one-token answers.
    """

    url: str
    keys: Keys
    done: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)
    peaceful: list[float] = field(default_factory=list)
    flooded: list[float] = field(default_factory=list)
    _flooding: bool = False

    async def go_on(self, seconds: float) -> None:
        """All of them for so long; returns when every request has ended."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self._slow(end))
            group.create_task(self._hang_up(end))
            group.create_task(self._behave(end))
            for _ in range(3):
                group.create_task(self._flood(end))
            group.create_task(self._endless(end))
            group.create_task(self._turns(end))

    def _client(self, secret: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {secret}"}
        return httpx.AsyncClient(base_url=self.url, timeout=None, headers=headers)

    async def _turns(self, end: float) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(min(PERIOD, max(0.0, end - time.monotonic())))
            self._flooding = not self._flooding

    async def _slow(self, end: float) -> None:
        """Half a head on many connections, again when the server has closed them."""
        place = urlsplit(self.url)
        while time.monotonic() < end:
            held = list[asyncio.StreamWriter]()
            for _ in range(SLOW):
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(place.hostname, place.port)
                    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half")
                    held.append(writer)
            self.done["silent connections"] += len(held)
            await asyncio.sleep(min(12.0, max(0.0, end - time.monotonic())))
            for writer in held:
                writer.close()

    async def _hang_up(self, end: float) -> None:
        """Long texts whose sender leaves while they are read."""
        async with self._client(self.keys.flood) as http:
            while time.monotonic() < end:
                body = {"model": BASE, "prompt": "a b c d " * 30_000}
                with contextlib.suppress(TimeoutError, httpx.HTTPError):
                    await asyncio.wait_for(http.post("/v1/completions", json=body), 0.05)
                self.done["hang-ups"] += 1
                await asyncio.sleep(0.5)

    async def _flood(self, end: float) -> None:
        """Requests for many answers, and what is beyond the key's share must be refused in words."""
        async with self._client(self.keys.flood) as http:
            while time.monotonic() < end:
                if not self._flooding:
                    await asyncio.sleep(0.05)
                    continue
                body = {"model": BASE, "prompt": "a", "n": ANSWERS, "max_tokens": 40, "ignore_eos": True}
                reply = await http.post("/v1/completions", json=body)
                self._note("floods", reply)

    async def _endless(self, end: float) -> None:
        """Answers of any length, as a chat without max_tokens asks for."""
        async with self._client(self.keys.flood) as http:
            while time.monotonic() < end:
                body = {"model": BASE, "prompt": "a", "max_tokens": 400, "ignore_eos": True}
                reply = await http.post("/v1/completions", json=body)
                self._note("long answers", reply)
                await asyncio.sleep(0.2)

    async def _behave(self, end: float) -> None:
        """One token now and then."""
        async with self._client(self.keys.quiet) as http:
            while time.monotonic() < end:
                flooded, begun = self._flooding, time.monotonic()
                body = {"model": BASE, "prompt": "a", "max_tokens": 1, "temperature": 0}
                reply = await http.post("/v1/completions", json=body)
                took = time.monotonic() - begun
                if reply.status_code != 200:
                    self.odd.append(f"the key that behaves: {reply.status_code} {reply.text[:200]}")
                elif flooded == self._flooding:
                    (self.flooded if flooded else self.peaceful).append(took)
                await asyncio.sleep(0.1)

    def _note(self, what: str, reply: httpx.Response) -> None:
        if reply.status_code not in {200, 429}:
            self.odd.append(f"{what}: {reply.status_code} {reply.text[:200]}")
        self.done[what if reply.status_code == 200 else f"{what} refused"] += 1
