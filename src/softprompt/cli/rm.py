"""The verb ``rm``: names of saved prompts in, their folders gone."""

from __future__ import annotations

import click

from softprompt.cli.options import json_option, library_option

__all__ = ["command"]


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@library_option
@json_option
def command(names: tuple[str, ...], library: str, as_json: bool) -> None:
    """Remove saved prompts, adapters or models for good; where one is missing, none is removed."""
    from softprompt.cli import screen
    from softprompt.library.folder import Library

    shelf = Library(library)
    each = list(dict.fromkeys(names))
    for name in each:
        shelf.size(name)  # says so if there is none
    for name in each:
        shelf.remove(name)
    if as_json:
        screen.print_json({"library": library, "removed": each})
        return
    screen.out().print(screen.clean(f"Removed {', '.join(each)} from {library}."), soft_wrap=True)
