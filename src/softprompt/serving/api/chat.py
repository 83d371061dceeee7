"""POST /v1/chat/completions: a chat in, the assistant's next turn out, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from softprompt.data.chat import chat_opening
from softprompt.data.rows import InputTokens
from softprompt.generation.request import Finished, GenerateRequest, PromptLogprobs, TextDelta, TokenScore
from softprompt.serving.api.answers import (
    Finish,
    Heading,
    alike,
    cut_notes,
    finish,
    gather,
    generations,
    piece,
    streamed,
)
from softprompt.serving.api.errors import ERRORS, bad_request
from softprompt.serving.api.replies import ChatCompletion
from softprompt.serving.api.schemas import ChatRequest, Message
from softprompt.serving.api.stream import EventStream, attended
from softprompt.serving.api.strict import StrictRoute
from softprompt.serving.api.visit import Visit, visiting
from softprompt.serving.version import Version

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=ERRORS, tags=["answers"])
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a chat, behind a prompt or the bare base, in the base's own chat template; one user's message to
    a prompt that was learnt on single texts is put into that prompt's template.
    """
    return await attended(request, _answered(request, body))


async def _answered(request: Request, body: ChatRequest) -> Response:
    _refuse(body)
    messages = [_plain(number, message) for number, message in enumerate(body.messages)]
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    async with visiting(request, body.model) as visit:
        letters = sum(len(message["content"]) for message in messages)
        text = await visit.tokenised(letters, "messages", _text, visit, messages)
        jobs = generations(visit, body, [text], usual=None, logprobs=logprobs, param="messages")
        writer = _ChatWriter(visit.version, body, text, jobs)
        if body.stream:
            crowd = await visit.crowd(jobs)
            heading = Heading.new("chatcmpl", "chat.completion.chunk", visit.version, cut_notes([text.cut]))
            chunks = streamed(visit, crowd, heading, body, writer.first, writer.delta, writer.last)
            return EventStream(chunks, visit.stack.pop_all())
        found = await gather(visit, jobs, len(jobs))
        heading = Heading.new("chatcmpl", "chat.completion", visit.version, cut_notes([text.cut]))
        choices = [writer.whole(i, one.text, one.tokens, one.reason) for i, one in enumerate(found)]
        return JSONResponse(heading.body(choices, usage=visit.tally.usage))


_UNSERVED = {
    "tools": "Tools are not served: this server only writes text.",
    "functions": "Functions are not served: this server only writes text.",
    "audio": "Audio is not served: this server only writes text.",
}


def _refuse(body: ChatRequest) -> None:
    """Say so where a client asks for more than text, rather than answer something else."""
    for name, sentence in _UNSERVED.items():
        if getattr(body, name) not in (None, [], {}, False):
            raise bad_request(sentence, name)
    for name in ("tool_choice", "function_call"):
        if getattr(body, name) not in (None, "none", "auto"):
            raise bad_request("Tools are not served: this server only writes text.", name)
    form = body.response_format
    if form is not None and form != {} and not (isinstance(form, dict) and form.get("type") == "text"):
        raise bad_request("Only the response_format of type text is served.", "response_format")
    if body.modalities not in (None, [], ["text"]):
        raise bad_request("Only the modality text is served.", "modalities")
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")


def _plain(number: int, message: Message) -> dict[str, str]:
    """A message as chat templates take it."""
    content = message.content
    if isinstance(content, list):
        for place, part in enumerate(content):
            if part.type != "text" or part.text is None:
                raise bad_request(
                    f"messages.{number}.content.{place} is no text, which is all that is served.",
                    "messages",
                )
        content = "".join(part.text or "" for part in content)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": content or ""}


