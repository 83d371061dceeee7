"""The verb ``rename``: a saved prompt's name in, another one on its folder and card."""

from __future__ import annotations

import click

from softprompt.cli.options import json_option, library_option

__all__ = ["command"]


@click.command("rename")
@click.argument("name")
@click.argument("new", metavar="NEWNAME")
@library_option
@json_option
def command(name: str, new: str, library: str, as_json: bool) -> None:
    """Give a saved prompt, adapter or model another name.

    API keys that allow the old name do not allow the new one by themselves.
    """
    from softprompt.cli import screen
    from softprompt.library.folder import Library

    shelf = Library(library)
    shelf.rename(name, new)
    path = shelf.where(new)
    if as_json:
        screen.print_json({"name": new, "was": name, "path": path})
        return
    screen.out().print(screen.clean(f"{name} is {new} now, in {path}."), soft_wrap=True)
