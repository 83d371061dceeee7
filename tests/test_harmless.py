"""Text from strangers is shown as what it is."""

from __future__ import annotations

import re

import pytest
import yaml

from library.samples import NASTY
from softprompt.harmless import clipped, code_span, quoted, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain", "plain"), ("a\u202eb", "a‹U+202E›b"), ("\x00\n\t", "‹U+0000›\n\t"), ("\ud800", "‹U+D800›"),
     ("a\u3000b\u2003c", "a b c"), ("می\u200cشود \u00a0👩\u200d🚀", "می\u200cشود \u00a0👩\u200d🚀"),
     ("\u2066\u2069\u200f\ufeff", "‹U+2066›‹U+2069›‹U+200F›‹U+FEFF›")],
)  # fmt: skip
def test_what_is_invisible_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_clipped_text_is_one_line_of_that_length() -> None:
    assert clipped("a  b\nc", 5) == "a b c"
    assert clipped("abcdefgh", 5) == "abcd…"


@pytest.mark.parametrize("text", [NASTY, "", "\x85\u2029\ufeff\U0001f600", "plain"])
def test_quoting_is_undone_by_reading(text: str) -> None:
    assert yaml.safe_load(f"a: {quoted(text)}") == {"a": text}
    assert eval(quoted(text)) == text
    assert quoted(text).isascii()
    assert quoted(text).isprintable()
    assert "`" not in quoted(text)


@pytest.mark.parametrize("text", [NASTY, "`", "a``b", "\n", "  "])
def test_a_code_span_is_one_span(text: str) -> None:
    span = code_span(text)
    assert span == "(empty)" or (span[0] == span[-1] == "`" and "`" not in span[1:-1])
    assert re.search(r"(?<!\\)\|", span) is None
