"""Spans of requests: their parts, their numbers, whose trace they belong to, and no word of a client's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serving.api import house
from serving.shop import until
from softprompt.serving.engine import Engine

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from softprompt.serving.api.traces import Traces, exporting

SECRET = "Zebra crossing"
PHASES = ["queue", "prefill", "decode"]


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(engine: Engine, kept: InMemorySpanExporter) -> Iterator[httpx.Client]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with house.client(engine, traces=Traces(provider)) as http:
        yield http


def spans(kept: InMemorySpanExporter) -> tuple[Any, list[Any]]:
    """The request's span and its parts, in the order in which they began; it ends after its stream does."""
    until(lambda: any(span.kind is SpanKind.SERVER for span in kept.get_finished_spans()))
    *parts, whole = kept.get_finished_spans()
    return whole, sorted(parts, key=lambda span: span.start_time)


@pytest.mark.parametrize(
    ("route", "body", "written"),
    [
        ("/v1/completions", {"prompt": SECRET, "n": 3, "max_tokens": 5}, 15),
        ("/v1/completions", {"prompt": SECRET, "max_tokens": 4, "stream": True}, 4),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 4}, 4),
        ("/v1/responses", {"input": SECRET, "max_output_tokens": 4, "stream": True}, 4),
        ("/v1/classify", {"model": "topics", "input": SECRET}, 0),
    ],
)
def test_a_request_is_a_span_with_three_parts(
    traced: httpx.Client, kept: InMemorySpanExporter, route: str, body: dict[str, Any], written: int
) -> None:
    asked = {"model": "free", "temperature": 0, **body}
    if route == "/v1/classify":
        del asked["temperature"]
    elif route == "/v1/completions":
        asked["ignore_eos"] = True
    answer = traced.post(route, json=asked, headers={"X-Request-Id": "r-1"})
    assert answer.status_code == 200, answer.text
    whole, parts = spans(kept)
    assert [whole.name, *(part.name for part in parts)] == [f"POST {route}", *PHASES]
    assert all(part.parent.span_id == whole.context.span_id for part in parts)
    assert whole.start_time <= parts[0].start_time
    for before, after in itertools.pairwise(parts):
        assert before.start_time <= before.end_time == after.start_time
    assert parts[-1].end_time <= whole.end_time
    assert whole.kind is SpanKind.SERVER
    about = whole.attributes
    assert about["http.route"] == route
    assert about["gen_ai.request.model"] == asked["model"]
    assert about["softprompt.request_id"] == "r-1"
    if written:
        assert about["gen_ai.usage.output_tokens"] <= written
        assert about["gen_ai.usage.output_tokens"] > 0
    assert about["softprompt.virtual_tokens"] == 4
    assert about["gen_ai.usage.input_tokens"] > 0


def test_no_word_of_a_client_is_in_a_span(traced: httpx.Client, kept: InMemorySpanExporter) -> None:
    said = traced.post("/v1/completions", json={"model": "free", "prompt": SECRET, "max_tokens": 60}).json()
    traced.post("/v1/completions", json={"model": SECRET, "prompt": SECRET})
    traced.post("/v1/completions", json={"model": "free", "prompt": SECRET, "guided_regex": f"({SECRET}"})
    traced.post("/v1/completions", json={"model": "free", "prompt": [[0] * 900], "user": SECRET})
    written = said["choices"][0]["text"]
    assert len(written) > 3
    told = "".join(span.to_json() for span in kept.get_finished_spans())
    assert len(kept.get_finished_spans()) == 4 + 3
    for word in (*SECRET.split(), written):
        assert word not in told


def test_a_fault_is_told_by_its_code(traced: httpx.Client, kept: InMemorySpanExporter) -> None:
    assert traced.post("/v1/completions", json={"model": "nobody", "prompt": "x"}).status_code == 404
    (whole,) = kept.get_finished_spans()
    assert whole.status.status_code is StatusCode.ERROR
    assert (whole.attributes or {})["error.type"] == "model_not_found"


def test_a_clients_own_trace_goes_on(traced: httpx.Client, kept: InMemorySpanExporter) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01", "tracestate": f"a={SECRET}"}
    traced.post("/v1/completions", json={"model": "free", "prompt": "x", "max_tokens": 2}, headers=headers)
    whole, parts = spans(kept)
    assert f"{whole.parent.span_id:016x}" == parent
    assert {f"{span.context.trace_id:032x}" for span in (whole, *parts)} == {trace}
    assert not whole.context.trace_state


def test_a_collector_that_is_not_there_holds_nobody_up() -> None:
    import time

    traces = exporting("http://127.0.0.1:9/v1/traces")
    traces.request("/v1/completions", {}).close(None)
    begun = time.monotonic()
    traces.close()
    assert time.monotonic() - begun < 10
