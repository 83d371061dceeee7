"""The summary in a terminal fits it, and in Markdown no name breaks out of its cell."""

from __future__ import annotations

import re

import pytest

from comparison import fake_results
from softprompt.cli import screen
from softprompt.cli.compare_table import markdown_table, print_comparison
from softprompt.comparison.table import summary_rows

TOPICS = fake_results.topics(60)


def cells(line: str) -> list[str]:
    """What a reader of Markdown takes for the cells of a line."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_terminal_shows_the_verdict_and_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(TOPICS)
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert "level with the best" in lines[0].split(". ")[0]
    assert " leads with an accuracy of " in lines[0]
    for row in summary_rows(TOPICS):
        cell = row.cells["test.accuracy"]
        assert re.search(rf"(^| ){row.name.split()[0]} .*{cell.text} \({cell.interval}\)", said, re.MULTILINE)
    assert "* best of its column; 95% intervals in brackets" in lines
    assert all(len(line) <= 120 for line in lines[1:])


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_gets_paragraphs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setattr(screen, "_UNREAD_WIDTH", width)
    print_comparison(TOPICS)
    sentence, *lines = capsys.readouterr().out.splitlines()
    assert len(sentence) > width  # left to the terminal to break
    assert all(len(line) <= width for line in lines)
    assert any(line.startswith("trained parameters") and line.rstrip().endswith("11,520") for line in lines)


def test_what_is_missing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(fake_results.unfinished())
    said = capsys.readouterr().out
    assert said.startswith("So far ")
    assert "LoRA r8 has no result: The loss became NaN at step 7." in said


def test_hostile_names_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(fake_results.hostile())
    said = capsys.readouterr().out
    assert all(letter.isprintable() or letter == "\n" for letter in said)


def test_one_seed_has_no_spread(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(fake_results.topics(60, (0,)))
    assert "±" not in capsys.readouterr().out


def test_markdown_holds_a_row_for_each_method_and_marks_the_best() -> None:
    head, rule, *lines = markdown_table(TOPICS).splitlines()
    assert cells(head)[:4] == ["method", "accuracy", "validation", "trained parameters"]
    assert cells(rule) == ["---", *["---:"] * (len(cells(head)) - 1)]
    for line, row in zip(lines, summary_rows(TOPICS), strict=True):
        name, accuracy, *_ = cells(line)
        cell = row.cells["test.accuracy"]
        text = f"**{cell.text}**" if cell.best else cell.text
        assert name == row.name
        assert accuracy == f"{text} ({cell.interval}) {cell.spread}".strip()


def test_no_name_breaks_out_of_its_cell() -> None:
    nasty = [fake_results.HOSTILE, "a|b", "a\nb", "<b>", "[x](y)", "*x*", "_x_", "`", "# x", " x", "a\\|b"]
    many = TOPICS.methods * 2
    methods = [m.model_copy(update={"name": name}) for name, m in zip(nasty, many, strict=False)]
    head, _, *lines = markdown_table(TOPICS.model_copy(update={"methods": methods, "pairs": []})).split("\n")
    assert len(lines) == len(nasty)
    for line in lines:
        assert len(cells(line)) == len(cells(head))
        assert re.fullmatch(r"`[^`]*`", cells(line)[0])
        assert all(letter.isprintable() for letter in line)


def test_results_without_methods_have_a_table_too(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = TOPICS.model_copy(update={"methods": [], "pairs": []})
    print_comparison(nothing)
    assert capsys.readouterr().out.startswith("No method has a test score yet.")
    assert len(markdown_table(nothing).strip().splitlines()) == 2
