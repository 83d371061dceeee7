"""A job as the engine carries it out: what to read next, and what to make of what the model then expects.

It knows tokens, logits and events; it does not know other rows, strips or the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from softprompt.base.model import Base
from softprompt.base.sampling import Chooser
from softprompt.base.writer import Writer
from softprompt.errors import BaseModelError
from softprompt.serving.job import (
    Compared,
    Comparison,
    Ended,
    Event,
    Generation,
    Heard,
    Job,
    Said,
    Wrote,
)

__all__ = ["Reading", "Task", "task_for"]

BEFORE = -1
"""The place before a row's first token: what its prefix alone expects."""


class Reading(NamedTuple):
    """Tokens to read next.

    Attributes:
        ids: may be none.
        wanted: after which of them, in order, the logits are wanted; ``BEFORE`` stands for none of them.
        behind: how many of the row's tokens to keep; None for all.
    """

    ids: Sequence[int]
    wanted: Sequence[int]
    behind: int | None = None


class Task(Protocol):
    """A job under way."""

    @property
    def unread(self) -> int:
        """How many tokens wait to be read."""
        ...

    @property
    def over(self) -> bool:
        """Whether its last event was given."""
        ...

    def next(self, most: int) -> Reading:
        """The next tokens to read, about ``most`` of them."""
        ...

    def take(self, logits: Tensor) -> list[Event]:
        """What follows from the logits ``[len(wanted), V]`` of the last reading.

        Raises:
            BaseModelError: they are no numbers one could choose by.
        """
        ...


def task_for(job: Job) -> Task:
    """The job as a task, nothing of it done yet."""
    return Writing(job) if isinstance(job, Generation) else Comparing(job)


class Writing:
    """Read a text, then choose a token, read it, and so on."""

    def __init__(self, job: Generation) -> None:
        self._job = job
        self._base: Base = job.version.model
        self._ids = job.ids
        self._read = 0
        self._chooser = Chooser(job.sampling, job.ids, job.row)
        self._writer = Writer(self._base, job.sampling.stop)
        self._said = 0
        self._heard: list[Said] = []
        self.over = False

    @property
    def unread(self) -> int:
        return len(self._ids) - self._read

    def next(self, most: int) -> Reading:
        ids = self._ids[self._read : self._read + most]
        self._read += len(ids)
        opening = [BEFORE] if self._opens(len(ids)) else []
        if self._job.echo and not self._said:
            return Reading(ids, [*opening, *range(len(ids))])
        return Reading(ids, opening if not ids else [] if self.unread else [len(ids) - 1])

    def _opens(self, reading: int) -> bool:
        """Whether what the prefix alone expects matters: to an empty text, or to an echo."""
        at_start = self._read == reading and not self._said
        expects = self._job.version.prefix.hidden is not None
        return at_start and expects and (self._job.echo or not self._ids)

    def take(self, logits: Tensor) -> list[Event]:
        if self._job.echo and not self._said:
            self._hear(logits)
        if self.unread or not len(logits):
            return []
        events: list[Event] = []
        if self._job.echo and not self._said:
            events.append(Heard(tuple(self._heard)))
        if self._job.longest == 0:
            return [*events, self._end("length")]
        return [*events, *self._say(logits[-1])]

    def _hear(self, logits: Tensor) -> None:
        """Note how likely the text's own tokens were; logits[i] expects the i-th token not yet heard."""
        if not self._heard and self._ids and self._job.version.prefix.hidden is None:
            self._heard.append(Said(self._ids[0], self._writer.piece(self._ids[0]), None, ()))
        coming = self._ids[len(self._heard) : len(self._heard) + len(logits)]
        if not coming:
            return
        count = self._job.sampling.logprobs or 0
        shares = logits[: len(coming)].log_softmax(-1)  # [T, V]
        own = shares.gather(1, torch.tensor(coming, device=shares.device)[:, None])[:, 0].tolist()
        values, likeliest = (t.tolist() for t in shares.topk(min(count, shares.shape[1]), dim=1))
        for token, logprob, tops, scores in zip(coming, own, likeliest, values, strict=True):
            top = tuple(zip(tops, scores, strict=True))
            self._heard.append(Said(token, self._writer.piece(token), logprob, top))

    def _say(self, logits: Tensor) -> list[Event]:
        choice = self._chooser.choose(logits)
        sampling = self._job.sampling
        ends = choice.id == self._base.end_id and not sampling.ignore_end
        if ends or choice.id in sampling.stop_tokens:
            return [Wrote(self._writer.finish(), ()), self._end("stop")]
        self._said += 1
        self._ids, self._read = (choice.id,), 0
        text = self._writer.push(choice.id)
        said = (Said(choice.id, self._writer.piece(choice.id), choice.logprob, choice.top),)
        if self._writer.stopped:
            return [Wrote(text, said), self._end("stop")]
        if self._said == self._job.longest:
            return [Wrote(text + self._writer.finish(), said), self._end("length")]
        return [Wrote(text, said)]

    def _end(self, reason: str) -> Ended:
        self.over = True
        virtual = self._job.version.prefix.length
        return Ended("stop" if reason == "stop" else "length", len(self._job.ids), virtual, self._said)


class Comparing:
    """Read a text, then every candidate behind it, one after another in its place."""

    def __init__(self, job: Comparison) -> None:
        self._job = job
        self._read = 0
        self._found: list[float] = []
        self._rest = [n for n, ids in enumerate(job.candidates) if job.whole and len(ids) > 1]
        self.over = False

    @property
    def unread(self) -> int:
        if self._read < len(self._job.ids):
            return len(self._job.ids) - self._read
        return len(self._job.candidates[self._rest[0]]) - 1 if self._found else 0

    def next(self, most: int) -> Reading:
        ids = self._job.ids
        if self._found:
            candidate = self._job.candidates[self._rest[0]][:-1]
            return Reading(candidate, range(len(candidate)), behind=len(ids))
        part = ids[self._read : self._read + most]
        self._read += len(part)
        done = self._read == len(ids)
        return Reading(part, [len(part) - 1 if part else BEFORE] if done else [])

    def take(self, logits: Tensor) -> list[Event]:
        if not len(logits):
            return []
        shares = logits.log_softmax(-1)  # [T, V]
        if bool(shares.isnan().any()):
            raise BaseModelError(
                "The model gave no finite numbers for this text; its weights or the prompt in front are "
                "damaged, or too large for its number type."
            )
        if not self._found:
            self._found = [float(shares[0, ids[0]]) for ids in self._job.candidates]
        else:
            number = self._rest.pop(0)
            coming = torch.tensor(self._job.candidates[number][1:], device=shares.device)
            self._found[number] += float(shares.gather(1, coming[:, None]).sum())
        if self._rest:
            return []
        self.over = True
        likelihoods = Compared(tuple(self._found))
        return [likelihoods, Ended("stop", len(self._job.ids), self._job.version.prefix.length, 0)]
