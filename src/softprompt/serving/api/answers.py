"""From a client's wishes to generations, and from events to answers; what completions and chats share."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from softprompt.data.rows import InputTokens
from softprompt.errors import ConfigError
from softprompt.generation.detokenizer import Detokenizer
from softprompt.generation.grammar import Grammar
from softprompt.generation.request import Finished, GenerateRequest, PromptLogprobs, TextDelta, TokenScore
from softprompt.generation.sampler import Sampling
from softprompt.serving.api.errors import bad_request
from softprompt.serving.api.schemas import SamplingRequest
from softprompt.serving.api.stream import DONE, Crowd, sse
from softprompt.serving.api.visit import Visit
from softprompt.serving.version import Version

__all__ = [
    "Gathered",
    "Heading",
    "alike",
    "cut_notes",
    "finish",
    "gather",
    "generations",
    "of_prompt",
    "piece",
    "reported",
    "streamed",
    "with_notes",
]

LEAST = -9999.0
"""What OpenAI sends for a token that cannot be; JSON has no infinity."""

Finish = Literal["stop", "length"]


@dataclass
class Gathered:
    """One whole answer."""

    heard: tuple[TokenScore, ...] = ()
    text: str = ""
    tokens: list[TokenScore] = field(default_factory=list)
    reason: Finish = "stop"


@dataclass(frozen=True)
class Heading:
    """What all parts of one reply begin with."""

    id: str
    kind: str
    model: str
    fingerprint: str
    created: int
    notes: tuple[str, ...] = ()

    @classmethod
    def new(cls, prefix: str, kind: str, version: Version, notes: Sequence[str] = ()) -> Heading:
        digest = version.digest.removeprefix("sha256:")[:12]
        name = f"{prefix}-{secrets.token_hex(12)}"
        return cls(name, kind, version.name, f"fp_{digest}", int(time.time()), tuple(notes))

    def body(self, choices: Sequence[Any], **more: Any) -> dict[str, Any]:
        """The reply, or a chunk of it."""
        about = {"id": self.id, "object": self.kind, "created": self.created, "model": self.model}
        body = {**about, "system_fingerprint": self.fingerprint, "choices": list(choices), **more}
        return with_notes(body, self.notes)


def with_notes(body: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """A reply with what its client should know of it, where there is anything."""
    return {**body, "softprompt": {"notes": list(notes)}} if notes else body


def cut_notes(were_cut: Sequence[bool]) -> list[str]:
    """Says which of a request's texts lost their beginning; such an answer may be to another question."""
    cut = [number for number, was_cut in enumerate(were_cut) if was_cut]
    if not cut:
        return []
    which = "The text" if len(were_cut) == 1 else f"{len(cut)} of {len(were_cut)} texts ({_places(cut)})"
    was = "was" if len(cut) == 1 else "were"
    return [f"{which} {was} longer than this prompt was learnt to read, and {was} cut at the beginning."]


