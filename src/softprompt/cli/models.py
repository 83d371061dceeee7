"""The verb ``models``: the bases that come by name, and whether they are here."""

from __future__ import annotations

from dataclasses import asdict

import click

from softprompt.cli.options import json_option

__all__ = ["command"]


@click.command("models")
@click.option("--fetch", metavar="NAME", help="Download and convert this one now.")
@json_option
def command(fetch: str | None, as_json: bool) -> None:
    """List the base models that come by name, or fetch one."""
    from softprompt.checkpoints.catalog import bundled, entries
    from softprompt.cli import screen

    if fetch is not None:
        with screen.waiting(f"Fetching {fetch}"):
            folder = bundled(fetch, notify=screen.say)
        screen.say(f"{fetch} is in {folder}.")
    if as_json:
        screen.print_json({"models": [asdict(entry) for entry in entries()]})
        return
    rows = [
        (
            entry.name,
            f"{entry.parameters / 1e6:,.0f} M",
            screen.bytes_text(entry.download_size),
            entry.licence,
            "yes" if entry.fetched else "no; fetched when first used",
        )
        for entry in entries()
    ]
    console = screen.out()
    screen.print_grid(("name", "parameters", "download", "licence", "fetched"), rows, right=[1, 2])
    console.print("A hub id, a folder with config.json or a .gguf file may stand wherever a name may.")
