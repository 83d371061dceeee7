"""The benchmarks run, count what they say and compare equals: on models too small to be worth timing."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import cookbook
import machine
import sides
import tiny
import train_step
from softprompt.base.packing import TokenRow


def test_both_sides_take_the_same_steps() -> None:
    base = tiny.base("llama")
    rows = sides.draw_rows((5, 9, 14), tiny.VOCABULARY, 2, seed=1)
    start = train_step.start_of(base.embedding.weight, 6)
    ours = sides.softprompt_side(base, start, 1e-2)
    theirs = sides.peft_side(tiny.model("llama"), start, 1e-2)
    apart = sides.difference(ours, theirs, rows)
    assert apart.loss < 1e-4
    assert apart.gradient < 1e-4
    assert ours.step(rows) == pytest.approx(theirs.step(rows), rel=1e-4)
    assert ours.step(rows) == pytest.approx(theirs.step(rows), rel=1e-3)
    assert not torch.equal(ours.soft, start)


def test_useful_flops_count_tokens_pairs_and_labels() -> None:
    config = tiny.CONFIGS["llama"]()
    rows = [TokenRow((4, 5, 6), 2), TokenRow((7, 8), 0)]
    found = train_step.useful_flops(config, [torch.empty(10, 7)], rows, virtual=4)
    pairs = 10 + (3 * 4 + 6) + (2 * 4 + 3)
    heads = config.num_attention_heads * config.num_hidden_layers
    attention = 12 * pairs * config.head_dim * heads
    assert found == 4 * 9 * 70 + attention + 4 * 3 * config.hidden_size * config.vocab_size


def test_rows_are_the_ones_promised() -> None:
    rows = train_step.rows_of(1000)
    assert len(rows) == 16
    assert all(8 <= len(row.ids) <= 60 and row.scored == 2 for row in rows)
    assert rows == train_step.rows_of(1000)


def test_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SQUARE", 64)
    weights = machine.layer_linears(tiny.model("llama"))
    assert len(weights) == 3 * 7
    assert machine.gemm_rate(weights, rows=8, repeats=2) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset its high-water mark")
def test_peak_memory_sees_what_was_freed_again() -> None:
    peak = machine.PeakMemory(torch.device("cpu"))
    torch.ones(64 << 20, dtype=torch.uint8)
    assert 60 << 20 < peak.beyond() < 160 << 20


def test_the_cookbooks_job_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--hidden", "64", "--layers", "2", "--vocabulary", "300", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["cookbook.py", "--json", *shape])
    cookbook.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["job"] for line in lines] == ["roles", "quotes", "both"]
    assert all(line["gradient_error"] < 1e-4 and line["loss_error"] < 1e-4 for line in lines[:2])
    assert [line["steps"] for line in lines[:2]] == [7, 4]
