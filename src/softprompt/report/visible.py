"""Text from strangers made plain to see: nothing invisible, nothing that turns the direction of what follows.

It knows letters; escaping for HTML, JSON or SVG is the business of those who write them.
"""

from __future__ import annotations

import unicodedata

__all__ = ["clipped", "visible"]

_HARMLESS = "\u200c\u200d\u00a0"
"""Joiners, which Persian and emoji need, and the space that does not break."""


def visible(text: str, keep: str = "\n\t") -> str:
    """Text whose control letters, direction marks and broken halves show as their code, such as ``‹U+202E›``.

    Spaces of every width become plain spaces. Letters in ``keep``, joiners and no-break spaces stay.
    """
    return "".join(_shown(letter, keep) for letter in text) if not text.isprintable() else text


def _shown(letter: str, keep: str) -> str:
    if letter.isprintable() or letter in keep or letter in _HARMLESS:
        return letter
    if unicodedata.category(letter) == "Zs":
        return " "
    return f"‹U+{ord(letter):04X}›"


def clipped(text: str, most: int) -> str:
    """One line of at most so many letters; a longer one ends in an ellipsis."""
    line = " ".join(visible(text).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"
