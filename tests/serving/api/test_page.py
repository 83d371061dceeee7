"""What a person at the page sees is what the engine says, as text, and the page asks only its own server."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest

from browser import serious
from serving.api import house
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import freeze
from softprompt.library.prompt import Prompt
from softprompt.serving.api.app import create_app
from softprompt.serving.api.page import POLICY, page_routes
from softprompt.serving.engine import Engine
from softprompt.serving.keys import KeyRing
from softprompt.serving.service import Service

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
TEXT = "Shares fell as rates rose"
HOSTILE = "<img src=x onerror=alert(1)>"
WEB = files("softprompt.serving.api") / "web"


# -- a server and a browser ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with house.running(create_app(Service(engine), page=page_routes)) as address:
        yield address


@pytest.fixture(scope="module")
def secret() -> tuple[KeyRing, str]:
    """A ring with one key, for one prompt and the base."""
    return KeyRing().add("reader", prompts=("free", house.base().name))


@pytest.fixture(scope="module")
def keyed(engine: Engine, secret: tuple[KeyRing, str]) -> Iterator[str]:
    with house.running(create_app(Service(engine), keys=secret[0], page=page_routes)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    # One module long: as long as it runs, this thread has an event loop of its own.
    with api.sync_playwright() as player:
        made = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


class Seat:
    """A person at the page: what they do, and what the page asked for and complained of meanwhile."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.troubles: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", lambda said: self.troubles.append(said.text) if said.type == "error" else None)
        page.on("dialog", self._interrupted)

    def _interrupted(self, box: Any) -> None:
        self.troubles.append(f"a dialog: {box.message}")
        box.dismiss()

    def visit(self, url: str, *columns: str) -> Seat:
        """Open the page and choose columns, where they are named."""
        self.page.goto(url)
        if columns:
            self.page.wait_for_selector(".column")
            self.choose(*columns)
        return self

    def choose(self, *columns: str) -> None:
        page = self.page
        page.get_by_role("button", name="Choose prompts").click()
        for box in page.locator("#shelf input").all():
            box.uncheck()
        for name in columns:
            page.locator("#shelf label").filter(has=page.get_by_text(name, exact=True)).locator(
                "input"
            ).check()
        page.get_by_role("button", name="Done").click()

    def ask(self, text: str) -> None:
        """Type and ask, and wait until every column has ended."""
        self.page.get_by_label("Text", exact=True).fill(text)
        self.page.keyboard.press("Control+Enter")
        self.settle()

    def settle(self) -> None:
        self.page.locator("#stop:disabled").wait_for()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what no locator says; the page's policy keeps Playwright's ``wait_for_function`` out."""
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(10)

    def column(self, name: str) -> Any:
        return self.page.get_by_role("region", name=name, exact=True)

    def answer(self, name: str) -> str:
        return str(self.column(name).locator(".answer").evaluate("node => node.textContent"))

    def bars(self, name: str) -> list[tuple[str, str]]:
        rows = self.column(name).locator(".bars li").all()
        return [(row.locator(".label").inner_text(), row.locator(".share").inner_text()) for row in rows]


def percents(shares: dict[str, float]) -> list[tuple[str, str]]:
    """Labels with their shares as the page writes them; only what is certain is 100 %."""

    def words(share: float) -> str:
        if 0 < share < 0.001:
            return "< 0.1 %"
        return "> 99.9 %" if 0.999 < share < 1 else f"{100 * share:.1f} %"

    return [(label, words(share)) for label, share in shares.items()]


@pytest.fixture
def seat(browser: Any) -> Iterator[Seat]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    yield Seat(context.new_page())
    context.close()


# -- files and cards ----------------------------------------------------------------------------------


def test_every_file_is_served_under_the_strict_policy(url: str) -> None:
    for file in WEB.iterdir():
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        reply = httpx.get(url + path)
        assert reply.status_code == 200, path
        assert reply.content == file.read_bytes()
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert httpx.head(url + path).status_code == 200
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY


def test_the_markup_holds_no_script_style_or_foreign_address() -> None:
    markup = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", markup)
    assert all(script.endswith("></script>") for script in re.findall(r"<script.*", markup))
    code = "".join(file.read_text(encoding="utf-8") for file in WEB.iterdir())
    assert set(re.findall(r"https?://[^\s\"']*", code)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, not a request
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", code)


def test_a_card_tells_template_and_base_but_not_where_the_data_lay(
    url: str, prompts: dict[str, Prompt]
) -> None:
    told = httpx.get(f"{url}/v1/cards/choices").json()
    about = prompts["choices"].card.template
    assert told["base"] == {
        "name": "tiny-chat",
        "fingerprint": house.base().fingerprint,
        "model_type": "llama",
        "dtype": "float32",
        "positions": 512,
    }
    assert (told["template"]["front"], told["template"]["input"]) == (about.front, about.input)
    assert (told["template"]["choice_columns"], told["template"]["choice_list"]) == (["options"], True)
    assert set(told) == {"id", "base", "template"}
    assert httpx.get(f"{url}/v1/cards/tiny-chat").json()["template"] is None
    assert httpx.get(f"{url}/v1/cards/unheard").status_code == 404


def test_cards_ask_for_a_key_and_show_only_what_it_allows(keyed: str, secret: tuple[KeyRing, str]) -> None:
    bearer = {"authorization": f"Bearer {secret[1]}"}
    assert httpx.get(f"{keyed}/").status_code == 200  # it holds nothing
    assert httpx.get(f"{keyed}/v1/cards/free").status_code == 401
    assert httpx.get(f"{keyed}/v1/cards/free", headers=bearer).status_code == 200
    assert httpx.get(f"{keyed}/v1/cards/topics", headers=bearer).status_code == 404


# -- asking -------------------------------------------------------------------------------------------


def test_columns_show_what_the_engine_answers_and_nothing_leaves_the_origin(
    seat: Seat, url: str, engine: Engine, prompts: dict[str, Prompt]
) -> None:
    names = ["topics", "free", "tiny-chat"]
    seat.visit(url, *names)
    seat.page.get_by_role("button", name="Up to 64 tokens").click()
    seat.page.get_by_label("Most new tokens").fill("24")
    seat.ask(TEXT)
    asks = [(None if name == "tiny-chat" else name, TEXT) for name in names]
    assert [seat.answer(name) for name in names] == engine.generate(asks, max_new_tokens=24)

    shares = prompts["topics"].classify(TEXT)
    assert seat.bars("topics") == percents(shares)
    assert seat.bars("free") == []
    widths = (
        seat.column("topics")
        .locator(".fill")
        .evaluate_all("fills => fills.map(fill => fill.offsetWidth / fill.parentNode.offsetWidth)")
    )
    assert widths == pytest.approx(list(shares.values()), abs=0.01)

    measured = seat.column("free").locator(".measured").inner_text()
    assert re.search(r"First token\s+[\d,]+ ms\s+Speed", measured)
    assert re.search(r"Read\s+\d+ tokens\s+and 4 virtual\s+Wrote\s+24 tokens\s+cut at your limit", measured)
    assert all(request.startswith(f"{url}/") for request in seat.requests)
    assert seat.troubles == []
    assert "free: " in seat.page.locator("#status").inner_text()  # said to those who cannot see it


def test_an_answer_is_seen_while_it_is_written_and_stops_when_told(
    seat: Seat, url: str, engine: Engine
) -> None:
    seat.visit(url, "free", "tiny-chat")
    seat.page.get_by_role("button", name="Up to 64 tokens").click()
    seat.page.get_by_label("Most new tokens").fill("440")
    seat.page.get_by_label("Text", exact=True).fill(TEXT)
    seat.page.get_by_role("button", name="Ask").click()
    seat.until(lambda: len(seat.answer("tiny-chat")) > 5)
    assert seat.column("tiny-chat").locator(".answer").get_attribute("aria-busy") == "true"
    seat.page.keyboard.press("Escape")
    said = seat.answer("tiny-chat")
    assert "Stopped" in seat.column("tiny-chat").inner_text()
    assert seat.column("tiny-chat").locator(".answer").get_attribute("aria-busy") is None
    (whole,) = engine.generate([(None, TEXT)], max_new_tokens=440)
    assert whole.startswith(said)
    assert len(said) < len(whole)
    seat.page.wait_for_timeout(300)
    assert seat.answer("tiny-chat") == said
    assert engine.state().running == 0
    seat.page.get_by_label("Most new tokens").fill("8")
    seat.ask(TEXT)  # and answers again
    assert seat.answer("tiny-chat") == whole[: len(seat.answer("tiny-chat"))] != ""


def test_a_seed_fixes_what_is_drawn(seat: Seat, url: str) -> None:
    seat.visit(url, "free")
    seat.page.get_by_role("button", name="Up to 64 tokens").click()
    seat.page.get_by_label("Temperature").fill("1.5")
    said = []
    for seed in ("7", "7", "8"):
        seat.page.get_by_label("Seed").fill(seed)
        seat.ask(TEXT)
        said.append(seat.answer("free"))
    assert said[0] == said[1] != said[2]
    assert seat.page.locator("#drawn").inner_text() == "Up to 64 tokens, temperature 1.5, seed 8"


def test_rows_of_several_columns_and_choices_are_typed_by_column(
    seat: Seat, url: str, prompts: dict[str, Prompt]
) -> None:
    seat.visit(url, "pairs", "choices")
    seat.page.get_by_label("premise").fill("A cat sleeps")
    seat.page.get_by_label("hypothesis").fill("An animal rests")
    seat.page.get_by_label("options").fill("red\n\ndeep blue\n")
    seat.ask(TEXT)
    pairs = prompts["pairs"].classify({"premise": "A cat sleeps", "hypothesis": "An animal rests"})
    assert seat.bars("pairs") == percents(pairs)
    choices = prompts["choices"].classify({"text": TEXT, "options": ["red", "deep blue"]})
    assert seat.bars("choices") == percents(choices)
    seat.choose("pairs")
    assert not seat.page.get_by_label("Text", exact=True).is_visible()
    assert not seat.page.get_by_label("options").is_visible()


def test_a_refusal_is_shown_in_words_in_its_column(seat: Seat, url: str) -> None:
    seat.visit(url, "tiny-chat", "free")
    seat.ask("x" * 600)
    assert "This model holds 512 positions" in seat.column("tiny-chat").get_by_role("alert").inner_text()
    assert seat.answer("free") != ""  # each column for itself
    seat.ask("short")
    assert seat.column("tiny-chat").get_by_role("alert").count() == 0


def test_a_server_that_is_gone_is_told_in_words(seat: Seat, engine: Engine) -> None:
    with house.running(create_app(Service(engine), page=page_routes)) as url:
        seat.visit(url, "free", "topics")
    seat.ask("hello")
    for name in ("free", "topics"):
        said = seat.column(name).get_by_role("alert").inner_text()
        assert said == "The server cannot be reached; see whether it still runs."


# -- cards, strangers' text, keys and screens ---------------------------------------------------------


def test_a_card_opens_beside_its_column(seat: Seat, url: str, engine: Engine) -> None:
    seat.visit(url, "topics", "tiny-chat")
    seat.ask(TEXT)
    column = seat.column("topics")
    column.get_by_role("button", name="Card of topics").click()
    card = column.get_by_role("region", name="Card of topics")
    card.locator(".facts").wait_for()
    text = card.inner_text()
    with engine.registry.lease("topics") as version:
        assert version.digest[:12] in text
    for part in ("prompt tuning", "tiny-chat, float32", "Headline: {text}\nTopic:", "business → money"):
        assert part in text
    assert re.search(r"test\s+400 rows\s+accuracy\s+0.800\s+0.758–0.836", text)
    left, right = column.locator(".told").bounding_box(), card.bounding_box()
    assert left["x"] + left["width"] <= right["x"]
    column.get_by_role("button", name="Card of topics").click()
    assert not card.is_visible()


def test_text_of_strangers_is_shown_as_text(seat: Seat, tmp_path: Path) -> None:
    base = house.base()
    named: Base = freeze(base.model, base.tokenizer, HOSTILE)
    words = {HOSTILE: "sport", "plain": "bits"}
    texts = {"input": f"{HOSTILE} {{text}}", "front": f"{HOSTILE}{{soft:4}}"}
    made = house.prompt("hostile", house.TEMPLATE | texts | {"labels": words})
    scores = {HOSTILE: {"rows": 3, HOSTILE: 0.5}}
    evil = made.card.model_copy(update={"scores": scores})
    Prompt(made.base, made.front, evil).save(tmp_path)
    engine = Engine(named, tmp_path, pack=False)
    with engine, house.running(create_app(Service(engine), page=page_routes)) as url:
        seat.visit(url, "hostile", HOSTILE)
        seat.ask(TEXT)
        seat.column("hostile").get_by_role("button", name="Card of hostile").click()
        seat.column(HOSTILE).get_by_role("button", name="Card of").click()
        seat.page.locator(".facts").nth(1).wait_for()
    text = seat.column("hostile").inner_text()
    assert HOSTILE in [label for label, _ in seat.bars("hostile")]
    assert f"{HOSTILE} → sport" in text
    assert f"{HOSTILE} {{text}}" in text
    assert f"{HOSTILE} 3 rows" in text
    assert seat.page.locator("img").count() == 0
    assert seat.page.get_by_role("heading", name=HOSTILE, exact=True).is_visible()
    assert seat.troubles == []


def test_the_browser_itself_keeps_markup_and_foreign_addresses_out(seat: Seat, url: str, keyed: str) -> None:
    seat.visit(url).page.wait_for_selector(".column")
    attempt = "() => { try { document.body.innerHTML = '<b>x</b>'; return '' } catch (e) { return e.name } }"
    assert seat.page.evaluate(attempt) == "TypeError"
    asking = "url => fetch(url, {mode: 'no-cors'}).then(() => 'answered', error => error.name)"
    assert seat.page.evaluate(asking, f"{url}/health") == "answered"
    assert seat.page.evaluate(asking, f"{keyed}/health") == "TypeError"  # it is there, on another port


def test_a_key_is_asked_for_and_kept_in_this_tab_only(
    seat: Seat, keyed: str, secret: tuple[KeyRing, str]
) -> None:
    page = seat.visit(keyed).page
    page.get_by_label("API key").fill("sp-wrong")
    page.get_by_role("button", name="Use key").click()
    page.get_by_text("not known here").wait_for()
    page.get_by_label("API key").fill(f" {secret[1]}\n")
    page.keyboard.press("Enter")
    page.wait_for_selector(".column")
    assert page.locator("h2:visible").all_inner_texts() == ["free", "tiny-chat"]
    seat.ask("hello")
    assert seat.answer("free") != ""
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert secret[1] not in " ".join(seat.requests) + page.content()
    page.reload()
    page.wait_for_selector(".column")
    page.get_by_role("button", name="Forget key").click()
    page.get_by_label("API key").wait_for()
    assert page.evaluate("Object.values(sessionStorage).join()").find(secret[1]) < 0


@pytest.mark.parametrize("width", [320, 400, 700, 1280])
def test_nothing_overlaps_or_runs_over_the_side(seat: Seat, url: str, width: int) -> None:
    seat.page.set_viewport_size({"width": width, "height": 800})
    seat.visit(url, "topics", "choices", "pairs", "tiny-chat").ask("unbroken" * 12)
    for button in seat.page.get_by_role("button", name="Card of").all():
        button.click()
    seat.page.locator(".facts").nth(3).wait_for()
    assert seat.page.evaluate("document.documentElement.scrollWidth") == width
    boxes = seat.page.locator(".head, .told > *, .card, #composer .field, #composer button").evaluate_all(
        """nodes => nodes.map(node => node.getBoundingClientRect()).filter(box => box.width && box.height)
               .map(box => [box.left, box.top, box.right, box.bottom])"""
    )
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert right <= width
        for other in boxes[:number]:
            apart = (
                other[2] <= left + 1 or right <= other[0] + 1 or other[3] <= top + 1 or bottom <= other[1] + 1
            )
            assert apart, (other, boxes[number])


def test_the_choice_is_found_by_words_and_remembered(seat: Seat, url: str) -> None:
    seat.visit(url, "tuned", "topics").page.reload()
    seat.page.wait_for_selector(".column")
    assert seat.page.locator("h2:visible").all_inner_texts() == ["tuned", "topics"]
    seat.page.get_by_role("button", name="Choose prompts").click()
    seat.page.get_by_label("Find a prompt").fill("lora 2 positions")
    assert seat.page.locator("#shelf b").all_inner_texts() == ["tuned"]
    seat.page.get_by_label("Find a prompt").fill("business")
    assert seat.page.locator("#shelf b").all_inner_texts() == ["careful", "pairs", "topics", "tuned"]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_axe_finds_nothing_serious(browser: Any, url: str, width: int, dark: bool) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe is not installed")
    assert serious(browser, url, width=width, dark=dark) == []
