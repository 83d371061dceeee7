"""POST /v1/chat/completions: a chat in, the assistant's next turn out, in OpenAI's form."""

from __future__ import annotations

import json
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
    of_prompt,
    piece,
    reported,
    streamed,
)
from softprompt.serving.api.errors import ERRORS, bad_request
from softprompt.serving.api.replies import ChatCompletion
from softprompt.serving.api.schemas import ChatRequest, Message, SaidToolCall
from softprompt.serving.api.stream import EventStream, attended
from softprompt.serving.api.strict import StrictRoute
from softprompt.serving.api.structured import form_of, grammar_of
from softprompt.serving.api.tools import ToolUse, flattened, message_of, told, tool_use
from softprompt.serving.api.visit import Visit, serving_of, visiting
from softprompt.serving.version import Version

__all__ = ["chat_tokens", "plain_messages", "router"]

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=ERRORS, tags=["answers"])
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a chat, behind a prompt or the bare base, in the base's own chat template; one user's message to
    a prompt that was learnt on single texts is put into that prompt's template.
    """
    return await attended(request, _answered(request, body))


async def _answered(request: Request, body: ChatRequest) -> Response:
    _refuse(body)
    uses = tool_use(body, serving_of(request).service.engine.base.chat_template(bool(body.tools)))
    messages = plain_messages(body.messages)
    logprobs, form = (body.top_logprobs or 0) if body.logprobs else None, form_of(body)
    if uses is not None and form is not None:
        raise bad_request(f"Tools and {form.param} both say what form to answer in; send one.", form.param)
    form = uses.form if uses is not None else form
    async with visiting(request, body.model) as visit:
        beside = [uses.described] if uses is not None else []
        beside += [message["tool_calls"] for message in messages if "tool_calls" in message]
        letters = sum(len(message["content"]) for message in messages) + sum(
            len(json.dumps(b)) for b in beside
        )
        text = await visit.tokenised(letters, "messages", chat_tokens, visit, messages, _how(body), uses)
        grammar = await grammar_of(visit, form)
        jobs = generations(
            visit,
            body,
            [text],
            usual=None,
            logprobs=reported(body, logprobs),
            echo=body.prompt_logprobs is not None,
            grammar=grammar,
            param="messages",
        )
        writer = _ChatWriter(visit.version, body, text, jobs, uses)
        if body.stream:
            crowd = await visit.crowd(jobs)
            heading = Heading.new("chatcmpl", "chat.completion.chunk", visit.version, cut_notes([text.cut]))
            chunks = streamed(visit, crowd, heading, body, writer.first, writer.delta, writer.last)
            return EventStream(chunks, visit.stack.pop_all())
        found = await gather(visit, jobs, len(jobs))
        heading = Heading.new("chatcmpl", "chat.completion", visit.version, cut_notes([text.cut]))
        choices = [writer.whole(i, one.text, one.tokens, one.reason) for i, one in enumerate(found)]
        more = {}
        if body.prompt_logprobs is not None:
            more["prompt_logprobs"] = of_prompt(visit.version, found[0].heard)
        return JSONResponse(heading.body(choices, usage=visit.tally.usage, **more))


_TEXTS = ("text", "input_text", "output_text")
_UNSERVED = {
    "functions": "Functions are served as tools; send tools.",
    "audio": "Audio is not served: this server only writes text.",
}


def _refuse(body: ChatRequest) -> None:
    """Say so where a client asks for more than text, rather than answer something else."""
    for name, sentence in _UNSERVED.items():
        if getattr(body, name) not in (None, [], {}, False):
            raise bad_request(sentence, name)
    if body.function_call not in (None, "none", "auto"):
        raise bad_request("Functions are served as tools; send tool_choice.", "function_call")
    if body.continue_final_message:
        if body.messages[-1].role != "assistant":
            raise bad_request("Only an assistant's message can be gone on with.", "continue_final_message")
        if body.add_generation_prompt:
            raise bad_request(
                "A turn cannot be begun and the last one gone on with; send one of both.",
                "add_generation_prompt",
            )
    if body.modalities not in (None, [], ["text"]):
        raise bad_request("Only the modality text is served.", "modalities")
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them."""
    return [_plain(number, message) for number, message in enumerate(messages)]


def _plain(number: int, message: Message) -> dict[str, Any]:
    """A message as chat templates take it."""
    content = message.content
    if isinstance(content, list):
        for place, part in enumerate(content):
            if part.type not in _TEXTS or part.text is None:
                raise bad_request(
                    f"messages.{number}.content.{place} is no text, which is all that is served.",
                    "messages",
                )
        content = "".join(part.text or "" for part in content)
    role = "system" if message.role == "developer" else message.role
    found: dict[str, Any] = {"role": role, "content": content or ""}
    if message.tool_calls and role == "assistant":
        found["tool_calls"] = [_called(number, call) for call in message.tool_calls]
    if message.tool_call_id is not None and role == "tool":
        found["tool_call_id"] = message.tool_call_id
    return found


