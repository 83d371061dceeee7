"""GET /v1/models: what may be asked for, with what its card says. Knows cards, not how they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from softprompt.serving.api.errors import ERRORS, no_such_model
from softprompt.serving.api.replies import ModelInfo, ModelList
from softprompt.serving.api.strict import StrictRoute
from softprompt.serving.api.visit import Serving, serving_of
from softprompt.serving.service import Model

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)

_REFUSALS: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 404, 503)}


@router.get("/v1/models", response_model=ModelList, responses=_REFUSALS, tags=["models"])
async def models(request: Request) -> Any:
    """List the base and the prompts, those this key may use."""
    serving = serving_of(request)
    return {"object": "list", "data": list((await _known(serving, request)).values())}


@router.get("/v1/models/{model:path}", response_model=ModelInfo, responses=_REFUSALS, tags=["models"])
async def model(request: Request, model: Annotated[str, Path(max_length=200)]) -> Any:
    """Tell what is known about one."""
    found = (await _known(serving_of(request), request)).get(model)
    if found is None:
        raise no_such_model(model)
    return found


async def _known(serving: Serving, request: Request) -> dict[str, dict[str, Any]]:
    """By name, what there is to tell of every model this client may use."""
    service = serving.service
    every = await asyncio.to_thread(service.models)
    digests = {held.name: held.digest for held in service.engine.registry.loaded() if held.current}
    return {one.id: _facts(one, digests, serving) for one in every if serving.may(request.state.key, one.id)}


def _facts(one: Model, digests: Mapping[str, str], serving: Serving) -> dict[str, Any]:
    about = {"id": one.id, "object": "model", "created": one.created, "owned_by": "softprompt"}
    digest = digests.get(one.id)
    if one.card is None:
        return {**about, "softprompt": {"kind": "base", "positions": 0, "digest": digest}}
    card, template = one.card, one.card.template.template
    facts = {
        "kind": card.kind,
        "positions": card.positions,
        "labels": list(template.labels) if template.labels is not None else None,
        "choices": template.choices is not None,
        "fields": list(template.input_fields),
        "scores": card.scores,
        "digest": digest,
    }
    return {**about, "softprompt": facts}
