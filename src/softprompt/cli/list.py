"""The verb ``list``: a library in, a line for each of its artifacts out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from softprompt.cli.options import json_option, library_option, refuse_missing

if TYPE_CHECKING:
    from softprompt.library.folder import ListedArtifact

__all__ = ["command"]

_HEADS = ("name", "kind", "base", "positions", "valid.", "test", "size", "created")


@click.command("list")
@library_option
@json_option
def command(library: str, as_json: bool) -> None:
    """List the saved prompts, adapters and models."""
    from softprompt.cli import screen
    from softprompt.library.folder import Library

    refuse_missing(library)
    entries = Library(library).list()
    if as_json:
        screen.print_json({"library": library, "prompts": [_json(entry) for entry in entries]})
        return
    console = screen.out()
    if not entries:
        console.print(f"There are no prompts in {screen.clean(library)} yet; `softprompt train` makes one.")
    rows = [_row(entry) for entry in entries if entry.card is not None]
    if rows:
        screen.print_grid(_HEADS, rows, right=[3, 4, 5, 6])
    for entry in entries:
        if entry.fault is not None:
            console.print(
                f"{screen.clean(entry.name)} is broken. {screen.clean(entry.fault)}",
                style="red",
                soft_wrap=True,
            )


def _row(entry: ListedArtifact) -> tuple[str, ...]:
    from softprompt.cli.scores import headline
    from softprompt.cli.screen import bytes_text

    card = entry.card
    assert card is not None
    return (
        entry.name,
        card.kind.replace("-", " "),
        card.base.called,
        str(card.positions),
        headline(card.scores.get("validation", {})),
        headline(card.scores.get("test", {})),
        bytes_text(entry.nbytes),
        card.created[:10],
    )


def _json(entry: ListedArtifact) -> dict[str, object]:
    if entry.card is None:
        return {"name": entry.name, "fault": entry.fault}
    card = entry.card
    return {
        "name": entry.name,
        "kind": card.kind,
        "base": card.base.name,
        "positions": card.positions,
        "scores": card.scores,
        "bytes": entry.nbytes,
        "created": card.created,
    }
