"""Which part of a front shows a solved row: positions that the row itself must not see while it is learnt.

A row that stands among its own front's demonstrations finds its answer there, so it teaches how to copy. Read
without its own one, every training row is to the demonstrations what a new row will be. It knows text and
tokens, not rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.base.model import Base

__all__ = ["spans"]


def spans(base: Base, text: str, shown: Sequence[str]) -> list[tuple[int, int]]:
    """Where each text shown stands among a front's positions: from the first up to the second.

    A token that holds the end of one and the beginning of the next belongs to both.

    Args:
        base: whose tokens the front is in, behind what the tokenizer sets first.
        text: the whole front.
        shown: parts of it, in their order.
    """
    whole, found, end = base.opening(text), list[tuple[int, int]](), 0
    for part in shown:
        begin = text.index(part, end)
        end = begin + len(part)
        first, _ = _agree(base, text[:begin], whole)
        agreed, every = _agree(base, text[:end], whole)
        found.append((first, agreed if every else agreed + 1))
    return found


def _agree(base: Base, text: str, whole: Sequence[int]) -> tuple[int, bool]:
    """How many of the front's tokens a beginning of it has, and whether it ends with one of them."""
    own = base.opening(text)
    count = next((n for n, (a, b) in enumerate(zip(own, whole, strict=False)) if a != b), len(own))
    return count, count == len(own)
