"""POST /tokenize and /detokenize, GET /version: texts as tokens and back, in vLLM's form."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

import softprompt
from softprompt.serving.api.answers import words
from softprompt.serving.api.chat import chat_tokens, plain_messages
from softprompt.serving.api.completions import text_tokens
from softprompt.serving.api.errors import ERRORS, bad_request
from softprompt.serving.api.replies import Detokenized, ServerVersion, Tokenized
from softprompt.serving.api.schemas import DetokenizeRequest, TokenizeRequest
from softprompt.serving.api.strict import StrictRoute
from softprompt.serving.api.visit import serving_of, visiting

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)


@router.post("/tokenize", response_model=Tokenized, responses=ERRORS, tags=["tokens"])
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    """Tell the tokens that a completion or a chat would read of a text, without those of what is in front."""
    name = body.model or serving_of(request).service.engine.base.name
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("Send either a prompt or messages.", "prompt")
    async with visiting(request, name) as visit:
        if body.prompt is not None:
            text = await visit.tokenised(len(body.prompt), "prompt", text_tokens, visit, body.prompt)
        else:
            messages = plain_messages(body.messages or ())
            letters = sum(len(message["content"]) for message in messages)
            how = {} if body.add_generation_prompt is not False else {"add_generation_prompt": False}
            text = await visit.tokenised(letters, "messages", chat_tokens, visit, messages, how)
        model = visit.version.model
        said: dict[str, Any] = {
            "count": len(text.ids),
            "max_model_len": model.max_positions,
            "tokens": list(text.ids),
        }
        if body.return_token_strs:
            said["token_strs"] = model.tokenizer.convert_ids_to_tokens(list(text.ids))
        visit.timing.ended("stop", len(text.ids))
        return JSONResponse(said)


@router.post("/detokenize", response_model=Detokenized, responses=ERRORS, tags=["tokens"])
async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
    """Tell the text of tokens, control tokens included."""
    name = body.model or serving_of(request).service.engine.base.name
    async with visiting(request, name) as visit:
        version = visit.version
        if body.tokens and max(body.tokens) >= words(version):
            raise bad_request(
                f"tokens holds {max(body.tokens)}, but the model has {words(version):,}, counted from 0.",
                "tokens",
            )
        text = await asyncio.to_thread(version.model.tokenizer.decode, list(body.tokens))
        visit.timing.ended("stop")
        return JSONResponse({"prompt": str(text)})


@router.get("/version", response_model=ServerVersion, tags=["server"])
async def version(request: Request) -> Any:
    """Tell the version of softprompt."""
    return {"version": softprompt.__version__}
