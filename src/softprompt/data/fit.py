"""An input within its room: knows letters, fields and a limit, not rows, targets or labels.

A text that is too long loses letters at the start of its fields, the longest field first; the template's own
words are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from softprompt.data.template import Template
from softprompt.errors import DataError

__all__ = ["Encode", "Ids", "fit_input", "own_words", "room_for_target"]

Encode = Callable[[str], list[int]]
Ids = tuple[int, ...]

# How many letters a cut may give up to begin at a whole word.
_WORD = 20


def fit_input(
    template: Template, values: Mapping[str, str], encode: Encode, max_tokens: int, reserve: int
) -> tuple[Ids, bool]:
    """The ids of the input within ``max_tokens - reserve``, and whether fields were cut for it."""
    room = max_tokens - reserve
    ids = encode(template.render_input(values))
    if len(ids) <= room:
        return tuple(ids), False
    return _cut(template, values, encode, room, max_tokens), True


def own_words(template: Template, encode: Encode) -> int:
    """How many tokens the template's own words have, which are never cut."""
    return len(encode(template.render_input(dict.fromkeys(template.input_fields, ""))))


def room_for_target(template: Template, values: Mapping[str, str], encode: Encode, max_tokens: int) -> int:
    """The tokens of a target that is to be cut: what the input leaves, which keeps half of them at most."""
    whole = len(encode(template.render_input(values)))
    return max_tokens - max(own_words(template, encode), min(whole, max_tokens // 2))


def _cut(template: Template, values: Mapping[str, str], encode: Encode, room: int, max_tokens: int) -> Ids:
    """The ids of the input when every field keeps its last n letters, for the greatest n found to fit.

    Cutting every field to one length shortens the longest first. Each try is measured on the whole rendered
    text; n is first doubled from a small start, so the cost follows the room and not the length of the row.
    """

    def tried(letters: int) -> Ids:
        kept = {column: _ending(value, letters) for column, value in values.items()}
        return tuple(encode(template.render_input(kept)))

    best = tried(0)
    if len(best) > room:
        raise DataError(
            f"The target and the template's own words alone have {max_tokens - room + len(best)} tokens, "
            f"more than the {max_tokens} allowed: raise max_tokens or shorten them{_or(max_tokens - room)}."
        )
    fits, longest = 0, max(map(len, values.values()), default=0)
    over = min(max(room, 1), longest)
    while over < longest and len(ids := tried(over)) <= room:
        fits, best = over, ids
        over = min(2 * over, longest)
    while over - fits > 1:
        middle = (fits + over) // 2
        if len(ids := tried(middle)) <= room:
            fits, best = middle, ids
        else:
            over = middle
    return best


def _or(reserve: int) -> str:
    return ", or let data.long_targets drop or cut such rows" if reserve else ""


def _ending(value: str, letters: int) -> str:
    """The last ``letters`` of ``value``, fewer where that begins at a whole word."""
    start = len(value) - letters
    if start <= 0:
        return value
    if letters > _WORD and not value[start - 1].isspace():
        space = next((i for i in range(start, start + _WORD) if value[i].isspace()), start)
        return value[space:].lstrip()
    return value[start:]
