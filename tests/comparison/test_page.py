"""The report is one file that asks for nothing, is whole without a script, and no text can break it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from comparison import fake_results
from softprompt.comparison.examples import SHOWN, Examples, examples, script_json
from softprompt.comparison.page import render, write_report
from softprompt.comparison.results import Results
from softprompt.errors import ResourceError
from softprompt.report.board import hue
from softprompt.report.page import part

VOID = {"meta", "br", "img", "link", "input", "hr"}
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff\ufeff]"
)


class Page(HTMLParser):
    """A page in pieces: its elements in order, the text within each, what it would run and load."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def within(self, tag: str) -> str:
        return "".join(text for name, text in self.texts if name == tag)

    @property
    def text(self) -> str:
        """All that is read, spaces made one."""
        read = (text for tag, text in self.texts if tag not in ("script", "style"))
        return " ".join("".join(read).split())


TOPICS = fake_results.topics(120)
PLAIN = Page(render(TOPICS))
PAGES = {
    "topics": PLAIN,
    "one seed": Page(render(fake_results.topics(60, (0,)))),
    "text": Page(render(fake_results.quotes())),
    "nll": Page(render(fake_results.quotes("nll"))),
    "intents": Page(render(fake_results.intents())),
    "hostile": Page(render(fake_results.hostile())),
    "unfinished": Page(render(fake_results.unfinished())),
    "empty": Page(render(TOPICS.model_copy(update={"methods": [], "pairs": [], "test_rows": []}))),
}
EVERY = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


# One file ----------------------------------------------------------------------------------------


@EVERY
def test_a_page_is_well_formed_and_its_ids_are_unique(page: Page) -> None:
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)


@EVERY
def test_a_page_loads_nothing(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "image",
        "foreignobject",
        "audio",
        "video",
    }
    for _, attributes in page.elements:
        assert not {
            name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")
        }
        assert attributes.get("href", "#").startswith("#")
    assert not re.findall(r"@import|url\((?!#)", page.within("style"))


