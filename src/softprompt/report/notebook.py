"""Small tables for notebooks, as HTML; what stands in them comes from strangers and is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from softprompt.harmless import visible

__all__ = ["grid_html"]


def grid_html(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """A table under a title; the first column is read along, the others hold numbers."""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in heads)
    body = "".join(f"<tr>{''.join(_cell(cell, i > 0) for i, cell in enumerate(row))}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    below = f"<div>{_text(note)}</div>" if note else ""
    return f"<div><strong>{_text(title)}</strong></div>{table}{below}"


def _cell(text: str, number: bool) -> str:
    return f'<td style="text-align:{"right" if number else "left"}">{_text(text)}</td>'


def _text(text: str) -> str:
    return escape(visible(text))
