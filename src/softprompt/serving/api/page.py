"""The page at ``/``: its files, their policy, and the cards it shows. Knows nothing of how prompts answer.

The files lie in ``web/`` and are plain HTML, CSS and JavaScript. They ask only this server, and the policy
sent with them lets a browser do nothing else: no foreign address, no script or style inside the markup, no
text that becomes markup.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response

from softprompt.serving.api.errors import no_such_model
from softprompt.serving.api.visit import serving_of
from softprompt.serving.service import Model

__all__ = ["POLICY", "page_routes"]

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""What the page may do: ask its own server, and nothing else."""

_HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_FILES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "asking.js": "text/javascript",
    "card.js": "text/javascript",
    "column.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_READ = ["GET", "HEAD"]


def page_routes(app: FastAPI) -> None:
    """Put the page at ``/`` of an app that ``create_app`` made, and what it reads beside the API.

    The files are open to everybody, as they hold nothing; ``/v1/cards`` asks for a key where the API does.
    """
    folder = files(__package__) / "web"
    for name, kind in _FILES.items():
        path = "/" if name == "index.html" else f"/page/{name}"
        reading = _reader((folder / name).read_bytes(), kind)
        app.add_api_route(path, reading, methods=_READ, include_in_schema=False)
    cards = APIRouter()
    cards.add_api_route("/v1/cards/{name:path}", card, methods=["GET"], include_in_schema=False)
    app.include_router(cards)


def _reader(content: bytes, kind: str) -> Callable[[], Any]:
    async def read() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return read


async def card(request: Request, name: str) -> dict[str, Any]:
    """Tell what a card says beyond ``/v1/models``: the base and the template.

    Where its data lay stays untold: paths of the server are nothing to a client.

    Raises:
        ApiError: there is no such model for this client.
    """
    serving = serving_of(request)
    if serving.may(request.state.key, name):
        for model in await asyncio.to_thread(serving.service.models):
            if model.id == name:
                return {"id": name, "base": _base(serving.service.engine.base), "template": _template(model)}
    raise no_such_model(name)


def _base(base: Any) -> dict[str, Any]:
    """The served base, which is every card's: others are refused when they are loaded."""
    return {
        "name": base.name,
        "fingerprint": base.fingerprint,
        "model_type": base.config.model_type,
        "dtype": str(base.dtype).removeprefix("torch."),
        "positions": base.max_positions,
    }


def _template(model: Model) -> dict[str, Any] | None:
    """How a row becomes text for a prompt, and the columns that its choices come from."""
    if model.card is None:
        return None
    about = model.card.template
    template = about.template
    return {
        "front": about.front,
        "input": about.input,
        "target": about.target,
        "labels": about.labels,
        "choice_columns": list(template.choice_columns),
        "choice_list": isinstance(template.choices, str),
        "end_of_text": about.end_of_text,
        "max_tokens": about.max_tokens,
    }
