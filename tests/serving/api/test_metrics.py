"""What Prometheus reads is what happened: every sample is parsed back and held against counts by hand."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from softprompt.serving.api.metrics import FINISHES, OTHER, Metrics

Labels = frozenset[tuple[str, str]]


@dataclass
class State:
    running: int = 3
    waiting: int = 2
    positions_used: int = 250
    positions_room: int = 1_000
    steps: int = 41


@dataclass
class Counts:
    hits: int = 10
    misses: int = 4
    evictions: int = 2
    failures: int = 1
    bytes: int = 12_345
    budget: int | None = 99_999
    loaded: int = 7
    in_use: Sequence[str] = ("moods", "topics")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class Server:
    """Metrics over a state, counts and a clock that tests set."""

    def __init__(self, names: int = 100) -> None:
        self.state, self.counts, self.clock = State(), Counts(), Clock()
        self.metrics = Metrics(
            lambda: self.state, lambda: self.counts, base="tiny", names=names, clock=self.clock
        )

    def samples(self) -> dict[tuple[str, Labels], float]:
        text, kind = self.metrics.render()
        assert kind.startswith("text/plain; version=0.0.4")
        found: dict[tuple[str, Labels], float] = {}
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                at = sample.name, frozenset(sample.labels.items())
                assert at not in found
                found[at] = sample.value
        return found

    def value(self, name: str, **labels: str) -> float:
        return self.samples()[name, frozenset(labels.items())]


@pytest.fixture
def server() -> Server:
    return Server()


def test_the_names_people_chart_are_there_with_their_types(server: Server) -> None:
    types = {
        family.name: family.type
        for family in text_string_to_metric_families(server.metrics.render()[0].decode())
    }
    assert types == {
        "vllm:num_requests_running": "gauge",
        "vllm:num_requests_waiting": "gauge",
        "vllm:kv_cache_usage_perc": "gauge",
        "vllm:lora_requests_info": "gauge",
        "vllm:prompt_tokens": "counter",  # the parser takes off _total
        "vllm:generation_tokens": "counter",
        "vllm:request_success": "counter",
        "vllm:time_to_first_token_seconds": "histogram",
        "vllm:inter_token_latency_seconds": "histogram",
        "vllm:e2e_request_latency_seconds": "histogram",
        "softprompt:engine_steps": "counter",
        "softprompt:prompt_hits": "counter",
        "softprompt:prompt_loads": "counter",
        "softprompt:prompt_load_failures": "counter",
        "softprompt:prompt_evictions": "counter",
        "softprompt:prompt_bytes": "gauge",
        "softprompt:prompt_budget_bytes": "gauge",
        "softprompt:prompts_loaded": "gauge",
        "softprompt:virtual_tokens": "counter",
        "softprompt:requests_refused": "counter",
    }
    for name, labels in server.samples():
        assert not name.endswith("_created")
        if name.startswith("vllm:") and name != "vllm:lora_requests_info":
            assert dict(labels)["model_name"] == "tiny"


def test_engine_and_registry_are_read_as_they_are_now(server: Server) -> None:
    assert server.value("vllm:num_requests_running", model_name="tiny") == 3
    assert server.value("vllm:num_requests_waiting", model_name="tiny") == 2
    assert server.value("vllm:kv_cache_usage_perc", model_name="tiny") == 0.25
    assert server.value("softprompt:engine_steps_total") == 41
    assert server.value("softprompt:prompt_hits_total") == 10
    assert server.value("softprompt:prompt_loads_total") == 4
    assert server.value("softprompt:prompt_load_failures_total") == 1
    assert server.value("softprompt:prompt_evictions_total") == 2
    assert server.value("softprompt:prompt_bytes") == 12_345
    assert server.value("softprompt:prompt_budget_bytes") == 99_999
    assert server.value("softprompt:prompts_loaded") == 7
    server.state, server.counts = State(running=0, positions_room=0), Counts(budget=None)
    assert server.value("vllm:num_requests_running", model_name="tiny") == 0
    assert server.value("vllm:kv_cache_usage_perc", model_name="tiny") == 0
    assert server.value("softprompt:prompt_budget_bytes") == math.inf


def test_gateways_are_told_which_prompts_are_at_work(server: Server) -> None:
    def told() -> dict[str, str]:
        (labels,) = [dict(ls) for name, ls in server.samples() if name == "vllm:lora_requests_info"]
        return labels

    assert told()["running_lora_adapters"] == "moods,topics"
    server.counts = Counts(in_use=[f"p{number:03d}" for number in range(500)], loaded=500)
    assert told()["running_lora_adapters"].count(",") == 99, "a label is bounded"
    server.counts = Counts(in_use=())
    assert (told()["running_lora_adapters"], told()["waiting_lora_adapters"]) == ("", "")


def test_a_request_is_timed_and_counted(server: Server) -> None:
    timing = server.metrics.started("moods")
    server.clock.now += 0.2
    timing.first_token()
    timing.token()  # the very token just told
    server.clock.now += 0.03
    timing.token()
    server.clock.now += 0.12
    timing.token(3)  # held back, then shown together: 0.04 s each
    server.clock.now += 0.05
    timing.ended("stop", prompt_tokens=11, virtual_tokens=20, completion_tokens=6)  # one was never shown
    said = {"model_name": "moods"}
    assert server.value("vllm:prompt_tokens_total", **said) == 11
    assert server.value("softprompt:virtual_tokens_total", **said) == 20
    assert server.value("vllm:generation_tokens_total", **said) == 6
    for name, seconds in {
        "vllm:time_to_first_token_seconds": [0.2],
        "vllm:inter_token_latency_seconds": [0.03, 0.04, 0.04, 0.04],
        "vllm:e2e_request_latency_seconds": [0.4],
    }.items():
        assert server.value(f"{name}_count", **said) == len(seconds)
        assert server.value(f"{name}_sum", **said) == pytest.approx(sum(seconds))
        buckets = {
            float(dict(labels)["le"]): value
            for (sample, labels), value in server.samples().items()
            if sample == f"{name}_bucket" and ("model_name", "moods") in labels
        }
        assert buckets == {le: sum(s <= le + 1e-9 for s in seconds) for le in buckets}
        assert math.inf in buckets
    for reason in FINISHES:
        ended = server.value("vllm:request_success_total", finished_reason=reason, **said)
        assert ended == (reason == "stop")


def test_a_value_on_a_bound_belongs_under_it(server: Server) -> None:
    timing = server.metrics.started("moods")
    server.clock.now += 0.25  # exact in binary
    timing.token()
    name = "vllm:time_to_first_token_seconds_bucket"
    assert server.value(name, model_name="moods", le="0.25") == 1
    assert server.value(name, model_name="moods", le="0.1") == 0


def test_tokens_are_counted_while_they_come(server: Server) -> None:
    timing = server.metrics.started("moods")
    timing.token(4)
    timing.token(0)
    assert server.value("vllm:generation_tokens_total", model_name="moods") == 4
    assert server.value("vllm:inter_token_latency_seconds_count", model_name="moods") == 0
    timing.ended("length", completion_tokens=4)
    assert server.value("vllm:generation_tokens_total", model_name="moods") == 4


def test_a_request_ends_once_and_one_that_broke_off_has_no_latency(server: Server) -> None:
    timing = server.metrics.started("moods")
    timing.token()
    timing.ended("abort", prompt_tokens=5)
    for late in (timing.token, timing.first_token):
        late()
    timing.ended("stop", prompt_tokens=5, completion_tokens=9)
    said = {"model_name": "moods"}
    assert server.value("vllm:request_success_total", finished_reason="abort", **said) == 1
    assert server.value("vllm:request_success_total", finished_reason="stop", **said) == 0
    assert server.value("vllm:prompt_tokens_total", **said) == 5
    assert server.value("vllm:generation_tokens_total", **said) == 1
    assert server.value("vllm:e2e_request_latency_seconds_count", **said) == 0


def test_models_beyond_the_first_share_a_label(server: Server) -> None:
    server = Server(names=3)
    for number in range(5_000):
        server.metrics.started(f"prompt-{number}").ended("stop", 1, 1, 1)
    server.metrics.started("prompt-1").ended("stop", 1, 1, 1)
    server.metrics.started("tiny").ended("stop", 1, 1, 1)
    counts = {
        dict(labels)["model_name"]: value
        for (name, labels), value in server.samples().items()
        if name == "vllm:prompt_tokens_total"
    }
    assert counts == {"tiny": 1, "prompt-0": 1, "prompt-1": 2, "prompt-2": 1, OTHER: 4_997}


def test_refusals_are_counted_by_reason_of_which_there_are_few(server: Server) -> None:
    for reason in ("queue_full", "invalid_api_key", "queue_full"):
        server.metrics.refused(reason)
    assert server.value("softprompt:requests_refused_total", reason="queue_full") == 2
    assert server.value("softprompt:requests_refused_total", reason="invalid_api_key") == 1
    for number in range(500):
        server.metrics.refused(f"reason {number}")
    reasons = [labels for name, labels in server.samples() if name == "softprompt:requests_refused_total"]
    assert len(reasons) == 51
    assert server.value("softprompt:requests_refused_total", reason=OTHER) == 452


def test_any_name_is_a_sound_label(server: Server) -> None:
    name = 'a"b\\c\nd é {x="y"} 1'
    server.metrics.started(name).ended("stop", prompt_tokens=3)
    assert server.value("vllm:prompt_tokens_total", model_name=name) == 3


def test_servers_in_one_process_keep_apart(server: Server) -> None:
    other = Server()
    other.metrics.refused("queue_full")
    assert not [name for name, _ in server.samples() if name == "softprompt:requests_refused_total"]
    assert not [family for family in REGISTRY.collect() if family.name.startswith(("vllm:", "softprompt:"))]


def test_threads_lose_no_count(server: Server) -> None:
    def work(number: int) -> None:
        for _ in range(500):
            timing = server.metrics.started(f"prompt-{number % 2}")
            timing.token(2)
            timing.ended("stop", 1, 1, 2)
            server.metrics.refused("rate")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        _agree(server)
    assert server.value("vllm:generation_tokens_total", model_name="prompt-0") == 4_000
    assert server.value("softprompt:requests_refused_total", reason="rate") == 4_000


def _agree(server: Server) -> None:
    """A page read in the middle is of one moment: no histogram counts a request that another does not."""
    seen = server.samples()
    for model in ("prompt-0", "prompt-1"):
        said = frozenset({("model_name", model)})
        if ("vllm:prompt_tokens_total", said) in seen:
            ended = seen["vllm:e2e_request_latency_seconds_count", said]
            assert ended == seen["vllm:prompt_tokens_total", said]
            assert ended <= seen["vllm:time_to_first_token_seconds_count", said]
