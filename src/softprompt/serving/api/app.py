"""The HTTP API as one application: puts gate, endpoints and errors together; knows no endpoint's work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

import softprompt
from softprompt.serving.api import admin, chat, classify, completions, docs, errors, models, responses, tokens
from softprompt.serving.api.gate import SERVED, Bounds, Drain, Gate, Keys
from softprompt.serving.api.guard import Guard
from softprompt.serving.api.metrics import Metrics
from softprompt.serving.api.visit import Serving, serving_of
from softprompt.serving.limits import Limiter
from softprompt.serving.service import Service

if TYPE_CHECKING:
    from softprompt.serving.api.traces import Traces

__all__ = ["create_app", "metrics_of"]

_ABOUT = "Many prompts on one frozen base, in OpenAI's form. `model` is the name of a prompt, or of the base."


def create_app(
    service: Service,
    *,
    keys: Keys | None = None,
    limits: Limiter | None = None,
    metrics: Metrics | None = None,
    bounds: Bounds | None = None,
    drain: Drain | None = None,
    admin_open: bool = False,
    page: Callable[[FastAPI], None] | None = None,
    origins: Sequence[str] = (),
    traces: Traces | None = None,
) -> FastAPI:
    """Build the application that serves an engine.

    Args:
        service: the engine, started.
        keys: who may ask; None for everybody on this machine.
        limits: counts what every key uses.
        metrics: where requests are counted.
        bounds: what one request may ask for.
        drain: tells that the server is about to stop.
        admin_open: open the admin paths where there are no keys.
        page: mounts the page at ``/``.
        origins: sites whose pages may ask from a browser, such as ``https://example.org``.
        traces: makes spans of requests.
    """
    bounds, drain, metrics = bounds or Bounds(), drain or Drain(), metrics or metrics_of(service)
    app = FastAPI(
        title="softprompt",
        version=softprompt.__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.serving = Serving(
        service, Guard(service.engine.base), limits or Limiter(), metrics, bounds, drain, keys, traces=traces
    )
    for part in (completions, chat, responses, classify, tokens, models, admin, docs):
        app.include_router(part.router)
    app.add_api_route("/health", health, methods=["GET"], response_model=Health, tags=["server"])
    app.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/metrics", told, methods=["GET"], response_class=Response, tags=["server"])
    if page is not None:
        page(app)
    errors.install(app, metrics.refused)
    app.openapi = lambda: _schema(app, keyed=keys is not None)  # type: ignore[method-assign]
    app.add_middleware(
        Gate,
        keys=keys,
        bounds=bounds,
        drain=drain,
        admin=admin_open,
        refused=metrics.refused,
        origins=origins,
    )
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


@dataclass(frozen=True)
class Health:
    """Whether the server can answer."""

    status: str
    running: int
    waiting: int


async def health(request: Request) -> Response:
    """Tell whether the server can answer: 503 while it stops, or when the engine stands still."""
    serving = serving_of(request)
    state, status = serving.service.engine.state(), "ok"
    began = state.step_began
    if began is not None and time.monotonic() - began > serving.bounds.stalled_seconds:
        status = "stalled"
    if not serving.service.engine.alive:
        status = "stopped"
    if serving.drain.draining:
        status = "draining"
    said = {"status": status, "running": state.running, "waiting": state.waiting}
    return JSONResponse(said, 200 if status == "ok" else 503)


async def told(request: Request) -> Response:
    """Counts and times, in Prometheus' text format."""
    content, kind = serving_of(request).metrics.render()
    return Response(content, media_type=kind)


@dataclass(frozen=True)
class _Counts:
    """The registry's counts as metrics read them."""

    hits: int
    misses: int
    evictions: int
    failures: int
    bytes: int
    budget: int | None
    loaded: int
    in_use: Sequence[str]


def metrics_of(service: Service) -> Metrics:
    """Metrics that read an engine's own counts."""
    engine = service.engine

    def counts() -> _Counts:
        found = engine.registry.counts
        _, *loaded = engine.registry.loaded()  # the base is no prompt
        return _Counts(
            hits=found.hits,
            misses=found.misses,
            evictions=found.evictions,
            failures=found.failures,
            bytes=found.bytes,
            budget=found.budget,
            loaded=len(loaded),
            in_use=sorted({held.name for held in loaded if held.users}),
        )

    return Metrics(engine.state, counts, base=engine.base.name)


def _schema(app: FastAPI, *, keyed: bool) -> dict[str, Any]:
    """OpenAPI's document, made once: with streams and keys, without the 422 that is never sent."""
    if app.openapi_schema:
        return app.openapi_schema
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    parts = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        parts.pop(name, None)
    for path, verbs in schema["paths"].items():
        for about in verbs.values():
            about["responses"].pop("422", None)
            if path in ("/v1/completions", "/v1/chat/completions", "/v1/responses"):
                about["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
            if keyed and path.startswith(SERVED):
                about["security"] = [{"key": []}]
    if keyed:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    app.openapi_schema = schema
    return schema
