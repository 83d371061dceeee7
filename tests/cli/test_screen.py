"""What is printed fits the terminal, and cannot steer it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from softprompt.cli import screen
from softprompt.cli.scores import headline, print_scores, with_interval
from softprompt.cli.watch import Bar, Lines, Pace
from softprompt.evaluation.score import Scores
from softprompt.listener import Report

SCORES = {
    "rows": 200,
    "nll": 0.5,
    "nll_interval": (0.4, 0.6),
    "accuracy": 0.81,
    "accuracy_interval": (0.75, 0.86),
}


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (52_480, "52.5 kB"), (999_900, "1,000 kB"), (92_871_040, "92.9 MB"),
     (3_200_000_000, "3.2 GB")],
)  # fmt: skip
def test_sizes_are_in_the_unit_that_suits(size: int, text: str) -> None:
    assert screen.bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.4, "9.4 s"), (59.2, "59 s"), (81, "1:21 min"), (7265, "2:01:05")],
)
def test_times_are_in_words(seconds: float, text: str) -> None:
    assert screen.seconds_text(seconds) == text


def test_a_narrow_terminal_gets_paragraphs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(width: int) -> list[str]:
        monkeypatch.setattr(screen, "_UNREAD_WIDTH", width)
        print_scores({"validation": SCORES, "validation, untuned": SCORES})
        return capsys.readouterr().out.splitlines()

    for width in (20, 40, 60, 80, 120):
        assert all(len(line) <= width for line in printed(width))
    assert any("learnt" in line and "untuned base" in line for line in printed(80))
    assert not any("learnt" in line and "untuned base" in line for line in printed(40))


def test_control_letters_do_not_reach_a_terminal() -> None:
    assert screen.clean("a\x1b[31mb\x07\u202ec\n\td") == "a‹U+001B›[31mb‹U+0007›‹U+202E›c\n\td"


@pytest.mark.parametrize(
    ("running", "path", "shown"),
    [
        ("bin/softprompt", "bin", "softprompt generate quotes ''"),
        ("bin/softprompt", "", "bin/softprompt generate quotes ''"),
        ("bin/softprompt", "other", "bin/softprompt generate quotes ''"),
        ("bin/pytest", "", "softprompt generate quotes ''"),
    ],
)
def test_a_line_to_type_names_the_command_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: str, path: str, shown: str
) -> None:
    for folder in ("bin", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "softprompt").touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / running)])
    monkeypatch.setenv("PATH", str(tmp_path / path) if path else "")
    assert screen.command_line("generate", "quotes", "") == shown


def test_numbers_json_has_no_word_for_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_json({"a": [math.nan, (math.inf, 1.5)], "é": "\udc80"})
    assert capsys.readouterr().out.isascii()


def test_scores_of_strangers_may_be_anything() -> None:
    assert with_interval(SCORES, "accuracy") == "81.0% (75.0-86.0)"
    assert with_interval({"accuracy": 0.5, "accuracy_interval": ["x", None]}, "accuracy") == "50.0%"
    assert headline({"nll": "much"}) == "-"
    assert headline({}) == "-"


def report(step: int, seconds: float, scores: Scores | None = None) -> Report:
    return Report(step, 10, 1.0, 0.01, 1.0, 100, seconds, scores, False)


def test_pace_tells_speed_and_time_left() -> None:
    pace = Pace()
    for step in range(6):
        pace.add(report(step, 2.0 * step))
    assert pace.tokens_per_second == pytest.approx(50)
    assert pace.left == pytest.approx(10)


def test_lines_are_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    scores = Scores(4, 0.5, (0.4, 0.6), 0.75, (0.3, 0.9), (0, 1, 1, 1))
    with Lines() as lines:
        for step in range(10):
            now = 4.0 * step
            lines.report(report(step, now, scores if step == 5 else None))
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == ["3/10", "5/10", "8/10"]
    assert "validation 75.0%" in said[1]


def test_the_best_is_told_beside_a_later_and_worse_validation() -> None:
    def validated(accuracy: float, best: bool) -> Report:
        scores = Scores(4, 0.5, (0.4, 0.6), accuracy, (0.3, 0.9), (0, 1, 1, 1))
        return Report(1, 10, 1.0, 0.01, 1.0, 100, 1.0, scores, best)

    with Bar() as bar:
        said = [bar.validated]
        for accuracy, best in ((0.75, True), (0.5, False), (0.9, True)):
            bar.report(validated(accuracy, best))
            said.append(bar.validated)
    assert said == ["", "validation 75.0%", "validation 50.0% (best 75.0%)", "validation 90.0%"]
