"""axe finds nothing serious on the pages people are given: desktop and phone, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from browser import browser, serious
from comparison import fake_results
from interpretation.saved import saved
from softprompt.comparison.page import write_report
from softprompt.interpretation.inspect import inspect
from softprompt.interpretation.page import write_page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name in ("moods", "other", "third"):
        saved(folder, name, front="Hi {soft:5}")
    names = ["moods", "other", "third"]
    for count in (1, 2, 3):
        seen = inspect(names[:count], tiny.base(), folder / "prompts")
        write_page(seen, folder / f"inspect-{count}.html")
    write_report(fake_results.hostile(), folder / "report.html")
    return sorted(folder.glob("*.html"))


def test_axe_finds_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "pale.html"
    pale = '<!doctype html><html lang="en"><title>t</title><p style="color:#ddd">pale</p><img src="x">'
    page.write_text(pale, encoding="utf-8")
    with browser() as made:
        rules = {found.partition(":")[0] for found in serious(made, page.as_uri())}
    assert rules == {"color-contrast", "image-alt"}


def test_axe_finds_nothing_serious(pages: list[Path]) -> None:
    assert len(pages) == 4
    with browser() as made:
        for page in pages:
            for width, dark in ((1280, False), (390, True)):
                assert serious(made, page.as_uri(), width=width, dark=dark) == [], page.name
