"""The verb ``export``: a saved prompt in, a folder that PEFT loads out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from softprompt.cli.options import json_option, library_option

if TYPE_CHECKING:
    from softprompt.library.folder import Artifact

__all__ = ["command"]

README = "README.md"


@click.command("export")
@click.argument("name")
@click.argument("folder")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export there.")
@library_option
@json_option
def command(name: str, folder: str, overwrite: bool, library: str, as_json: bool) -> None:
    """Write a saved prompt as a plain PEFT folder."""
    from softprompt.cli import screen
    from softprompt.library.folder import Library

    artifact = Library(library).load(name)
    target = Path(folder).expanduser()
    write(artifact, target, overwrite=overwrite)
    files = sorted(file.name for file in target.iterdir())
    if as_json:
        screen.print_json({"name": name, "path": str(target), "files": files})
        return
    base = artifact.peft_config["base_model_name_or_path"]
    screen.out().print(
        screen.clean(
            f"Wrote {', '.join(files)} to {target}.\n"
            f'In PEFT: PeftModel.from_pretrained(model, "{target}"), where model is {base}.'
        ),
        soft_wrap=True,
    )


def write(artifact: Artifact, target: Path, *, overwrite: bool = False) -> None:
    """Write PEFT's two files and a README into ``target``, whole or not at all.

    Raises:
        ConfigError: something is there that is not to be replaced.
        ResourceError: the disk refuses.
    """
    from softprompt.atomic import new_folder, write_bytes
    from softprompt.library import peft_format
    from softprompt.library.model_card import model_card

    _check(target, overwrite)
    about = artifact.peft_config
    with new_folder(target, replace=True) as staging:
        peft_format.write(
            staging, artifact.learnt, about["base_model_name_or_path"] or "", about.get("revision")
        )
        if artifact.card is not None:
            write_bytes(staging / README, model_card(artifact.card).encode())


def _check(target: Path, overwrite: bool) -> None:
    """Let only an empty folder or, if asked for, an earlier export be replaced."""
    from softprompt.errors import ConfigError
    from softprompt.library.peft_format import CONFIG_FILE, WEIGHTS_FILE

    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or target.is_symlink():
        raise ConfigError(f"{target} is in the way and is no folder; choose another one.")
    there = {file.name for file in target.iterdir()}
    if there - {CONFIG_FILE, WEIGHTS_FILE, README}:
        raise ConfigError(f"{target} holds other files, so it is not replaced; choose a new folder.")
    if there and not overwrite:
        raise ConfigError(f"{target} exists already; choose another folder, or replace it with --overwrite.")
