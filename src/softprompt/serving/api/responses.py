"""POST /v1/responses: OpenAI's newer form of a chat, for text; nothing of it is kept on the server."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from softprompt.generation.request import Finished, TextDelta
from softprompt.serving.api.answers import Gathered, cut_notes, finish, gather, generations, with_notes
from softprompt.serving.api.chat import chat_tokens, plain_messages
from softprompt.serving.api.errors import ERRORS, bad_request
from softprompt.serving.api.replies import ResponseBody
from softprompt.serving.api.schemas import Message, ResponsesRequest, SamplingRequest
from softprompt.serving.api.stream import Crowd, EventStream, attended
from softprompt.serving.api.strict import StrictRoute
from softprompt.serving.api.structured import form_of, grammar_of
from softprompt.serving.api.visit import Visit, visiting

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/responses", response_model=ResponseBody, responses=ERRORS, tags=["answers"])
async def responses(request: Request, body: ResponsesRequest) -> Response:
    """Answer a text or a chat, as /v1/chat/completions does, in OpenAI's newer form."""
    return await attended(request, _answered(request, body))


async def _answered(request: Request, body: ResponsesRequest) -> Response:
    _refuse(body)
    asked = _asked(body)
    messages, form = plain_messages(_messages(body)), form_of(asked)
    async with visiting(request, body.model) as visit:
        letters = sum(len(message["content"]) for message in messages)
        text = await visit.tokenised(letters, "input", chat_tokens, visit, messages, {})
        grammar = await grammar_of(visit, form)
        jobs = generations(visit, asked, [text], usual=None, logprobs=None, grammar=grammar, param="input")
        reply = _Reply(body, visit, cut_notes([text.cut]))
        if body.stream:
            return EventStream(_streamed(visit, await visit.crowd(jobs), reply), visit.stack.pop_all())
        (one,) = await gather(visit, jobs, 1)
        one.reason = finish(jobs[0], text, asked.asked_tokens, one.reason)
        return JSONResponse(reply.whole(one))


def _refuse(body: ResponsesRequest) -> None:
    for name in ("tools", "previous_response_id", "conversation", "prompt", "background"):
        if getattr(body, name) not in (None, [], {}, False, ""):
            raise bad_request(f"{name} is not served here; use /v1/chat/completions.", name)


def _asked(body: ResponsesRequest) -> SamplingRequest:
    """The same wishes in the words of chats."""
    form = (body.text or {}).get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": {key: form[key] for key in form if key != "type"}}
    return SamplingRequest(
        model=body.model,
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        response_format=form,
    )


def _messages(body: ResponsesRequest) -> list[Message]:
    said = body.input
    messages = [Message(role="user", content=said)] if isinstance(said, str) else list(said)
    first = [] if not body.instructions else [Message(role="system", content=body.instructions)]
    return [*first, *messages]


class _Reply:
    """Builds the response, and the events by which it comes."""

    def __init__(self, body: ResponsesRequest, visit: Visit, notes: Sequence[str]) -> None:
        self._body, self._visit, self._notes = body, visit, notes
        self._id, self._item = f"resp_{secrets.token_hex(16)}", f"msg_{secrets.token_hex(16)}"
        self._created, self._number = int(time.time()), 0

    def whole(self, one: Gathered) -> dict[str, Any]:
        """An answer that is over."""
        status = "incomplete" if one.reason == "length" else "completed"
        tally = self._visit.tally
        usage = {
            "input_tokens": tally.prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tally.completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tally.prompt + tally.completion,
        }
        return with_notes(self._body_of(status, [self.item(one.text, status)], usage), self._notes)

    def under_way(self) -> dict[str, Any]:
        """An answer of which nothing is there."""
        return self._body_of("in_progress", [], None)

    def item(self, text: str | None, status: str) -> dict[str, Any]:
        """The message of an answer; None where it has no content yet."""
        content = [] if text is None else [self.part(text)]
        about = {"type": "message", "id": self._item, "status": status, "role": "assistant"}
        return {**about, "content": content}

    def part(self, text: str) -> dict[str, Any]:
        """The text of an answer."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def event(self, kind: str, **facts: Any) -> bytes:
        """One server-sent event."""
        said = {"type": kind, "sequence_number": self._number, **facts}
        self._number += 1
        data = json.dumps(said, allow_nan=False, separators=(",", ":"))
        return f"event: {kind}\ndata: {data}\n\n".encode()

    def of_text(self, kind: str, **facts: Any) -> bytes:
        """One about the text."""
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        return self.event(kind, **place, **facts)

    def _body_of(self, status: str, output: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
        body = self._body
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": cut,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._visit.version.name,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "usage": usage,
        }


async def _streamed(visit: Visit, crowd: Crowd, reply: _Reply) -> AsyncGenerator[bytes, None]:
    yield reply.event("response.created", response=reply.under_way())
    yield reply.event("response.in_progress", response=reply.under_way())
    yield reply.event("response.output_item.added", output_index=0, item=reply.item(None, "in_progress"))
    yield reply.of_text("response.content_part.added", part=reply.part(""))
    one = Gathered()
    async for _, event in visit.events(crowd):
        if isinstance(event, TextDelta) and event.text:
            one.text += event.text
            yield reply.of_text("response.output_text.delta", delta=event.text, logprobs=[])
        elif isinstance(event, Finished):
            one.reason = event.reason
    whole = reply.whole(one)
    yield reply.of_text("response.output_text.done", text=one.text, logprobs=[])
    yield reply.of_text("response.content_part.done", part=reply.part(one.text))
    yield reply.event("response.output_item.done", output_index=0, item=whole["output"][0])
    yield reply.event(f"response.{whole['status']}", response=whole)
