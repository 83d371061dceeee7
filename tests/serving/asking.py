"""Jobs handed to an engine, and what came of them."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from threading import Condition
from typing import Any

import torch

import tiny
from library import samples
from softprompt.base.model import Base
from softprompt.base.sampling import Sampling
from softprompt.serving.core import Core, Ticket
from softprompt.serving.engine import Engine
from softprompt.serving.job import (
    Compared,
    Comparison,
    Ended,
    Event,
    Failed,
    Generation,
    Heard,
    Job,
    Said,
    Wrote,
)
from softprompt.serving.version import Version

__all__ = ["PATIENCE", "Asked", "alone", "compare", "soft", "some_ids", "steps", "until_over", "write"]

PATIENCE = 60.0
"""Seconds after which a test takes a request for stuck."""


class Asked:
    """One job under way; its events as they come.

    With ``stay`` the engine stands still after that many of its events, until ``go_on`` is called.
    """

    def __init__(self, engine: Engine | Core, job: Job, stay: int | None = None) -> None:
        self.events: list[Event] = []
        self._more = Condition()
        self._stay, self._leave = stay, threading.Event()
        self.job = job
        self.ticket: Ticket = engine.submit(job, self._tell)

    def _tell(self, event: Event) -> None:
        with self._more:
            self.events.append(event)
            self._more.notify_all()
        if len(self.events) == self._stay:
            self._leave.wait(PATIENCE)

    def go_on(self) -> None:
        """Let the engine leave the event it stands at."""
        self._leave.set()

    def until(self, events: int) -> Asked:
        """Wait for so many events, or the last one."""
        with self._more:
            assert self._more.wait_for(lambda: self.over or len(self.events) >= events, PATIENCE), (
                "it is stuck"
            )
        return self

    def wait(self) -> Asked:
        """Wait for the last event."""
        with self._more:
            assert self._more.wait_for(lambda: self.over, PATIENCE), "it is stuck"
        return self

    @property
    def generation(self) -> Generation:
        """The job, which is one that writes."""
        assert isinstance(self.job, Generation)
        return self.job

    @property
    def over(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Ended | Failed)

    @property
    def error(self) -> Exception | None:
        """What made it fail."""
        last = self.events[-1]
        return last.error if isinstance(last, Failed) else None

    @property
    def said(self) -> list[Said]:
        return [said for event in self.events if isinstance(event, Wrote) for said in event.tokens]

    @property
    def tokens(self) -> list[int]:
        """The ids it wrote."""
        return [said.id for said in self.said]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Wrote))

    @property
    def heard(self) -> tuple[Said, ...]:
        (heard,) = [event for event in self.events if isinstance(event, Heard)]
        return heard.tokens

    @property
    def likelihoods(self) -> tuple[float, ...]:
        (compared,) = [event for event in self.events if isinstance(event, Compared)]
        return compared.likelihoods


def write(
    engine: Engine | Core,
    version: Version,
    ids: Sequence[int],
    tokens: int,
    *,
    row: int = 0,
    stay: int | None = None,
    **sampling: Any,
) -> Asked:
    """Ask for an answer of exactly so many tokens, the end token being one like any other."""
    how = Sampling(**{"max_new_tokens": tokens, "ignore_end": True, **sampling})
    return Asked(engine, Generation(version, tuple(ids), how, row=row), stay)


def compare(
    engine: Engine | Core,
    version: Version,
    ids: Sequence[int],
    candidates: Sequence[Sequence[int]],
    whole: bool,
) -> Asked:
    """Ask for the likelihood of candidates."""
    return Asked(engine, Comparison(version, tuple(ids), tuple(map(tuple, candidates)), whole))


def some_ids(draw: random.Random, length: int) -> tuple[int, ...]:
    """Any words of the tiny vocabulary."""
    return tuple(draw.randrange(4, tiny.VOCABULARY) for _ in range(length))


def soft(base: Base, positions: int = 4) -> Version:
    """A version with a soft prompt."""
    with torch.no_grad():
        prefix = base.prefill(samples.soft(base, 3, positions))
    return Version("soft", "00", None, prefix, None, base, 0)


def steps(core: Core, count: int) -> None:
    for _ in range(count):
        core.step()


def until_over(core: Core, *asked: Asked) -> None:
    """Step until all of these have ended."""
    for _ in range(2000):
        if all(one.over for one in asked):
            return
        core.step()
    raise AssertionError("it goes on and on")


def alone(version: Version, ids: tuple[int, ...], tokens: int, **sampling: Any) -> list[int]:
    """What an engine with nothing else to do writes."""
    own = Core(version.model)
    one = write(own, version, ids, tokens, **sampling)
    until_over(own, one)
    assert one.error is None
    return one.tokens
