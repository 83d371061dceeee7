"""The verb ``push``: a saved prompt in, a repository on the model hub out."""

from __future__ import annotations

import click

from softprompt.cli.options import examples, json_option, library_option

__all__ = ["command"]

EXAMPLES = """
softprompt push topics me/topics --private
softprompt generate hub:me/topics "Rates cut as growth slows"
"""


@click.command("push", epilog=examples(EXAMPLES))
@click.argument("name")
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Only for you and whom you let in.")
@library_option
@json_option
def command(name: str, repo: str, private: bool, library: str, as_json: bool) -> None:
    """Put a saved prompt, adapter or model on the model hub; `hub:OWNER/NAME` then stands for it.

    You must be logged in (`hf auth login`). Paths of this machine are left out of what is put there.
    """
    from softprompt.cli import screen
    from softprompt.errors import ArtifactError
    from softprompt.library.folder import Library
    from softprompt.library.share import push

    artifact = Library(library).load(name)
    if artifact.card is None:
        again = screen.command_line("import", str(artifact.path), "--name", "NAME")
        raise ArtifactError(f"{name} has no card; bring it in with `{again}`.")
    with screen.waiting(f"Pushing {name}"):
        address = push(artifact.path, artifact.card, repo, private=private)
    if as_json:
        screen.print_json({"name": name, "repo": repo, "url": address})
        return
    screen.out().print(screen.clean(f"{name} is at {address}; it loads as hub:{repo}."), soft_wrap=True)
