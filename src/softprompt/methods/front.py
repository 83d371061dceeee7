"""The front template: ``"You are a coach. {soft:20} Examples: {demos:4}"`` as a list of parts.

It knows the little language of fronts; it does not know models or tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from softprompt.errors import ConfigError

__all__ = ["Demos", "FrontPart", "Soft", "Words", "parse_front", "with_demonstrations"]


@dataclass(frozen=True)
class Words:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Soft:
    """A run of ``count`` learnt virtual tokens."""

    count: int


@dataclass(frozen=True)
class Demos:
    """``count`` solved examples from the training rows."""

    count: int


FrontPart = Words | Soft | Demos

_PART = re.compile(r"\{(soft|demos):(\d+)\}|(\{\{|\}\})|([{}][^{}]*\}?)", re.DOTALL)
_MOST = 4096


def parse_front(template: str) -> tuple[FrontPart, ...]:
    """Split a front template into its parts; ``{{`` and ``}}`` stand for braces.

    Raises:
        ConfigError: a brace that opens no ``{soft:N}`` or ``{demos:N}``, or an N out of range.
    """
    parts: list[FrontPart] = []
    text, end = "", 0
    for found in _PART.finditer(template):
        text += template[end : found.start()]
        end = found.end()
        kind, count, brace, other = found.groups()
        if other is not None:
            raise ConfigError(
                f"The front has {other!r}, but only {{soft:N}} and {{demos:N}} may stand in braces; "
                "write {{ and }} for plain braces."
            )
        if brace:
            text += brace[0]
            continue
        if not 1 <= int(count) <= _MOST:
            raise ConfigError(f"The front has {found.group()}, but N must be from 1 to {_MOST}.")
        parts += [Words(text)] if text else []
        parts.append(Soft(int(count)) if kind == "soft" else Demos(int(count)))
        text = ""
    text += template[end:]
    return (*parts, *([Words(text)] if text else []))


def with_demonstrations(
    parts: tuple[FrontPart, ...], demonstrations: Callable[[int], str]
) -> tuple[Words | Soft, ...]:
    """Replace every ``Demos`` by the text ``demonstrations(count)`` gives; words that meet become one."""
    filled: list[Words | Soft] = []
    for part in parts:
        plain = Words(demonstrations(part.count)) if isinstance(part, Demos) else part
        if filled and isinstance(plain, Words) and isinstance(filled[-1], Words):
            plain = Words(filled.pop().text + plain.text)  # type: ignore[union-attr]
        filled.append(plain)
    return tuple(filled)
