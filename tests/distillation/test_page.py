"""The report page: everything on it, strangers' text harmless, nothing asked for from outside."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from softprompt.distillation.figures import Figures, Kept, Lost, TimeCosts
from softprompt.distillation.page import render, write_page
from softprompt.evaluation.intervals import Value

HALF, NONE, ALL = Value(0.5, 0.4, 0.6), Value(0.0, 0.0, 0.0), Value(1.0, 1.0, 1.0)


def kept(name: str, role: str, positions: int, value: Value, accuracy: Value | None = None) -> Kept:
    return Kept(name, role, positions, 45.0 * positions, value, value, value, value, value, accuracy)


def figures(*, lengths: tuple[int, ...] = (8, 16), saves: bool = True) -> Figures:
    learnt = [kept(f"fox-{n}", "learnt", n, HALF) for n in lengths]
    starts = [kept(f"fox-{n}, untrained", "start", n, Value(-0.2, -0.3, -0.1)) for n in lengths]
    rest = (kept("nothing", "bare", 1, NONE), kept("the whole teacher", "text", 500, ALL))
    costs = TimeCosts(1.5, 0.2, {f"fox-{n}": 0.1 if saves else 2.0 for n in lengths}, 140.0)
    lost = (Lost("fox-8", "<script>alert(1)</script>", "so", "so not", 2.5),)
    return Figures("fox", "a text of 500 tokens", 40, (*learnt, *starts, *rest), lost, costs)


def test_the_page_holds_the_table_the_curve_and_what_was_lost(tmp_path: Path) -> None:
    write_page(figures(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "8 positions keep 50.0% (40.0 to 60.0)" in page
    assert "15.0 times as fast" in page
    assert "paid for itself after 101 requests" in page
    assert page.count("<svg") == 1
    for said in ("fox-16, untrained", "the whole teacher", "\N{MINUS SIGN}20.0%", "2.50 nats", "so not"):
        assert said in page


def test_a_strangers_text_is_only_text() -> None:
    page = render(figures())
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="http', page)


def test_a_column_is_shown_where_anything_stands_in_it() -> None:
    assert "numbers kept" not in render(figures())
    found = figures()
    first = replace(found.rows[0], numbers=HALF)
    assert "numbers kept" in render(replace(found, rows=(first, *found.rows[1:])))


def test_one_length_and_a_prompt_that_saves_nothing_have_a_page_too() -> None:
    page = render(figures(lengths=(8,), saves=False))
    assert "never" in page
    assert "paid for itself" not in page


def test_the_break_even_counts_whole_requests() -> None:
    costs = TimeCosts(1.0, 0.5, {"a": 0.5, "b": 1.0}, 10.0)
    assert costs.break_even("a") == 21
    assert costs.break_even("b") is None
