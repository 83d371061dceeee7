"""The page is whole by itself, asks for nothing from outside, and shows strangers' text as text."""

from __future__ import annotations

import html
import html.parser
import re
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from interpretation.saved import saved
from softprompt.interpretation.inspect import Inspection, InspectOptions, inspect
from softprompt.interpretation.page import render, write_page
from softprompt.interpretation.vocabulary import Word

HOSTILE = "</p><script>alert(1)</script>\u202e'\"&"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    saved(folder, "moods", front="Hi {soft:5}")
    saved(folder, "other", front="Hi {soft:5}", init="random")
    saved(folder, "kv", kind="prefix-tuning", front="abcdefgh")
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> Inspection:
    return inspect(["moods", "kv", "other"], tiny.base(), folder / "prompts")


@pytest.fixture(scope="module")
def page(seen: Inspection) -> str:
    return render(seen)


class Reader(html.parser.HTMLParser):
    """Checks nesting, and gathers tags, ids and what is referred to."""

    EMPTY = frozenset({"meta", "path", "use", "line", "rect", "circle", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[name] or "" for name in ("href", "src", "xlink:href") if name in values]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def test_the_page_asks_for_nothing_from_outside(page: str) -> None:
    read = Reader(page)
    assert all(link.startswith("#") for link in read.links)
    assert {link[1:] for link in read.links} <= set(read.ids)
    assert not re.search(r"https?:|url\((?!#)|@import|javascript:", page)
    assert not {"script", "img", "link", "iframe", "object"} & set(read.tags)
    assert "default-src 'none'; style-src 'unsafe-inline'" in page


def test_ids_are_there_once(page: str) -> None:
    ids = Reader(page).ids
    assert len(ids) == len(set(ids))


def test_every_colour_of_a_drawing_is_the_style_sheets(page: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, re.S))
    assert drawings.count("<svg") == 5 + 4 + 5
    assert not re.findall(r"#[0-9a-fA-F]{6}", drawings)
    used = set(re.findall(r"var\(--(\w+)\)", drawings))
    assert used <= set(re.findall(r"--(\w+):", page))
    assert "font-family" not in drawings
    assert drawings.count('role="img"') == drawings.count("aria-label=") == 14


def test_sections_stand_in_order_with_their_sentences(page: str) -> None:
    first = page.index('id="prompt-0"')
    titles = ["What it is near", "How far it travelled", "What each position does", "Where rows look"]
    titles += ["Can it be said in words?", "What it says", "On the way from its start"]
    places = [page.index(f"<h3>{title}</h3>", first) for title in titles]
    assert places == sorted(places)
    assert "A KV prefix lies in no space of words, so it has no nearest words" in page
    assert page.index('id="relations"') < first
    assert "12 validation rows" in page


def test_the_contents_lead_to_every_section(page: str) -> None:
    contents = page[page.index('<nav id="contents"') : page.index("</nav>")]
    sections = re.findall(r'<section id="([^"]+)">\n<h3>([^<]+)</h3>', page)
    assert len(sections) > 10
    for place, title in sections:
        assert f'<a href="#{place}">{title}</a>' in contents
    assert 'href="#relations"' in contents


def test_two_prompts_relate_in_one_table(folder: Path) -> None:
    two = inspect(["moods", "other"], tiny.base(), folder / "prompts", InspectOptions(only=("relations",)))
    text = render(two)
    assert text.count("<table") == 1 + (two.average is not None)
    for matrix in (*two.likeness, *two.effects):
        value = matrix.values[1][0]
        assert value is not None
        assert f'<td class="number">{value:.2f}</td>'.replace("-", "\N{MINUS SIGN}") in text
        assert html.escape(matrix.about, quote=False).replace("'", "&#39;") in text


def test_the_same_findings_give_the_same_page(seen: Inspection, page: str) -> None:
    assert render(seen) == page


def test_strangers_text_is_shown_as_text(folder: Path) -> None:
    seen = inspect(["moods"], tiny.base(), folder / "prompts", InspectOptions(only=("near", "words", "says")))
    (found,) = seen.prompts
    assert found.near is not None
    assert found.words is not None
    assert found.speech is not None
    assert found.shift is not None
    card = found.inspected.prompt.card
    template = card.template.model_copy(update={"front": HOSTILE})
    named = card.model_copy(update={"name": HOSTILE, "template": template})
    found.inspected = replace(found.inspected, prompt=replace(found.inspected.prompt, card=named))
    found.words = replace(found.words, text=HOSTILE)
    found.speech = replace(found.speech, greedy=HOSTILE, samples=(HOSTILE,))
    moved = replace(found.shift.gained[0], word=Word(5, HOSTILE))
    found.shift = replace(found.shift, gained=(moved,))
    found.left_out["near"] = HOSTILE
    text = render(replace(seen, base=HOSTILE))
    Reader(text)
    assert "<script" not in text
    assert "\u202e" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;‹U+202E›&#39;&#34;&amp;") >= 8


def test_a_page_of_one_section_has_no_other(folder: Path) -> None:
    text = render(inspect(["moods"], tiny.base(), folder / "prompts", InspectOptions(only=("drift",))))
    assert text.count("<section id=") == 1
    assert "How the prompts relate" not in text


def test_the_page_is_written_whole(seen: Inspection, page: str, tmp_path: Path) -> None:
    write_page(seen, tmp_path / "inspect.html")
    assert (tmp_path / "inspect.html").read_text(encoding="utf-8") == page
    assert [file.name for file in tmp_path.iterdir()] == ["inspect.html"]
