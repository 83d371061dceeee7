"""Text from strangers made harmless where it is shown: a terminal, a log, a page, Markdown, Python.

It knows letters and quotes, not what is shown; escaping for HTML is the business of the templates.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

__all__ = ["clipped", "code_span", "json_block", "quoted", "table", "visible"]

_HARMLESS = "\u200c\u200d\u00a0"
"""Joiners, which Persian and emoji need, and the space that does not break."""


def visible(text: str, keep: str = "\n\t") -> str:
    """Text whose control letters, direction marks and broken halves show as their code, such as ``‹U+202E›``.

    Spaces of every width become plain spaces. Letters in ``keep``, joiners and no-break spaces stay.
    """
    if text.isprintable():
        return text
    letters = []
    for letter in text:
        if letter.isprintable() or letter in keep or letter in _HARMLESS:
            letters.append(letter)
        else:
            letters.append(" " if unicodedata.category(letter) == "Zs" else f"‹U+{ord(letter):04X}›")
    return "".join(letters)


def clipped(text: str, most: int) -> str:
    """One line of at most so many letters; a longer one ends in an ellipsis."""
    line = " ".join(visible(text).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def quoted(text: str) -> str:
    """Text in double quotes, in ASCII and without backticks: the same text to YAML and to Python."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "`": "\\x60"}
    plain = {letter: letter for letter in map(chr, range(0x20, 0x7F))} | escapes
    return '"' + "".join(plain.get(letter, f"\\U{ord(letter):08x}") for letter in text) + '"'


def code_span(text: str) -> str:
    """Inline code in Markdown that no text can break out of, also in a table; backticks become escapes."""
    if not text.strip():
        return "(empty)"
    return "`" + _escaped(text).replace("`", "\\u0060").replace("|", "\\|") + "`"


def json_block(value: Any) -> str:
    """A fenced block of JSON in Markdown: within it no line can start with a fence."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return f"```json\n{_escaped(text, keep=chr(10))}\n```"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are safe already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str, keep: str = "") -> str:
    """Line breaks, direction marks and the like as JSON escapes, so that JSON stays JSON."""
    return "".join(c if c.isprintable() or c in keep else json.dumps(c)[1:-1] for c in text)