def _places(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return f"{shown}, ..." if len(numbers) > 10 else shown


def generations(
    visit: Visit,
    body: SamplingRequest,
    texts: Sequence[InputTokens],
    *,
    usual: int | None,
    logprobs: int | None,
    echo: bool = False,
    grammar: Grammar | None = None,
    param: str,
) -> list[GenerateRequest]:
    """The jobs of a request: n for each text, those of one text in a row.

    Args:
        visit: the request.
        body: what it asks for.
        texts: what to answer.
        usual: most new tokens where the client gives no number; None for all there is room for.
        logprobs: how many likeliest tokens to report.
        echo: whether likelihoods of the texts' own tokens are wanted.
        grammar: what every answer is held to.
        param: the field that holds the texts, for messages.

    Raises:
        ApiError: too many answers or tokens, or a value out of its range.
    """
    answers, most = body.n or 1, visit.serving.bounds.answers
    if len(texts) * answers > most:
        raise bad_request(
            f"The request asks for {len(texts) * answers:,} answers, but one may ask for {most:,} at most.",
            "n" if answers > 1 else param,
        )
    jobs = []
    for text in texts:
        asked = visit.room(len(text.ids), body.asked_tokens, usual)
        visit.check_room(len(text.ids), 0 if asked == 0 else 1, param)
        # What is held to a grammar is no label.
        room = asked if text.limit is None or grammar is not None else min(asked, text.limit)
        visit.check_room(len(text.ids), room, "max_tokens")
        # One token behind an echo is there to be measured, as evaluation harnesses do, also if it is the end.
        measured = echo and room == 1
        sampling = _sampling(visit, body, max(1, room), logprobs, measured)
        jobs += [
            visit.version.generate(text.ids, sampling, echo=echo, row=row, room=room, grammar=grammar)
            for row in range(answers)
        ]
    return jobs


def _sampling(
    visit: Visit, body: SamplingRequest, longest: int, logprobs: int | None, ignore_end: bool
) -> Sampling:
    cold = body.top_p == 0  # OpenAI takes it; it can only mean the likeliest token
    seed = body.seed if body.seed is not None else secrets.randbits(48)
    try:
        sampling = Sampling(
            max_new_tokens=longest,
            temperature=0.0 if cold else (1.0 if body.temperature is None else body.temperature),
            top_k=max(0, body.top_k or 0),
            top_p=1.0 if cold or body.top_p is None else body.top_p,
            min_p=body.min_p or 0.0,
            repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logit_bias=body.logit_bias,
            seed=seed,
            stop=body.stop,
            stop_tokens=tuple(body.stop_token_ids or ()),
            min_new_tokens=body.min_tokens or 0,
            ignore_end=ignore_end or bool(body.ignore_eos),
            logprobs=logprobs,
        )
        sampling.check_tokens(words(visit.version))
    except ConfigError as error:
        said = str(error)
        raise bad_request(said, said.split(" ", 1)[0]) from None
    return sampling


def words(version: Version) -> int:
    """V, how many tokens there are."""
    return int(version.model.embedding.weight.shape[0])


def reported(body: SamplingRequest, logprobs: int | None) -> int | None:
    """How many likeliest tokens the engine reports, for the answer and for the text that was read.

    Raises:
        ApiError: the two are not the same, or the text's are to be streamed.
    """
    asked = body.prompt_logprobs
    if asked is None:
        return logprobs
    if body.stream:
        raise bad_request("prompt_logprobs cannot be streamed.", "prompt_logprobs")
    if logprobs is not None and logprobs != asked:
        raise bad_request(
            f"prompt_logprobs must be {logprobs}, as many as are asked for in the answer.", "prompt_logprobs"
        )
    return asked


def of_prompt(version: Version, heard: Sequence[TokenScore]) -> list[dict[str, Any] | None]:
    """How likely a text's own tokens were, by id at every place, as vLLM tells it; None: nothing is known."""
    found: list[dict[str, Any] | None] = []
    for said in heard:
        if said.logprob is None:
            found.append(None)
            continue
        ranks = {token: (rank, logprob) for rank, (token, logprob) in enumerate(said.top, 1)}
        ranks.setdefault(said.id, (None, said.logprob))  # type: ignore[arg-type]
        found.append(
            {
                str(token): {
                    "logprob": alike(logprob),
                    "rank": rank,
                    "decoded_token": piece(version, token),
                }
                for token, (rank, logprob) in ranks.items()
            }
        )
    return found


async def gather(visit: Visit, jobs: Sequence[GenerateRequest], answers: int) -> list[Gathered]:
    """Do the jobs and wait for all; ``answers`` in a row share one text."""
    crowd = await visit.crowd(jobs)
    found = [Gathered() for _ in jobs]
    async for number, event in visit.events(crowd, answers):
        one = found[number]
        if isinstance(event, PromptLogprobs):
            one.heard = event.tokens
        elif isinstance(event, TextDelta):
            one.text += event.text
            one.tokens += event.tokens
        elif isinstance(event, Finished):
            one.reason = event.reason
    return found


async def streamed(
    visit: Visit,
    crowd: Crowd,
    heading: Heading,
    body: SamplingRequest,
    first: Callable[[int], dict[str, Any] | None],
    delta: Callable[[int, PromptLogprobs | TextDelta], dict[str, Any] | None],
    last: Callable[[int, Finished], dict[str, Any]],
) -> AsyncGenerator[bytes, None]:
    """Server-sent events of a reply.

    Args:
        visit: the request.
        crowd: its jobs, begun.
        heading: what every chunk begins with.
        body: what was asked for.
        first: number of an answer -> the choice that opens it, or None.
        delta: one piece of an answer -> a choice, or None where there is nothing to show.
        last: the end of an answer -> the choice that closes it.
    """
    none = {"usage": None} if body.wants_usage else {}
    opened: set[int] = set()
    async for number, event in visit.events(crowd, body.n or 1):
        if number not in opened:
            opened.add(number)
            if (opening := first(number)) is not None:
                yield sse(heading.body([opening], **none))
        if isinstance(event, PromptLogprobs | TextDelta):
            if (choice := delta(number, event)) is not None:
                yield sse(heading.body([choice], **none))
        elif isinstance(event, Finished):
            yield sse(heading.body([last(number, event)], **none))
    if body.wants_usage:
        yield sse(heading.body([], usage=visit.tally.usage))
    yield DONE


def finish(job: GenerateRequest, text: InputTokens, asked: int | None, reason: Finish) -> Finish:
    """Why an answer ended; one as long as its job's longest label is complete, not cut."""
    label = text.limit is not None and job.grammar is None and job.room == text.limit
    complete = label and (asked is None or asked > (text.limit or 0))
    return "stop" if complete else reason


def alike(value: float) -> float:
    """A log-probability as JSON can say it."""
    return value if math.isfinite(value) else LEAST


def piece(version: Version, token: int) -> str:
    """The text of one token by itself, control tokens included, as the engine writes it."""
    return Detokenizer(version.model).piece(token)