def _called(number: int, call: SaidToolCall) -> dict[str, Any]:
    """A call as chat templates take it: its arguments are an object."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise bad_request(f"messages.{number} has a call whose arguments are no JSON object.", "messages")
    return {
        "id": call.id or "",
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def chat_tokens(
    visit: Visit, messages: Sequence[dict[str, Any]], how: dict[str, Any], uses: ToolUse | None = None
) -> InputTokens:
    """What is read of a chat: in the base's chat template, or in that of a prompt learnt on single texts."""
    version, guard = visit.version, visit.serving.guard
    opening = own = ""
    one = None
    if len(messages) == 1 and messages[0]["role"] == "user" and not how and uses is None:
        one = messages[0]["content"]
    if version.prompt is not None:
        in_chat = _learnt_in_chat(version)
        # Of what was brought in without its rows nobody knows how it was learnt; a chat is as good as a text.
        if version.card is not None and version.card.data and not in_chat:
            return guard.tokens(version.prompt, version.prefix, _only_text(version, one))
        if one is not None and in_chat:
            return guard.tokens(version.prompt, version.prefix, one)
        if in_chat and uses is None and messages[0]["role"] != "system":
            # What opens a chat stands in the prompt already.
            taught, opening = version.prompt.template, chat_opening(version.model.render_chat)
            own = taught.render_input({taught.input_fields[0]: _HERE}).partition(_HERE)[0]
    template = version.model.chat_template(uses is not None)
    if not template:
        raise bad_request("This base has no chat template; use /v1/completions.", "messages")
    if uses is not None and "tools" in template:
        how = {**how, "tools": uses.described}
    elif uses is not None:
        messages = [told(uses.described), *messages]
    try:
        ids = guard.chat(_readable(version, messages, how), opening, own, **how)
        return InputTokens(tuple(ids))
    except Exception as error:
        if type(error).__module__.split(".")[0] != "jinja2":
            raise
        said = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no reason given"
        raise bad_request(f"The base's chat template refuses these messages: {said}.", "messages") from None


def _how(body: ChatRequest) -> dict[str, Any]:
    """How the end of a chat is set, where a client says so."""
    if body.continue_final_message:
        return {"add_generation_prompt": False, "continue_final_message": True}
    return {"add_generation_prompt": False} if body.add_generation_prompt is False else {}


def _readable(
    version: Version, messages: Sequence[dict[str, Any]], how: dict[str, Any]
) -> Sequence[dict[str, Any]]:
    """The messages, with calls and their answers as text where the template leaves them out or minds them."""
    answers = [message["content"].strip() for message in messages if message["role"] == "tool"]
    calls = [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]
    if not answers and not calls:
        return messages
    try:
        text = version.model.render_chat(messages, **how)
    except Exception:  # a template is a program of its own
        return flattened(messages)
    return messages if all(said in text for said in (*answers, *calls)) else flattened(messages)


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
        self,
        version: Version,
        body: ChatRequest,
        text: InputTokens,
        jobs: Sequence[GenerateRequest],
        uses: ToolUse | None,
    ) -> None:
        self._version, self._body, self._text, self._jobs, self._uses = version, body, text, jobs, uses
        self._written, self._shown = [""] * len(jobs), [0] * len(jobs)
        """Of every answer: its text where it may hold calls, and how many letters of it were sent."""

    def whole(self, number: int, text: str, tokens: Sequence[TokenScore], reason: Finish) -> dict[str, Any]:
        content, calls = (text, []) if self._uses is None else self._uses.read(text)
        message = {"role": "assistant", "refusal": None, **message_of(content, calls)}
        for call in message.get("tool_calls", ()):
            del call["index"]  # which only streams have
        return self._choice(number, "message", message, tokens, reason, called=bool(calls))

    def first(self, number: int) -> dict[str, Any]:
        return self._choice(number, "delta", {"role": "assistant", "content": "", "refusal": None}, (), None)

    def delta(self, number: int, event: PromptLogprobs | TextDelta) -> dict[str, Any] | None:
        if isinstance(event, PromptLogprobs) or not (event.text or (event.tokens and self._body.logprobs)):
            return None
        text = event.text if self._uses is None else self._settled(number, event.text)
        if not text and not self._body.logprobs:
            return None
        return self._choice(number, "delta", {"content": text}, event.tokens, None)

    def last(self, number: int, event: Finished) -> dict[str, Any]:
        if self._uses is None:
            return self._choice(number, "delta", {}, (), event.reason)
        content, calls = self._uses.read(self._written[number])
        rest = "" if calls else content[self._shown[number] :]
        delta = message_of(rest, calls) if calls or rest else {}
        return self._choice(number, "delta", delta, (), event.reason, called=bool(calls))

    def _settled(self, number: int, more: str) -> str:
        """What of an answer that may hold calls can be shown now."""
        assert self._uses is not None
        self._written[number] += more
        shown, settled = self._shown[number], self._uses.settled(self._written[number])
        self._shown[number] = max(shown, settled)
        return self._written[number][shown:settled]

    def _choice(
        self,
        number: int,
        part: str,
        said: dict[str, Any],
        tokens: Sequence[TokenScore],
        reason: Finish | None,
        called: bool = False,
    ) -> dict[str, Any]:
        body = self._body
        ended = reason and finish(self._jobs[number], self._text, body.asked_tokens, reason)
        return {
            "index": number,
            part: said,
            "logprobs": self._logprobs(tokens) if body.logprobs and (tokens or part == "message") else None,
            "finish_reason": "tool_calls" if called and ended == "stop" else ended,
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
