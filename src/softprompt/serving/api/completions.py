"""POST /v1/completions: texts or token ids in, what follows them out, in OpenAI's older form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from softprompt.data.rows import InputTokens
from softprompt.generation.request import Finished, GenerateRequest, PromptLogprobs, TextDelta, TokenScore
from softprompt.serving.api.answers import (
    Finish,
    Gathered,
    Heading,
    alike,
    cut_notes,
    finish,
    gather,
    generations,
    of_prompt,
    piece,
    reported,
    streamed,
    words,
)
from softprompt.serving.api.errors import ERRORS, bad_request
from softprompt.serving.api.replies import TextCompletion
from softprompt.serving.api.schemas import CompletionRequest
from softprompt.serving.api.stream import EventStream, attended
from softprompt.serving.api.strict import StrictRoute
from softprompt.serving.api.structured import form_of, grammar_of
from softprompt.serving.api.visit import Visit, visiting
from softprompt.serving.version import Version

__all__ = ["router", "text_tokens"]

USUAL = 16
"""New tokens where the client gives no number, as at OpenAI."""

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/completions", response_model=TextCompletion, responses=ERRORS, tags=["answers"])
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Go on from texts or token ids, behind a prompt or the bare base."""
    return await attended(request, _answered(request, body))


async def _answered(request: Request, body: CompletionRequest) -> Response:
    _refuse(body)
    form = form_of(body)
    async with visiting(request, body.model) as visit:
        texts = await visit.tokenised(_letters(body.prompt), "prompt", _texts, visit, body.prompt)
        logprobs = reported(body, body.logprobs)
        echo = (bool(body.echo) and body.logprobs is not None) or body.prompt_logprobs is not None
        grammar = await grammar_of(visit, form)
        jobs = generations(
            visit,
            body,
            texts,
            usual=USUAL,
            logprobs=logprobs,
            echo=echo,
            grammar=grammar,
            param="prompt",
        )
        writer = _TextWriter(visit.version, body, texts, jobs)
        notes = cut_notes([text.cut for text in texts])
        heading = Heading.new("cmpl", "text_completion", visit.version, notes)
        if body.stream:
            crowd = await visit.crowd(jobs)
            chunks = streamed(visit, crowd, heading, body, writer.first, writer.delta, writer.last)
            return EventStream(chunks, visit.stack.pop_all())
        found = await gather(visit, jobs, body.n or 1)
        choices = [writer.whole(i, one) for i, one in enumerate(found)]
        return JSONResponse(heading.body(choices, usage=visit.tally.usage))


def _refuse(body: CompletionRequest) -> None:
    if body.suffix:
        raise bad_request("A suffix is not served: this model reads only what comes before.", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad_request("best_of must equal n: all answers come back, none is chosen among.", "best_of")


def _letters(prompts: Sequence[str] | Sequence[list[int]]) -> int:
    return sum(len(prompt) for prompt in prompts if isinstance(prompt, str))


def _texts(visit: Visit, prompts: Sequence[str] | Sequence[list[int]]) -> list[InputTokens]:
    return [text_tokens(visit, prompt) for prompt in prompts]


def text_tokens(visit: Visit, prompt: str | list[int]) -> InputTokens:
    """What is read of a text, through the template of the prompt that answers; or of tokens, as they are."""
    version, guard = visit.version, visit.serving.guard
    if not isinstance(prompt, str):
        beyond = max(prompt)
        if beyond >= words(version):
            raise bad_request(
                f"prompt holds token {beyond}, but the model has {words(version):,}, counted from 0.",
                "prompt",
            )
        return InputTokens(tuple(prompt))
    if version.prompt is None:
        return InputTokens(tuple(guard.plain(prompt)))
    return guard.tokens(version.prompt, version.prefix, prompt)


class _TextWriter:
    """Puts answers into the choices of a reply, whole or piece by piece."""

    def __init__(
        self,
        version: Version,
        body: CompletionRequest,
        texts: Sequence[InputTokens],
        jobs: Sequence[GenerateRequest],
    ) -> None:
        self._version, self._body, self._texts, self._jobs = version, body, texts, jobs
        self._offsets = [0] * len(jobs)

    def opening(self, number: int) -> str:
        """What an answer's text begins with: the prompt, where it is to come back."""
        return self._version.model.decode(self._jobs[number].ids) if self._body.echo else ""

    def first(self, number: int) -> dict[str, Any] | None:
        opening = self.opening(number)
        return self.choice(number, opening, (), None) if opening else None

    def delta(self, number: int, event: PromptLogprobs | TextDelta) -> dict[str, Any] | None:
        text = event.text if isinstance(event, TextDelta) else ""
        if not text and not (event.tokens and self._body.logprobs is not None):
            return None
        return self.choice(number, text, event.tokens, None)

    def last(self, number: int, event: Finished) -> dict[str, Any]:
        return self.choice(number, "", (), event.reason)

    def whole(self, number: int, one: Gathered) -> dict[str, Any]:
        heard = one.heard if self._body.echo else ()
        text = self.opening(number) + one.text
        choice = self.choice(number, text, (*heard, *one.tokens), one.reason)
        if self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = of_prompt(self._version, one.heard)
        return choice

    def choice(
        self, number: int, text: str, tokens: Sequence[TokenScore], reason: Finish | None
    ) -> dict[str, Any]:
        job, body = self._jobs[number], self._body
        source = self._texts[number // (body.n or 1)]
        return {
            "index": number,
            "text": text,
            "logprobs": None if body.logprobs is None else self._logprobs(number, tokens, body.logprobs),
            "finish_reason": reason and finish(job, source, body.asked_tokens, reason),
        }

    def _logprobs(self, number: int, tokens: Sequence[TokenScore], count: int) -> dict[str, Any]:
        offsets = []
        for said in tokens:
            offsets.append(self._offsets[number])
            self._offsets[number] += len(said.text)
        return {
            "tokens": [said.text for said in tokens],
            "token_logprobs": [None if said.logprob is None else alike(said.logprob) for said in tokens],
            "top_logprobs": [self._top(said) for said in tokens] if count else None,
            "text_offset": offsets,
        }

    def _top(self, said: TokenScore) -> dict[str, float] | None:
        """The likeliest tokens by text, and the token itself; of several with one text the likeliest."""
        if said.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in said.top:
            found.setdefault(piece(self._version, token), alike(logprob))
        found.setdefault(said.text, alike(said.logprob))
        return found
