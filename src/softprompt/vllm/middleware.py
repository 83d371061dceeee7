"""For those who start vLLM themselves: requests to vLLM's own server name a prompt by ``model``.

An ASGI middleware between vLLM's server and its clients. A completion for a prompt of the library is given
its token ids, its prompt and its ``cache_salt``, and goes on to vLLM as one for the base; everything else
passes as it came. Prompts are looked up at every request, so they come, change and go while vLLM serves. It
knows vLLM's request fields, and imports nothing of vLLM's.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from softprompt.base.lowrank import ridden
from softprompt.base.model import Base
from softprompt.base.process import let_workers_go
from softprompt.checkpoints.freeze import load_base
from softprompt.errors import ArtifactError, DataError, SoftpromptError, WrongBaseError
from softprompt.library.folder import Library
from softprompt.serving.api.guard import Guard
from softprompt.serving.builder import Builder
from softprompt.serving.registry import Lease, Registry
from softprompt.serving.version import Version, bare
from softprompt.vllm.slots import placeholders
from softprompt.vllm.store import PARAMETER, Store

__all__ = ["NamedPrompts", "Prompts", "Refused"]

MOST_BYTES = 16 * 2**20
"""The longest body that is read."""

_ASKING = {
    "echo": "echo would show placeholders instead of the prompt",
    "prompt_logprobs": "likelihoods of the prompt are not those of any text",
    "prompt_embeds": "embeddings cannot stand behind a prompt",
    "use_beam_search": "beams are not kept behind a prompt",
    "suffix": "a suffix is not read",
}
"""Fields of a completion that vLLM would answer wrongly behind a prompt."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

_log = logging.getLogger("vllm.softprompt")


class Refused(Exception):  # noqa: N818 (an answer, not a fault)
    """A request that is answered here: its status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Prompts:
    """The prompts of a library, as bodies of requests for vLLM.

    Args:
        base: the base that vLLM serves.
        library: the folder of prompts.
        store: the folder that vLLM's processes read them from.
        names: what vLLM calls the base.
    """

    def __init__(self, base: Base, library: str, store: str, names: tuple[str, ...]) -> None:
        self._library, self._names = Library(library), names
        self._fingerprint = base.fingerprint
        served = ridden(base)
        build = Builder(self._library, base, served)
        self._store = Store(Path(store))
        self._registry = Registry(
            lambda name: self._admit(build(name)), self._library.stamp, self._library.names, base=bare(served)
        )
        self._guard = Guard(base)

    def name(self, body: dict[str, Any]) -> str | None:
        """The prompt a request names, by ``model`` or in ``kv_transfer_params``; None for the base."""
        named = (body.get("kv_transfer_params") or {}).get(PARAMETER)
        if named is not None:
            return str(named)
        model = body.get("model")
        if not isinstance(model, str) or model in self._names or self._library.stamp(model) is None:
            return None
        return model

    def lease(self, name: str) -> Lease:
        """The right to use a prompt.

        Raises:
            Refused: there is none of that name, or it is broken.
        """
        try:
            return self._registry.lease(name)
        except (ArtifactError, WrongBaseError) as error:
            if self._library.stamp(name) is None:
                raise Refused(404, f"There is no prompt {name!r}.") from None
            _log.error("%s cannot be loaded: %s", ascii(name), error)
            raise Refused(503, f"The prompt {name!r} cannot be loaded; the server's log says why.") from None
        except SoftpromptError as error:
            raise Refused(503, str(error)) from None

    def rewritten(self, body: dict[str, Any], version: Version) -> dict[str, Any]:
        """A completion behind a prompt as vLLM is to be asked for it.

        Raises:
            Refused: it asks for what would be answered wrongly, or its text does not fit the prompt.
        """
        for field, why in _ASKING.items():
            if body.get(field) not in (None, False, ""):
                raise Refused(400, f"{field} is not served behind the prompt {version.name!r}: {why}.")
        stored = self._store.put(version.prefix, version.adapter)
        rows = [self._ids(version, text) for text in _texts(body.get("prompt"))]
        if not all(rows):
            raise Refused(400, "There is no text to go on from; send at least one token.")
        transfer = {"kv_transfer_params": {PARAMETER: stored.key}} if stored.key is not None else {}
        return {
            **body,
            "model": self._names[0],
            "prompt": [placeholders(stored.positions, ids) for ids in rows],
            "cache_salt": stored.salt,
            **transfer,
        }

    def _ids(self, version: Version, text: str | list[int]) -> list[int]:
        if not isinstance(text, str):
            return text
        assert version.prompt is not None
        try:
            return list(self._guard.tokens(version.prompt, version.prefix, text).ids)
        except DataError as error:
            raise Refused(400, str(error)) from None

    def _admit(self, version: Version) -> Version:
        if version.adapter is not None or version.model.fingerprint != self._fingerprint:
            raise ArtifactError(
                f"{version.name} changes the model's layers; give it to vLLM by --lora-modules, or serve "
                "the library with `softprompt serve --engine vllm`."
            )
        self._store.put(version.prefix)
        return version


class NamedPrompts:
    """The middleware; vLLM makes it from its name (``--middleware``), and its own arguments say the rest."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app
        self._prompts: Prompts | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] == "lifespan" and self._prompts is None:
            self._prompts = _opened(scope["app"].state.args)
        chat = scope["type"] == "http" and scope["path"] == "/v1/chat/completions"
        asks = scope["type"] == "http" and scope["method"] == "POST"
        if not asks or not (chat or scope["path"] == "/v1/completions"):
            await self._app(scope, receive, send)
            return
        assert self._prompts is not None
        lease: Lease | None = None
        try:
            raw = await _body(receive)
            body, name = _named(self._prompts, raw)
            if name is not None:
                if chat:
                    raise Refused(
                        400,
                        "Behind vLLM's own server a prompt answers /v1/completions only; for chats use "
                        "`softprompt serve --engine vllm`.",
                    )
                lease = await asyncio.to_thread(self._prompts.lease, name)
                raw = json.dumps(self._prompts.rewritten(body, lease.version)).encode()
                scope = {**scope, "headers": _sized(scope["headers"], len(raw))}
            await self._app(scope, _again(raw, receive), send)
        except Refused as refused:
            await _answer(send, refused)
        finally:
            if lease is not None:
                lease.close()


