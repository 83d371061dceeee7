"""Many prompts served at once: every side is asked the same, answers the same, and is counted rightly."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import serve
import serve_check
import serve_clients
import serve_results
import tiny
from serve_loads import Answer, Ask, Load, Material

TEXTS = [f"Word {n} of a text, {n * 7919} and so on." for n in range(60)]
SHORT = {
    "classify": Load("classify-20", 5, 4, 9, 1),
    "generate": Load("generate", 5, 7, 7, 6),
}


def material(kind: str) -> Material:
    return Material(tiny.base(), SHORT[kind], TEXTS, prompts=3)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT's own
@pytest.mark.parametrize("kind", SHORT)
def test_every_side_gives_the_references_answers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "REST", 0.0)
    asked = material(kind)
    plain = tiny.model("llama")
    plain.generation_config.eos_token_id = None
    names = ["peft", "transformers", "softprompt", "softprompt-one"]
    plan = serve.Plan(clients=4, requests=9, few=5, repeats=2, checked=9)
    with ExitStack() as ending:
        made = serve.sides(tiny.base(), plain, asked, names, ending)
        taking_part = serve.entries(names, made, prompts=3)
        cells = serve.measure(plan, taking_part, asked, tiny.model("llama"), "float32")
    assert [cell.entry for cell in cells] == names
    assert [cell.prompts for cell in cells] == [3, 3, 3, 1]
    assert [(cell.requests, cell.checked) for cell in cells] == [(5, 5), (9, 9), (9, 9), (9, 9)]
    assert all(cell.same_answers == cell.same_tokens == 1 and cell.worst_gap == 0 for cell in cells)
    ours = cells[2].requests_per_second
    for cell in cells:
        rates = sorted(cell.requests / seconds for seconds in cell.seconds)
        assert cell.requests_per_second == pytest.approx(sum(rates) / 2)
        assert cell.tokens_per_second == pytest.approx(cell.requests_per_second * asked.load.new_tokens)
        assert cell.speedup == pytest.approx(ours / cell.requests_per_second)


def test_a_wrong_token_is_seen() -> None:
    asked, model = material("generate"), tiny.model("llama")
    (ask,) = asked.asks(1, seed=4)
    answer = greedy(asked, ask)
    found = serve_check.agreement(model, asked, [ask], [answer], most=1)
    assert found == serve_check.Agreement(1, 1.0, 1.0, 0.0)
    wrong = (*answer[:-1], (answer[-1] + 1) % tiny.VOCABULARY)
    found = serve_check.agreement(model, asked, [ask], [wrong], most=1)
    assert found.same_answers == 0
    assert found.same_tokens == pytest.approx(5 / 6)
    assert found.worst_gap > 0


def greedy(asked: Material, ask: Ask) -> Answer:
    """The likeliest tokens, one whole pass after another."""
    model, said = tiny.model("llama"), list[int]()
    for _ in range(asked.load.new_tokens):
        ids = torch.tensor([*ask.ids, *said])
        embedded = torch.cat([asked.prompts[ask.prompt], model.get_input_embeddings()(ids)])
        with torch.no_grad():
            said.append(int(model(inputs_embeds=embedded[None]).logits[0, -1].argmax()))
    return tuple(said)


def test_a_wrong_label_is_seen() -> None:
    asked = material("classify")
    (ask,) = asked.asks(1, seed=4)
    found = [
        serve_check.agreement(tiny.model("llama"), asked, [ask], [(label,)], most=1) for label in asked.labels
    ]
    assert sum(one.same_answers for one in found) == 1
    assert sorted(one.worst_gap for one in found)[0] == 0 < sorted(one.worst_gap for one in found)[1]


def test_requests_are_the_ones_promised() -> None:
    asked = material("classify")
    asks = asked.asks(40, seed=1)
    assert asks == asked.asks(40, seed=1) != asked.asks(40, seed=2)
    assert [ask.prompt for ask in asks[:4]] == [0, 1, 2, 0]
    assert {ask.prompt for ask in asked.asks(5, seed=1, prompts=1)} == {0}
    assert [ask.ids for ask in asked.asks(40, seed=1, prompts=1)] == [ask.ids for ask in asks]
    assert {len(ask.ids) for ask in asks} == set(range(4, 10))
    assert all(len(prompt) == 5 for prompt in asked.prompts)
    assert not torch.equal(asked.prompts[0], asked.prompts[1])


class Clockwork:
    """Somebody who takes a known time; the answer is the request's own first token."""

    name = "clockwork"

    def __init__(self, most: int | None, now: Sequence[float] = ()) -> None:
        self.most, self.lots = most, list[int]()
        self.together = self._inside = 0

    def answer(self, asks: Sequence[Ask], new_tokens: int) -> list[Answer]:
        self._inside += 1
        self.together = max(self.together, self._inside)
        self.lots.append(len(asks))
        time.sleep(0.02 if self.most is None else 0)
        self._inside -= 1
        return [ask.ids[:1] for ask in asks]


