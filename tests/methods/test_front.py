"""The little language of fronts."""

from __future__ import annotations

import pytest

from softprompt.errors import ConfigError
from softprompt.methods.front import Demos, Soft, Words, parse_front, with_demonstrations


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("", ()),
        ("{soft:20}", (Soft(20),)),
        ("You are a coach. {soft:2}", (Words("You are a coach. "), Soft(2))),
        ("{soft:1} Examples: {demos:4}\n", (Soft(1), Words(" Examples: "), Demos(4), Words("\n"))),
        ("a {{b}} {soft:3}", (Words("a {b} "), Soft(3))),
    ],
)
def test_parts(template: str, parts: tuple[object, ...]) -> None:
    assert parse_front(template) == parts


@pytest.mark.parametrize(
    "template", ["{soft}", "{soft:x}", "{text}", "{", "}", "{soft:0}", "{soft:99999}", "{a.b}"]
)
def test_anything_else_in_braces_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="front"):
        parse_front(template)


def test_demonstrations_become_words_and_melt_with_their_neighbours() -> None:
    parts = with_demonstrations(parse_front("Do this: {demos:2}Now {soft:1}"), lambda k: f"<{k}> ")
    assert parts == (Words("Do this: <2> Now "), Soft(1))