def _opened(arguments: Any) -> Prompts:
    """What vLLM's arguments say: the same base, checked, and the library."""
    told = arguments.kv_transfer_config.kv_connector_extra_config
    base = load_base(arguments.model, dtype=str(arguments.dtype), device="cpu")
    let_workers_go()
    if base.fingerprint != told["fingerprint"]:
        raise WrongBaseError(
            f"{arguments.model} is not the base that the prompts of {told['library']} were prepared for; run "
            "`softprompt vllm-args` again."
        )
    names = tuple(arguments.served_model_name or [arguments.model])
    return Prompts(base, told["library"], told["store"], names)


def _named(prompts: Prompts, raw: bytes) -> tuple[dict[str, Any], str | None]:
    """A body and the prompt it names; what is no JSON object is vLLM's to refuse."""
    try:
        body = json.loads(raw)
        return (body, prompts.name(body)) if isinstance(body, dict) else ({}, None)
    except (ValueError, AttributeError, RecursionError):
        return {}, None


def _texts(prompt: Any) -> list[str | list[int]]:
    """A completion's ``prompt``: a text, token ids, or a list of either."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and _is_ids(prompt)):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(p, str) or _is_ids(p) for p in prompt):
        return prompt
    raise Refused(400, "prompt must be a text, a list of token ids, or a list of either.")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":  # the client left
            break
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
        if sum(map(len, parts)) > MOST_BYTES:
            raise Refused(413, f"The request is longer than {MOST_BYTES:,} bytes.")
    return b"".join(parts)


def _again(raw: bytes, receive: Receive) -> Receive:
    """What hands a body that was read to the next reader, and then whatever comes."""
    given = False

    async def once() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": raw, "more_body": False}

    return once


def _sized(headers: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*kept, (b"content-length", str(length).encode())]


async def _answer(send: Send, refused: Refused) -> None:
    """In OpenAI's form."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    error = {"message": str(refused), "type": kind, "param": None, "code": refused.status}
    raw = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})
