"""What a server tells Prometheus about itself: knows counts, seconds and names, nothing of HTTP or tensors.

The ``vllm:`` names are those that dashboards made for vLLM already chart; what only this server has is called
``softprompt:``. A label's values are bounded, whatever clients send and however many prompts a library holds:

``model_name``
    A prompt that answered, by its own name, never by a name a client made up: callers give the name of what a
    request was resolved to. The first 100 names get a label each until the server ends, further ones share
    ``(other)``. The engine's own gauges bear the base's name, for its rows and positions serve every prompt.
``finished_reason``
    One of ``FINISHES``.
``reason``
    A word of the API's own, such as an error's code. The first 50 get a label each, further ones share one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Literal, Protocol, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric

__all__ = ["FINISHES", "OTHER", "EngineCounts", "Finish", "Metrics", "RegistryCounts", "RequestTimer"]

Finish = Literal["stop", "length", "abort", "error"]
"""How a request ended: by itself or a stop string, at its limit, left by its client, with a fault of ours."""
FINISHES: tuple[Finish, ...] = get_args(Finish)

OTHER = "(other)"
"""Label shared by what came after the first; no prompt can have this name."""

_REASONS = 50
_NAMED = 100

_FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_WHOLE_ANSWER = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the histograms' buckets, in seconds."""


class EngineCounts(Protocol):
    """What is read of the engine: rows under way, jobs waiting, positions in use and in all, steps taken."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def positions_used(self) -> int: ...
    @property
    def positions_room(self) -> int: ...
    @property
    def steps(self) -> int: ...


class RegistryCounts(Protocol):
    """What is read of the registry: lookups since it began, bytes held now and at most (None: no limit), and
    the names that are being answered for.
    """

    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def evictions(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def budget(self) -> int | None: ...
    @property
    def loaded(self) -> int: ...
    @property
    def in_use(self) -> Sequence[str]: ...


class _ModelCounts:
    """The series of one value of ``model_name``; all are there, at zero, from its first request on."""

    def __init__(self, families: _Families, model: str) -> None:
        self.prompt_tokens = families.prompt_tokens.labels(model)
        self.virtual_tokens = families.virtual_tokens.labels(model)
        self.generation_tokens = families.generation_tokens.labels(model)
        self.finished = {reason: families.finished.labels(model, reason) for reason in FINISHES}
        self.first_token = families.first_token.labels(model)
        self.between_tokens = families.between_tokens.labels(model)
        self.whole_answer = families.whole_answer.labels(model)


class _Families:
    """What is counted of requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        def seconds(name: str, about: str, bounds: tuple[float, ...]) -> Histogram:
            return Histogram(name, about, ["model_name"], registry=registry, buckets=bounds)

        self.finished = counter(
            "vllm:request_success", "Requests that ended, by how.", "model_name", "finished_reason"
        )
        self.prompt_tokens = counter("vllm:prompt_tokens", "Text tokens read.", "model_name")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens written.", "model_name")
        self.virtual_tokens = counter(
            "softprompt:virtual_tokens", "Positions of prompts that stood in front of texts.", "model_name"
        )
        self.first_token = seconds(
            "vllm:time_to_first_token_seconds", "From a request's start to its first token.", _FIRST_TOKEN
        )
        self.between_tokens = seconds(
            "vllm:inter_token_latency_seconds", "From one token to the next.", _BETWEEN_TOKENS
        )
        self.whole_answer = seconds(
            "vllm:e2e_request_latency_seconds",
            "From a request's start to the end of its whole answer.",
            _WHOLE_ANSWER,
        )
        self.refused = counter(
            "softprompt:requests_refused", "Requests turned away before the engine worked on them.", "reason"
        )


class RequestTimer:
    """One request on its way, from ``Metrics.started`` to ``ended``; any thread may call."""

    def __init__(self, counts: _ModelCounts, lock: Lock, clock: Callable[[], float]) -> None:
        self._counts, self._lock, self._clock = counts, lock, clock
        self._began = clock()
        self._last: float | None = None  # when the latest tokens came
        self._written = 0
        self._over = False

    def first_token(self) -> None:
        """The first token is there; further calls change nothing."""
        with self._lock:
            if self._last is None and not self._over:
                self._mark_first(self._clock())

    def token(self, n: int = 1) -> None:
        """Another ``n`` tokens came together; the first of a request may come without ``first_token``.

        The time since the tokens before is shared out evenly among them, so that text held back for a moment
        does not make its tokens look slow. The first ones have nothing before them.
        """
        with self._lock:
            if n < 1 or self._over:
                return
            now = self._clock()
            if self._last is None:
                self._mark_first(now)
            elif self._written:
                for _ in range(n):
                    self._counts.between_tokens.observe((now - self._last) / n)
            self._last = now
            self._written += n
            self._counts.generation_tokens.inc(n)

    def ended(
        self, reason: Finish, prompt_tokens: int = 0, virtual_tokens: int = 0, completion_tokens: int = 0
    ) -> None:
        """The request is over; only the first call counts, so an "abort" may follow in a ``finally``.

        How long whole answers take is told of whole answers only: not of "abort" and "error".

        Args:
            reason: how it ended.
            prompt_tokens: text tokens that were read.
            virtual_tokens: positions of the prompt in front of them.
            completion_tokens: tokens that were written; those told to ``token`` are not counted again.
        """
        with self._lock:
            if self._over:
                return
            self._over = True
            self._counts.finished[reason].inc()
            self._counts.prompt_tokens.inc(prompt_tokens)
            self._counts.virtual_tokens.inc(virtual_tokens)
            self._counts.generation_tokens.inc(max(0, completion_tokens - self._written))
            if reason in ("stop", "length"):
                self._counts.whole_answer.observe(self._clock() - self._began)

    def _mark_first(self, now: float) -> None:
        self._last = now
        self._counts.first_token.observe(now - self._began)


