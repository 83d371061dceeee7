"""A drawing becomes part of a page, and keeps what it shows."""

from __future__ import annotations

from softprompt.report.svg import inline


def test_svg_keeps_text_that_looks_like_a_colour() -> None:
    source = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="5pt" height="5pt" viewBox="0 0 5 5">'
        '<metadata/><g id="a"><g id="b"/><text style="fill: #010101; font-family: X" x="1.23456">'
        "#010101</text></g></svg>"
    )
    assert inline(source, "p", 'a "b"', {"#010101": "var(--ink)"}) == (
        '<svg viewBox="0 0 5 5" role="img" aria-label="a &quot;b&quot;">'
        '<text style="fill: var(--ink);" x="1.2">#010101</text></svg>'
    )
