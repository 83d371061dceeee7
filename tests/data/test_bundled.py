from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from softprompt import wheels
from softprompt.data import bundled
from softprompt.data.sources import read
from softprompt.data.table import Table
from softprompt.demo import OPENINGS
from softprompt.errors import DataError, ResourceError

DIGESTS = {
    "bbc-news": ("a6409eab3018", "f3c68a140144", "79feb784a3f5"),
    "quotes": ("bcfa485b71f4", "ca9df2c49da2", "21c7a507dda3"),
    "roles": ("1b60c59793ec", "6688f49b9d84", "10b08ce25215"),
}


def parts(name: str) -> list[Table]:
    return [read(f"bundled:{name}/{split}") for split in bundled.SPLITS]


@pytest.mark.parametrize("name", bundled.NAMES)
def test_the_splits_never_change(name: str) -> None:
    assert tuple(part.digest[:12] for part in parts(name)) == DIGESTS[name]


@pytest.mark.parametrize("name", bundled.NAMES)
def test_no_text_stands_twice(name: str) -> None:
    texts = [" ".join(str(row["text"]).lower().split()) for part in parts(name) for row in part.rows]
    assert len(set(texts)) == len(texts)
    letters = [re.sub(r"\W", "", text) for text in texts]
    assert len(set(letters)) == len(letters)


def test_no_article_stands_twice_under_two_headlines() -> None:
    texts = {str(row["text"]) for part in parts("bbc-news") for row in part.rows}
    assert len(texts & {"Text message record smashed", "Text message record smashed again"}) < 2


def test_bbc_news() -> None:
    train, validation, test = parts("bbc-news")
    assert (len(train), len(validation), len(test)) == (500, 200, 500)
    topics = {"business", "entertainment", "politics", "sports", "tech"}
    for part in (train, validation, test):
        counts = Counter(row["label"] for row in part.rows)
        assert set(counts) == topics
        assert max(counts.values()) < 0.26 * len(part)
        assert all(set(row) == {"text", "label"} for row in part.rows)
        assert all("\ufffd" not in str(row["text"]) and str(row["text"]).strip() for row in part.rows)
    assert train.origin == "bundled:bbc-news/train"


def test_quotes() -> None:
    train, validation, test = parts("quotes")
    assert (len(train), len(validation)) == (220, 40)
    assert len(test) >= 40
    assert all(set(row) == {"text", "author"} for row in train.rows)


@pytest.mark.parametrize("name", ["bbc/train", "bbc-news", "bbc-news/dev", "", "quotes/train/x"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(DataError, match="bbc-news, quotes, roles; the splits train, validation, test"):
        read(f"bundled:{name}")


def test_articles_of_either_encoding() -> None:
    row, keys = bundled._article("A  £5 deal\r\n\r\nBody £".encode(), "tech")
    assert row == {"text": "A £5 deal", "label": "tech"}
    assert bundled._article("A £5 deal\n\nBody £".encode("cp1252"), "tech") == (row, keys)


def test_roles() -> None:
    train, validation, test = parts("roles")
    assert (len(train), len(validation), len(test)) == (23, 6, 10)
    texts = [str(row["text"]) for part in (train, validation, test) for row in part.rows]
    assert all(text.startswith(("I want you to ", "I would like you to ")) for text in texts)
    assert not any("Chinese" in text or "\0" in text or "My first request" in text for text in texts)


def test_no_role_is_one_the_demo_asks_for() -> None:
    """Above all not the motivational coach, which the tutorials test with."""
    texts = " ".join(str(row["text"]).casefold() for part in parts("roles") for row in part.rows)
    for asked in OPENINGS["roles"]:
        assert asked.casefold().rstrip(".") not in texts
    assert "motivational coach" not in texts


MODULE = """
import os
os.environ["ROLES_WERE_RUN"] = "yes"
class A:
    def __init__(self, requirement="x"):
        self.english = f\'\'\'%s\'\'\'
        self.chinese = "no"
"""


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            'I want you to act as a cook. I  bake.\n Eat! My first request is "{requirement}"',
            "I want you to act as a cook. I bake. Eat!",
        ),
        (
            "I would like you to be {{a}} cook, respond in Chinese and bake. Please respond in Chinese.",
            "I would like you to be {a} cook and bake.",
        ),
        ("I want you to act as 'OK.' My request: {requirement}.", "I want you to act as 'OK.'"),
        ("I want you to act as {requirement} does.", None),
        ("I want you to act as a motivational coach. I will ask.", None),
        ("You are a cook.", None),
        ("I want you to wait" + " and wait" * 60 + ".", None),
    ],
)
def test_roles_are_read_out_of_source_that_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: str | None
) -> None:
    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("gpt_prompt/character/cook.py", MODULE % source)
        wheel.writestr("gpt_prompt/readme.py", "not python")
    monkeypatch.delenv("ROLES_WERE_RUN", raising=False)
    with zipfile.ZipFile(path) as wheel:
        found = bundled._role_prompts(wheel)
    assert [row["text"] for row, _ in found] == ([] if text is None else [text])
    assert "ROLES_WERE_RUN" not in os.environ


def test_a_damaged_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.whl"
    path.write_bytes(b"no zip")
    monkeypatch.setattr(wheels, "fetch", lambda wheel: path)
    with pytest.raises(ResourceError, match=r"is damaged: delete it"):
        read("bundled:quotes/train")