class Metrics:
    """Counts what passes through a server and writes it down for Prometheus; any thread may call."""

    def __init__(
        self,
        state: Callable[[], EngineCounts],
        registry_counts: Callable[[], RegistryCounts],
        *,
        base: str,
        names: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start at zero.

        Args:
            state: asked for the engine's state whenever metrics are read.
            registry_counts: asked for the registry's.
            base: name of the base, which always has a label of its own.
            names: how many further models get one.
            clock: seconds that never go back.
        """
        self._state, self._registry_counts, self._base = state, registry_counts, base
        self._names, self._clock = names, clock
        self._lock = Lock()  # so that a page read in the middle is of one moment
        self._requests = CollectorRegistry()
        self._families = _Families(self._requests)
        self._models = {base: _ModelCounts(self._families, base)}
        self._reasons: set[str] = set()
        self._collectors = CollectorRegistry(auto_describe=False)
        self._collectors.register(self)

    def started(self, model: str) -> RequestTimer:
        """A request for ``model``, the name of a version that was found, begins now."""
        with self._lock:
            if model not in self._models and len(self._models) > self._names:
                model = OTHER
            if model not in self._models:
                self._models[model] = _ModelCounts(self._families, model)
            return RequestTimer(self._models[model], self._lock, self._clock)

    def refused(self, reason: str) -> None:
        """A request was turned away; ``reason`` is a word of the API's own, nothing a client sent."""
        with self._lock:
            label = reason if reason in self._reasons or len(self._reasons) < _REASONS else OTHER
            self._reasons.add(label)
            self._families.refused.labels(label).inc()

    def render(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' text format, and its content type."""
        return generate_latest(self._collectors), CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterable[Metric]:
        """The metrics for prometheus_client; all counts of requests are of one moment."""
        yield from _of_engine(self._state(), self._base)
        yield from _of_registry(self._registry_counts())
        with self._lock:
            requests = list(self._requests.collect())
        for family in requests:  # when a series began is of no use here, and one more series for each
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def _of_engine(state: EngineCounts, base: str) -> Iterable[Metric]:
    share = state.positions_used / state.positions_room if state.positions_room else 0.0
    gauges = (
        ("vllm:num_requests_running", "Rows the engine is working on.", state.running),
        ("vllm:num_requests_waiting", "Jobs that wait for a row.", state.waiting),
        (
            "vllm:kv_cache_usage_perc",
            "Positions in use as a share of all there is room for; 1 is all.",
            share,
        ),
    )
    for name, about, value in gauges:
        gauge = GaugeMetricFamily(name, about, labels=["model_name"])
        gauge.add_metric([base], float(value))
        yield gauge
    yield CounterMetricFamily("softprompt:engine_steps", "Passes through the model.", float(state.steps))


def _of_registry(counts: RegistryCounts) -> Iterable[Metric]:
    budget = float("inf") if counts.budget is None else float(counts.budget)
    counters = (
        ("prompt_hits", "Requests whose prompt was in memory.", counts.hits),
        ("prompt_loads", "Requests that waited while their prompt was loaded.", counts.misses),
        ("prompt_load_failures", "Loads that failed.", counts.failures),
        ("prompt_evictions", "Prompts taken out of memory to make room.", counts.evictions),
    )
    gauges = (
        ("prompt_bytes", "Bytes that loaded prompts hold beside the base.", float(counts.bytes)),
        ("prompt_budget_bytes", "Bytes they may hold; +Inf without a limit.", budget),
        ("prompts_loaded", "Prompts in memory.", float(counts.loaded)),
    )
    for name, about, count in counters:
        yield CounterMetricFamily(f"softprompt:{name}", about, float(count))
    for name, about, value in gauges:
        yield GaugeMetricFamily(f"softprompt:{name}", about, value)
    yield _lora_info(counts)


def _lora_info(counts: RegistryCounts) -> Metric:
    """Which prompts are at work, as gateways that route by adapter read it; its value is the time."""
    gauge = GaugeMetricFamily(
        "vllm:lora_requests_info",
        "Prompts that are being answered for, whatever they were learnt with; at most 100 are named.",
        labels=["max_lora", "waiting_lora_adapters", "running_lora_adapters"],
    )
    gauge.add_metric([str(max(_NAMED, counts.loaded)), "", ",".join(counts.in_use[:_NAMED])], time.time())
    return gauge