@EVERY
def test_only_the_pages_own_script_may_run(page: Page) -> None:
    scripts = [
        attributes for attributes in page.all("script") if attributes.get("type") != "application/json"
    ]
    assert scripts == [{}]
    script = page.source.rsplit("<script>", 1)[1].rsplit("</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "innerHTML" not in script
    assert "eval" not in script


def test_a_thousand_rows_and_ten_methods_stay_well_under_three_megabytes(tmp_path: Path) -> None:
    more = [fake_results.Kind(f"more {n}", "lora", 2 + n / 10, 10**n, 9.0, 10**n) for n in (4, 5, 6)]
    results = fake_results.topics(1000, (0, 1, 2), (*fake_results.KINDS, *more))
    long = [
        row.model_copy(update={"input": f"{number} " + 3000 * "ÿ"})
        for number, row in enumerate(results.test_rows)
    ]
    write_report(results.model_copy(update={"test_rows": long}), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_a_report_is_utf_8_whatever_its_texts(tmp_path: Path) -> None:
    write_report(fake_results.hostile(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == PAGES["hostile"].source


def test_the_same_results_give_the_same_report() -> None:
    assert render(TOPICS) == PLAIN.source


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_a_missing_library_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ResourceError, match=rf"{name}, which is not installed; .*softprompt\[report\]"):
        render(TOPICS)


# What it says ------------------------------------------------------------------------------------


HEADS = """Comparison of methods
leads with an accuracy
Settings were chosen
smollm2-135m
Scores are on test rows
What accuracy costs
How they learnt
What was tried
What is taken for what
How far confidence can be trusted
Each against each
Rows that changed
What the comparison was run with"""


def test_everything_asked_for_stands_in_order() -> None:
    places = [PLAIN.text.index(head) for head in HEADS.splitlines()]
    assert places == sorted(places)


def test_every_number_of_the_table_is_there_without_a_script() -> None:
    for method in TOPICS.methods:
        found = method.summary["accuracy"]
        assert f"{100 * found.mean:.1f}%" in PLAIN.text
        assert f"{100 * found.low:.1f}–{100 * found.high:.1f}" in PLAIN.text
    for text in ("134,515,008", "538 MB", "±", "(best)", "1 failed", "no spaces"):
        assert text in PLAIN.text


def test_tables_have_headers_and_cells_their_raw_values() -> None:
    heads = [h for h in PLAIN.all("th") if h.get("scope") == "col" and "data-at" in h]
    cells = [c for c in PLAIN.all("td") if "data-at" in c]
    assert len(cells) == 7 * (len(heads) - 1)
    assert {h["data-at"] for h in heads} == {c["data-at"] for c in cells} | {"rank"}
    raw = {float(c["data-value"]) for c in cells if c["data-at"] == "test.accuracy"}
    assert raw == {method.summary["accuracy"].mean for method in TOPICS.methods}


def test_the_matrix_of_pairs_is_antisymmetric() -> None:
    for pair in TOPICS.pairs:
        text = f"{100 * abs(pair.difference):.1f}"
        assert f"+{text}" in PLAIN.text
        assert f"−{text}" in PLAIN.text


def test_an_unfinished_comparison_says_what_is_missing() -> None:
    page = PAGES["unfinished"]
    assert "This comparison is not finished." in page.text
    for sentence in ("LoRA r8 has no result: The loss became NaN at step 7.", "soft prompt lacks seeds 1, 2.",
                     "full fine-tuning has not been run yet."):  # fmt: skip
        assert sentence in page.text
    assert {"class": "trouble", "colspan": "11"} in page.all("td")
    assert "not finished" not in PLAIN.text


def test_many_labels_have_tables_of_the_most_confused() -> None:
    page = PAGES["intents"]
    assert "With 150 labels a matrix cannot be read" in page.text
    assert sum(t.get("class") == "confused" for t in page.all("table")) == 3


def test_free_text_stands_side_by_side() -> None:
    page = PAGES["text"]
    assert "Texts side by side" in page.text
    assert "says 4 demonstrations with seed 0." in page.text
    assert "says KV prefix from demonstrations with seed 0." in page.text
    assert "From wrong to right" not in page.text


# Rows that changed -------------------------------------------------------------------------------


def found(results: Results) -> Examples:
    shown = examples(results)
    assert shown is not None
    return shown


def test_the_rows_that_changed_are_those_that_changed() -> None:
    shown = found(TOPICS)
    names = [name for _, name, _ in shown.methods]
    assert (names[shown.first], names[shown.second]) == ("4 demonstrations", "LoRA r8")
    runs = {m.name: [int(p) for p in m.runs[0].predictions] for m in TOPICS.methods}
    labels = TOPICS.labels or []
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            rows = zip(TOPICS.test_rows, runs[first], runs[second], strict=True)
            went = [row for row, a, b in rows if labels[a] != row.answer and labels[b] == row.answer]
            assert shown.gains[i][j] == len(went)
            if (i, j) == (shown.first, shown.second):
                assert [example.input for example in shown.gained] == [row.input for row in went][:SHOWN]
    assert all(example.before != example.answer == example.after for example in shown.gained)
    assert all(example.after != example.answer == example.before for example in shown.lost)
    assert len(shown.lost) == min(SHOWN, shown.gains[shown.second][shown.first])


def test_the_script_reads_what_the_page_shows() -> None:
    source = PLAIN.source.split('id="examples-data">', 1)[1].split("</script>", 1)[0]
    data = json.loads(source)
    shown = found(TOPICS)
    assert data == json.loads(json.dumps(shown.payload))
    i, j = shown.first, shown.second
    rows = [r for r in range(len(data["rows"])) if data["right"][i][r] == "0" and data["right"][j][r] == "1"]
    assert len(rows) == data["gains"][i][j]
    texts = [data["words"][data["rows"][row][0]] for row in rows[:SHOWN]]
    assert texts == [example.input for example in shown.gained]


def test_fewer_than_two_methods_leave_nothing_to_pick() -> None:
    assert examples(TOPICS.model_copy(update={"methods": TOPICS.methods[:1]})) is None
    assert 'id="examples-data"' not in PAGES["empty"].source


def test_choices_of_a_row_are_numbered() -> None:
    choices = TOPICS.model_copy(update={"labels": None})
    assert found(choices).gains == found(TOPICS).gains
    assert "choice 1" in found(choices).payload["words"]
    unknown = [
        m.model_copy(update={"runs": [r.model_copy(update={"row_scores": []}) for r in m.runs]})
        for m in choices.methods
    ]
    assert not found(choices.model_copy(update={"methods": unknown})).judged


# Texts from strangers ----------------------------------------------------------------------------


def test_hostile_texts_do_not_change_the_page() -> None:
    page = PAGES["hostile"]
    plain = Page(render(fake_results.topics(60, (0,))))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert len(page.all("h2")) == len(plain.all("h2"))
    assert "<script>alert(1)</script>" in page.text  # as text
    assert "{{ 7*7 }}" in page.text
    assert "&amp; `x`" in page.text


@EVERY
def test_nothing_invisible_is_in_a_page(page: Page) -> None:
    assert INVISIBLE.findall(page.source) == []


@pytest.mark.parametrize(
    "text", [fake_results.HOSTILE, "</SCRIPT ", "<!--<script>", "]]>", "\u2028", "\\", "\x7f"]
)
def test_json_in_a_script_is_undone_by_reading(text: str) -> None:
    made = script_json({text: [text]})
    assert json.loads(made) == {text: [text]}
    assert not set(made) & set("<>&\u2028\u2029\x7f")


# In a browser ------------------------------------------------------------------------------------


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None, reason="needs Chromium to run the page's script")

PICK = """<script>
document.querySelector('th[data-at="parameters"] button').click();
const select = document.getElementById("before");
select.value = "1";
select.dispatchEvent(new Event("change"));
</script></body>"""


def in_browser(path: Path, source: str) -> Page:
    """The page as it is once its scripts have run."""
    path.write_text(source, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent / 'profile'}"]
    command: list[Any] = [BROWSER, *flags, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    return Page(done.stdout.decode())


@NEEDS_BROWSER
def test_the_policy_lets_the_pages_script_run_and_no_other(tmp_path: Path) -> None:
    other = PLAIN.source.replace("</body>", "<script>document.title = 'taken'</script></body>")
    page = in_browser(tmp_path / "report.html", other)
    assert next(a for a in page.all("div") if a.get("class") == "choose").get("hidden") is None
    assert page.within("title") == "bbc-topics: comparison"


@NEEDS_BROWSER
def test_a_reader_sorts_the_table_and_picks_two_methods(tmp_path: Path) -> None:
    source = re.sub(r"<meta http-equiv=[^>]*>", "", PAGES["hostile"].source).replace("</body>", PICK)
    page = in_browser(tmp_path / "report.html", source)
    cells = [c["data-value"] for c in page.all("td") if c.get("data-at") == "parameters"]
    assert list(map(float, cells)) == sorted(map(float, cells))
    assert any(h.get("aria-sort") == "ascending" for h in page.all("th"))
    shown = found(fake_results.hostile())
    gained, lost = shown.gains[1][shown.second], shown.gains[shown.second][1]
    assert f"From wrong to right {gained} row" in page.text
    assert f"From right to wrong {lost} row" in page.text
    assert sum(a.get("class") == "text" for a in page.all("p")) == min(SHOWN, gained) + min(SHOWN, lost)
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in PAGES["hostile"].elements} | {"button"}


# Colours and widths ------------------------------------------------------------------------------


def linear(channel: int) -> float:
    share = channel / 255
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


def luminance(colour: str) -> float:
    red, green, blue = (linear(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def lab(colour: str) -> tuple[float, float, float]:
    """CIELAB, in which a distance of 2 can just be seen."""
    red, green, blue = (linear(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883
    a, b, c = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, luminance(colour), z))
    return 116 * b - 16, 500 * (a - b), 200 * (b - c)


def test_nine_methods_have_nine_colours_that_can_be_told_apart_and_read() -> None:
    style = part("softprompt.comparison", "report.css")
    light, dark = style.split("prefers-color-scheme: dark")[:2]
    for theme in (light, dark.split("box-sizing")[0]):
        colours = re.findall(r"--m\d: (#[0-9a-f]{6})", theme)
        (paper,) = re.findall(r"--paper: (#[0-9a-f]{6})", theme)
        assert len(colours) == 9
        assert min(math.dist(lab(a), lab(b)) for a, b in combinations(colours, 2)) > 20
        for colour in colours:  # the least that WCAG asks of text
            least, most = sorted([luminance(colour), luminance(paper)])
            assert (most + 0.05) / (least + 0.05) >= 4.5, colour
    assert [hue(number) == hue(0) for number in range(10)] == [True] + [False] * 8 + [True]
    page = render(fake_results.topics(40, (0,), [*fake_results.KINDS, *two_more()]))
    assert {f'"badge m{number}' in page or f"badge m{number} " in page for number in range(9)} == {True}
    assert all(f".m{number} " in style for number in range(9))


def two_more() -> list[fake_results.Kind]:
    return [fake_results.Kind(f"more {number}", "text", 1.0) for number in range(2)]
