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
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock
from typing import Literal, Protocol, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric

__all__ = ["FINISHES", "OTHER", "EngineCounts", "Finish", "Metrics", "RegistryCounts", "Timing"]

Finish = Literal["stop", "length", "abort", "error"]
"""How a request ended: by itself or a stop string, at its limit, left by its client, with a fault of ours."""
FINISHES: tuple[Finish, ...] = get_args(Finish)

OTHER = "(other)"
"""Label shared by what came after the first; no prompt can have this name."""

_REASONS = 50

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
    """What is read of the registry: lookups since it began, bytes held now and at most (None: no limit)."""

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


class _Histogram:
    """How many observations fell under each bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.sum += seconds * times

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus wants them."""
        names = [*map(str, self.bounds), "+Inf"]
        return [(name, float(count)) for name, count in zip(names, accumulate(self.counts), strict=True)]


@dataclass(eq=False)
class _Tally:
    """What was counted for one value of ``model_name``."""

    prompt_tokens: int = 0
    virtual_tokens: int = 0
    generation_tokens: int = 0
    finished: dict[Finish, int] = field(default_factory=lambda: dict.fromkeys(FINISHES, 0))
    first_token: _Histogram = field(default_factory=lambda: _Histogram(_FIRST_TOKEN))
    between_tokens: _Histogram = field(default_factory=lambda: _Histogram(_BETWEEN_TOKENS))
    whole_answer: _Histogram = field(default_factory=lambda: _Histogram(_WHOLE_ANSWER))


class Timing:
    """One request on its way, from ``Metrics.started`` to ``ended``; any thread may call."""

    def __init__(self, tally: _Tally, lock: Lock, clock: Callable[[], float]) -> None:
        self._tally, self._lock, self._clock = tally, lock, clock
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
                self._tally.between_tokens.observe((now - self._last) / n, n)
            self._last = now
            self._written += n
            self._tally.generation_tokens += n

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
            tally = self._tally
            tally.finished[reason] += 1
            tally.prompt_tokens += prompt_tokens
            tally.virtual_tokens += virtual_tokens
            tally.generation_tokens += max(0, completion_tokens - self._written)
            if reason in ("stop", "length"):
                tally.whole_answer.observe(self._clock() - self._began)

    def _mark_first(self, now: float) -> None:
        self._last = now
        self._tally.first_token.observe(now - self._began)


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
        self._lock = Lock()
        self._tallies = {base: _Tally()}
        self._refusals: dict[str, int] = {}
        self._collectors = CollectorRegistry(auto_describe=False)
        self._collectors.register(self)

    def started(self, model: str) -> Timing:
        """A request for ``model``, the name of a version that was found, begins now."""
        with self._lock:
            return Timing(self._tally(model), self._lock, self._clock)

    def refused(self, reason: str) -> None:
        """A request was turned away; ``reason`` is a word of the API's own, nothing a client sent."""
        with self._lock:
            label = reason if reason in self._refusals or len(self._refusals) < _REASONS else OTHER
            self._refusals[label] = self._refusals.get(label, 0) + 1

    def render(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' text format, and its content type."""
        return generate_latest(self._collectors), CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterable[Metric]:
        """The metrics for prometheus_client; all counts of requests are of one moment."""
        yield from _of_engine(self._state(), self._base)
        yield from _of_registry(self._registry_counts())
        with self._lock:
            found = [*_of_requests(self._tallies), _of_refusals(self._refusals)]
        yield from found

    def _tally(self, model: str) -> _Tally:
        if model not in self._tallies and len(self._tallies) > self._names:
            model = OTHER
        return self._tallies.setdefault(model, _Tally())


# Families ----------------------------------------------------------------------------------------


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


def _of_requests(tallies: dict[str, _Tally]) -> Iterable[Metric]:
    finished = CounterMetricFamily(
        "vllm:request_success", "Requests that ended, by how.", labels=["model_name", "finished_reason"]
    )
    for model, tally in tallies.items():
        for reason, count in tally.finished.items():
            finished.add_metric([model, reason], float(count))
    yield finished
    for name, about, pick in _COUNTERS:
        yield _by("model_name", name, about, {model: pick(tally) for model, tally in tallies.items()})
    for name, about, histogram in _HISTOGRAMS:
        family = HistogramMetricFamily(name, about, labels=["model_name"])
        for model, tally in tallies.items():
            seen = histogram(tally)
            family.add_metric([model], seen.buckets(), seen.sum)
        yield family


_COUNTERS: tuple[tuple[str, str, Callable[[_Tally], int]], ...] = (
    ("vllm:prompt_tokens", "Text tokens read.", lambda tally: tally.prompt_tokens),
    ("vllm:generation_tokens", "Tokens written.", lambda tally: tally.generation_tokens),
    (
        "softprompt:virtual_tokens",
        "Positions of prompts that stood in front of texts.",
        lambda tally: tally.virtual_tokens,
    ),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[_Tally], _Histogram]], ...] = (
    (
        "vllm:time_to_first_token_seconds",
        "From a request's start to its first token.",
        lambda tally: tally.first_token,
    ),
    (
        "vllm:inter_token_latency_seconds",
        "From one token to the next.",
        lambda tally: tally.between_tokens,
    ),
    (
        "vllm:e2e_request_latency_seconds",
        "From a request's start to the end of its whole answer.",
        lambda tally: tally.whole_answer,
    ),
)


def _of_refusals(refusals: dict[str, int]) -> Metric:
    about = "Requests turned away before the engine worked on them."
    return _by("reason", "softprompt:requests_refused", about, refusals)


def _by(label: str, name: str, about: str, counts: dict[str, int]) -> Metric:
    """A counter with one label."""
    family = CounterMetricFamily(name, about, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], float(count))
    return family
