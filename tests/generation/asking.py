"""Requests handed to an engine, and what came of them."""

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
from softprompt.generation.request import (
    CandidateLogprobs,
    Event,
    Finished,
    GenerateRequest,
    ModelRequest,
    PromptLogprobs,
    RequestFailed,
    TextDelta,
    TokenScore,
)
from softprompt.generation.sampler import Sampling
from softprompt.generation.scheduler import RequestHandle, Scheduler
from softprompt.generation.sharing import NOBODY, Owner
from softprompt.serving.engine import Engine
from softprompt.serving.version import Version

__all__ = ["PATIENCE", "Asked", "alone", "compare", "soft", "some_ids", "steps", "until_over", "write"]

PATIENCE = 60.0
"""Seconds after which a test takes a request for stuck."""


class Asked:
    """One request under way; its events as they come.

    With ``stay`` the engine stands still after that many of its events, until ``go_on`` is called.
    """

    def __init__(
        self,
        engine: Engine | Scheduler,
        request: ModelRequest,
        stay: int | None = None,
        owner: Owner = NOBODY,
    ) -> None:
        self.events: list[Event] = []
        self._more = Condition()
        self._stay, self._leave = stay, threading.Event()
        self.request = request
        self.handle: RequestHandle = engine.submit(request, self._tell, owner=owner)

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
    def generation(self) -> GenerateRequest:
        """The request, which is one that writes."""
        assert isinstance(self.request, GenerateRequest)
        return self.request

    @property
    def over(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finished | RequestFailed)

    @property
    def error(self) -> Exception | None:
        """What made it fail."""
        last = self.events[-1]
        return last.error if isinstance(last, RequestFailed) else None

    @property
    def said(self) -> list[TokenScore]:
        return [said for event in self.events if isinstance(event, TextDelta) for said in event.tokens]

    @property
    def tokens(self) -> list[int]:
        """The ids it wrote."""
        return [said.id for said in self.said]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def heard(self) -> tuple[TokenScore, ...]:
        (heard,) = [event for event in self.events if isinstance(event, PromptLogprobs)]
        return heard.tokens

    @property
    def likelihoods(self) -> tuple[float, ...]:
        (compared,) = [event for event in self.events if isinstance(event, CandidateLogprobs)]
        return compared.values


def write(
    engine: Engine | Scheduler,
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
    return Asked(engine, version.generate(ids, how, row=row), stay)


def compare(
    engine: Engine | Scheduler,
    version: Version,
    ids: Sequence[int],
    candidates: Sequence[Sequence[int]],
    whole: bool,
) -> Asked:
    """Ask for the likelihood of candidates."""
    return Asked(engine, version.score(ids, candidates, whole=whole))


def some_ids(draw: random.Random, length: int) -> tuple[int, ...]:
    """Any words of the tiny vocabulary."""
    return tuple(draw.randrange(4, tiny.VOCABULARY) for _ in range(length))


def soft(base: Base, positions: int = 4) -> Version:
    """A version with a soft prompt."""
    with torch.no_grad():
        prefix = base.prefill(samples.soft(base, 3, positions))
    return Version("soft", "00", None, prefix, None, base, 0)


def steps(own: Scheduler, count: int) -> None:
    for _ in range(count):
        own.step()


def until_over(own: Scheduler, *asked: Asked) -> None:
    """Step until all of these have ended."""
    for _ in range(2000):
        if all(one.over for one in asked):
            return
        own.step()
    raise AssertionError("it goes on and on")


def alone(version: Version, ids: tuple[int, ...], tokens: int, **sampling: Any) -> list[int]:
    """What an engine with nothing else to do writes."""
    own = Scheduler(version.model)
    one = write(own, version, ids, tokens, **sampling)
    until_over(own, one)
    assert one.error is None
    return one.tokens