def _text(visit: Visit, messages: Sequence[dict[str, str]]) -> InputTokens:
    version, guard = visit.version, visit.serving.guard
    one = messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "user" else None
    opening = own = ""
    if version.prompt is not None:
        in_chat = _learnt_in_chat(version)
        # Of what was brought in without its rows nobody knows how it was learnt; a chat is as good as a text.
        if version.card is not None and version.card.data and not in_chat:
            return guard.tokens(version.prompt, version.prefix, _only_text(version, one))
        if one is not None and in_chat:
            return guard.tokens(version.prompt, version.prefix, one)
        if in_chat and messages[0]["role"] != "system":  # what opens a chat stands in the prompt already
            template, opening = version.prompt.template, chat_opening(version.model.render_chat)
            own = template.render_input({template.input_fields[0]: _HERE}).partition(_HERE)[0]
    if not version.model.tokenizer.chat_template:
        raise bad_request("This base has no chat template; use /v1/completions.", "messages")
    try:
        return InputTokens(tuple(guard.chat(messages, opening, own)))
    except Exception as error:
        if type(error).__module__.split(".")[0] != "jinja2":
            raise
        said = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no reason given"
        raise bad_request(f"The base's chat template refuses these messages: {said}.", "messages") from None


def _only_text(version: Version, one: str | None) -> str:
    """The text of a chat to a prompt that was learnt on single texts.

    Raises:
        ApiError: the chat is more than one text, or the prompt reads more than one.
    """
    assert version.prompt is not None
    fields = version.prompt.template.input_fields
    if len(fields) > 1:
        raise bad_request(
            f"{version.name} was learnt on rows of {len(fields)} columns ({', '.join(fields)}), not on "
            "chats; send rows to /v1/classify.",
            "messages",
        )
    if one is None:
        raise bad_request(
            f"{version.name} was learnt on single texts, not on chats: send one message of the user alone, "
            "or the text to /v1/completions.",
            "messages",
        )
    return one


_HERE = "input-goes-here-9e27"


def _learnt_in_chat(version: Version) -> bool:
    """Whether one user's message is what the prompt's own template takes: it ends as a chat does."""
    assert version.prompt is not None
    template = version.prompt.template
    if len(template.input_fields) != 1 or not version.model.tokenizer.chat_template:
        return False
    rendered = version.model.render_chat([{"role": "user", "content": _HERE}])
    tail = rendered.rpartition(_HERE)[2].replace("{", "{{").replace("}", "}}")
    return bool(tail) and template.input.endswith(tail)


class _ChatWriter:
    """Puts answers into the choices of a reply, whole or piece by piece."""

    def __init__(
        self, version: Version, body: ChatRequest, text: InputTokens, jobs: Sequence[GenerateRequest]
    ) -> None:
        self._version, self._body, self._text, self._jobs = version, body, text, jobs

    def whole(self, number: int, text: str, tokens: Sequence[TokenScore], reason: Finish) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return self._choice(number, "message", message, tokens, reason)

    def first(self, number: int) -> dict[str, Any]:
        return self._choice(number, "delta", {"role": "assistant", "content": "", "refusal": None}, (), None)

    def delta(self, number: int, event: PromptLogprobs | TextDelta) -> dict[str, Any] | None:
        if isinstance(event, PromptLogprobs) or not (event.text or (event.tokens and self._body.logprobs)):
            return None
        return self._choice(number, "delta", {"content": event.text}, event.tokens, None)

    def last(self, number: int, event: Finished) -> dict[str, Any]:
        return self._choice(number, "delta", {}, (), event.reason)

    def _choice(
        self,
        number: int,
        part: str,
        said: dict[str, Any],
        tokens: Sequence[TokenScore],
        reason: Finish | None,
    ) -> dict[str, Any]:
        body = self._body
        return {
            "index": number,
            part: said,
            "logprobs": self._logprobs(tokens) if body.logprobs and (tokens or part == "message") else None,
            "finish_reason": reason and finish(self._jobs[number], self._text, body.asked_tokens, reason),
        }

    def _logprobs(self, tokens: Sequence[TokenScore]) -> dict[str, Any]:
        content = [
            {
                **_token(said.text, said.logprob or 0.0),
                "top_logprobs": [_token(piece(self._version, i), logprob) for i, logprob in said.top],
            }
            for said in tokens
        ]
        return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": alike(logprob), "bytes": list(text.encode())}