ASKS = [Ask(0, (n,)) for n in range(7)]


@pytest.mark.parametrize(
    ("most", "clients", "lots"), [(1, 3, [1] * 7), (3, 3, [3, 3, 1]), (8, 2, [2, 2, 2, 1])]
)
def test_clients_wait_for_their_answers(
    most: int, clients: int, lots: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(serve_clients, "perf_counter", lambda: float(next(ticks)))
    side = Clockwork(most)
    timing = serve_clients.closed_loop(side, ASKS, clients, 1)
    assert side.lots == lots
    assert timing.answers == tuple(ask.ids for ask in ASKS)
    # The clock ticks once a lot, so a client of three who are served one by one waits three ticks.
    waits = {1: 3.0, 3: 1.0, 8: 1.0}[most]
    assert timing.latencies == (waits,) * (7 - clients)


def test_clients_of_a_server_run_at_once() -> None:
    side = Clockwork(None)
    timing = serve_clients.closed_loop(side, ASKS, 3, 1)
    assert timing.answers == tuple(ask.ids for ask in ASKS)
    assert len(timing.latencies) == 4
    assert side.together == 3


def test_a_failing_side_is_heard() -> None:
    class Broken(Clockwork):
        def answer(self, asks: Sequence[Ask], new_tokens: int) -> list[Answer]:
            raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        serve_clients.closed_loop(Broken(None), ASKS, 3, 1)


def test_percentiles() -> None:
    timing = serve_clients.Timing(1.0, tuple(float(n) for n in range(101)), ())
    assert (timing.percentile(0.5), timing.percentile(0.99)) == (50, 99)
    assert serve_clients.Timing(1.0, (), ()).percentile(0.5) is None
    assert serve_clients.Timing(1.0, (3.0,), ()).percentile(0.99) == 3


CELL = serve_results.Cell(
    load="generate",
    entry="softprompt",
    prompts=32,
    clients=32,
    dtype="float32",
    turn="a",
    requests=64,
    requests_per_second=6.0,
    tokens_per_second=384.0,
    latency_p50=None,
    latency_p99=None,
    speedup=1.0,
    seconds=(10.0, 11.0),
    checked=16,
    same_answers=1.0,
    same_tokens=1.0,
    worst_gap=0.0,
)


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results" / "serve.jsonl"
    assert serve_results.read(path) == []
    other = replace(CELL, entry="peft", latency_p50=1.5, latency_p99=2.5)
    serve_results.add(path, [CELL], {"cpu": "one"})
    serve_results.add(path, [other], {"cpu": "one"})
    assert serve_results.read(path) == [CELL, other]
    assert json.loads(path.read_text().splitlines()[0])["cpu"] == "one"
    assert "softprompt 1.00x" in serve_results.show(other)


def test_bars_are_met_or_missed_by_cells_of_the_same_turn() -> None:
    cells = [
        CELL,
        replace(CELL, entry="peft", requests_per_second=1.0),
        replace(CELL, turn="b", requests_per_second=3.0),
        replace(CELL, turn="b", entry="softprompt-one", requests_per_second=3.2, same_answers=0.5),
        replace(CELL, turn="c", entry="vllm", requests_per_second=2.0),
    ]
    said = [line for line in serve_results.bars(cells, ["float32"]) if "generate" in line]
    assert said[0].endswith("at least 6.0x peft: met, 6.00x (answers right: 100% and 100%).")
    assert said[1].endswith("softprompt-one: missed, 0.94x (answers right: 100% and 50%).")
    assert said[2].endswith("met, 1.50x (answers right: 100% and 100%; not measured in turns).")
    assert all(line.endswith("not measured.") for line in serve_results.bars(cells, ["bfloat16"]))
    assert "softprompt was not measured" in serve_results.bars(cells[1:2], ["float32"])[0]


def test_a_resumed_run_measures_what_is_missing_and_softprompt_beside_it() -> None:
    cells = [CELL, replace(CELL, entry="peft")]
    assert serve.missing(cells, "generate", ["peft", "softprompt"], 32, "float32") == []
    wanted = ["peft", "transformers", "softprompt"]
    assert serve.missing(cells, "generate", wanted, 32, "float32") == ["transformers", "softprompt"]
    assert serve.missing(cells, "generate", wanted, 8, "float32") == wanted
    assert serve.missing(cells, "generate", wanted, 32, "bfloat16") == wanted


def test_a_command_line_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    asked = serve.arguments(["--only", "classify-100", "--sides", "peft,softprompt", "--clients", "1,8"])
    assert (asked.only, asked.sides, asked.clients) == (["classify-100"], ["peft", "softprompt"], [1, 8])
    assert asked.few == asked.requests == 64
    with pytest.raises(SystemExit):
        serve.arguments(["--only", "classify-50"])
    assert "'classify-50' is none of classify-20, classify-100, generate" in capsys.readouterr().err
