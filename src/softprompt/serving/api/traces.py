"""OpenTelemetry spans of requests: how long each waited, was read and was written.

It knows times, numbers and names.

A request to a model is a span, with ``queue``, ``prefill`` and ``decode`` in it; of several answers the first
that begins ends the queue, and the last that ends ends the decoding. Nothing a client wrote is in a span: the
model is called by the name of the version that answered, a fault by its code. A ``traceparent`` header makes
it part of the client's own trace. It needs the packages of the extra ``otel``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import softprompt

__all__ = ["RequestTrace", "Traces", "exporting"]

_PATIENCE = 3.0
"""Seconds to wait for who collects spans, so that one that does not answer holds no server up that stops."""


class Traces:
    """What makes a span of every request."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("softprompt", softprompt.__version__)

    def request(self, route: str, headers: Mapping[str, str], **about: str) -> RequestTrace:
        """A request begins; ``about`` are attributes that are known from the beginning."""
        carried = {name: headers[name] for name in ("traceparent",) if name in headers}
        span = self._tracer.start_span(
            f"POST {route}",
            TraceContextTextMapPropagator().extract(carried),
            SpanKind.SERVER,
            {"http.request.method": "POST", "http.route": route, **about},
        )
        return RequestTrace(self, span)

    def phase(self, name: str, inside: Context, start: int, end: int) -> None:
        """A part of a request; times in nanoseconds since 1970."""
        self._tracer.start_span(name, inside, start_time=start).end(max(start, end))

    def close(self) -> None:
        """Send what is left."""
        self._provider.force_flush(int(1000 * _PATIENCE))
        self._provider.shutdown()


class RequestTrace:
    """One request on its way; of its moments, in ``time.monotonic`` seconds, each counts once."""

    def __init__(self, traces: Traces, span: Span) -> None:
        self._traces, self._span = traces, span
        self._handed_in: float | None = None
        self._first: float | None = None

    def found(self, model: str) -> None:
        """The version that answers, by its own name."""
        self._span.set_attribute("gen_ai.request.model", model)

    def handed_in(self) -> None:
        """Its jobs are the engine's from now on."""
        self._handed_in = time.monotonic()

    def first(self) -> None:
        """The first token, or the first likelihood, is there."""
        self._first = self._first or time.monotonic()

    def ended(self, reason: str, joined: Sequence[float], tokens: Mapping[str, int]) -> None:
        """How it ended, when its jobs got their places, and how many tokens of which kind there were."""
        now, shift = time.monotonic(), time.time_ns() - time.monotonic_ns()
        inside = set_span_in_context(self._span)

        def phase(name: str, start: float, end: float) -> None:
            self._traces.phase(name, inside, int(start * 1e9) + shift, int(end * 1e9) + shift)

        if self._handed_in is not None:
            begun = min(joined, default=None if self._first is None else self._handed_in)
            phase("queue", self._handed_in, now if begun is None else begun)
            if begun is not None:
                phase("prefill", begun, self._first or now)
            if self._first is not None:
                phase("decode", self._first, now)
        self._span.set_attributes({**tokens, "gen_ai.response.finish_reasons": [reason]})

    def close(self, error: BaseException | None) -> None:
        """It is over; a fault is told by its code or its kind, never by its words."""
        if isinstance(error, Exception):
            self._span.set_attribute("error.type", str(getattr(error, "code", None) or type(error).__name__))
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def exporting(endpoint: str) -> Traces:
    """Spans sent to a collector, by OTLP over HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    about: dict[str, Any] = {"service.name": "softprompt", "service.version": softprompt.__version__}
    provider = TracerProvider(resource=Resource.create(about))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_PATIENCE)))
    return Traces(provider)
