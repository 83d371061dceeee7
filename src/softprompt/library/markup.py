"""Untrusted text in Markdown, YAML and Python: knows how to quote, not what is quoted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

__all__ = ["code_span", "json_block", "quoted", "table"]

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "`": "\\x60"}


def quoted(text: str) -> str:
    """Text in double quotes, in ASCII and without backticks: the same text to YAML and to Python."""
    return '"' + "".join(map(_quoted_letter, text)) + '"'


def code_span(text: str) -> str:
    """Inline code that no text can break out of, also in a table; a backtick becomes an escape."""
    if not text.strip():
        return "(empty)"
    return "`" + _visible(text).replace("`", "\\u0060").replace("|", "\\|") + "`"


def json_block(value: Any) -> str:
    """A fenced block of JSON: within it no line can start with a fence."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return f"```json\n{_visible(text, keep=chr(10))}\n```"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are safe already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _visible(text: str, keep: str = "") -> str:
    """Line breaks, direction marks and the like as JSON escapes."""
    return "".join(c if c.isprintable() or c in keep else json.dumps(c)[1:-1] for c in text)


def _quoted_letter(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if " " <= letter <= "~":
        return letter
    return f"\\U{ord(letter):08x}"
