"""The verb ``export``: an artifact in, a folder that PEFT or transformers loads out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import BaseChoice, base_options, examples, json_option, library_option

if TYPE_CHECKING:
    from softprompt.library.folder import Artifact

__all__ = ["command"]

README = "README.md"

EXAMPLES = """
softprompt export topics topics-peft
softprompt export topics topics-model --merge
"""


@click.command("export", epilog=examples(EXAMPLES))
@click.argument("name")
@click.argument("folder")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export there.")
@click.option(
    "--cartridge", is_flag=True, help="Write a KV prefix as PEFT's CARTRIDGE, which PEFT can train on."
)
@click.option(
    "--merge", is_flag=True, help="Write a model of transformers that has the adapter in its weights."
)
@library_option
@base_options
@json_option
def command(
    name: str,
    folder: str,
    overwrite: bool,
    cartridge: bool,
    merge: bool,
    library: str,
    as_json: bool,
    **base: Any,
) -> None:
    """Write a saved prompt or adapter as a plain PEFT folder, a fine-tuned model as transformers'.

    The base is loaded for --merge only, in the number format it was learnt in if you name none.
    """
    from softprompt.cli import screen
    from softprompt.library.folder import Library

    if "://" in folder:
        raise _error(f"{folder} is an address, and an export goes to a folder of this machine; name one.")
    choice = BaseChoice(**base)
    if not merge and choice != BaseChoice(None):
        raise _error(
            "--model, --dtype, --device and --trust-remote-code say how to load the base for --merge."
        )
    artifact = Library(library).load(name)
    if cartridge:
        if artifact.payload.kind != "prefix-tuning":
            raise _error(
                f"{name} is no KV prefix, and a CARTRIDGE holds nothing else; leave --cartridge out."
            )
        artifact = replace(artifact, payload=replace(artifact.learnt, frozen=1))
    if merge:
        artifact = _merged(name, artifact, choice)
    target = Path(folder).expanduser()
    write(artifact, target, overwrite=overwrite)
    files = sorted(file.name for file in target.iterdir())
    if as_json:
        screen.print_json({"name": name, "path": str(target), "files": files})
        return
    opener = _OPENERS[artifact.payload.opened_by].format(target=target, base=artifact.base_name)
    screen.out().print(
        screen.clean(f"Wrote {', '.join(files)} to {target}.\n{opener}{_front(artifact)}"), soft_wrap=True
    )


def _merged(name: str, artifact: Artifact, choice: BaseChoice) -> Artifact:
    """The artifact as a model of its own, once that is known to be possible."""
    from softprompt.library.folder import check_base
    from softprompt.library.full_format import merged_model

    card = artifact.card
    if card is None:
        raise _error(
            f"{name} has no card that says which base it is for; bring it in with softprompt import."
        )
    if card.base.quantisation != "none":
        raise _error(
            f"{name} was learnt on {card.base.called} in its {card.base.quantisation} form, and no change "
            "fits into such weights; leave --merge out and use it as an adapter."
        )
    base = (replace(choice, dtype=card.base.dtype) if choice.dtype == "auto" else choice).load_for(card.base)
    check_base(artifact, base)
    about = card.model_copy(update={"kind": "full"})
    return replace(artifact, payload=merged_model(base, artifact.payload), card=about)


_OPENERS = {
    "peft": 'In PEFT: PeftModel.from_pretrained(model, "{target}"), where model is {base}.',
    "transformers": 'In transformers: AutoModelForCausalLM.from_pretrained("{target}").',
    "softprompt": "PEFT has no format for prefixes of layers that differ; softprompt import reads it.",
}


def _front(artifact: Artifact) -> str:
    """What else must be put in front of a text there."""
    from softprompt.library.changed import FRONT_FILE

    if not (artifact.path / FRONT_FILE).exists():
        return ""
    return f"\nIt was taught behind the embeddings in {FRONT_FILE}; {README} shows how to put them in front."


def write(artifact: Artifact, target: Path, *, overwrite: bool = False) -> None:
    """Write what was learnt and a README into ``target``, whole or not at all.

    Raises:
        ConfigError: something is there that is not to be replaced.
        ResourceError: the disk refuses.
    """
    from softprompt.atomic import new_folder, write_bytes
    from softprompt.library.model_card import model_card

    there = _there(target)
    if there and not overwrite:
        raise _error(f"{target} exists already; choose another folder, or replace it with --overwrite.")
    with new_folder(target, replace=True) as staging:
        artifact.payload.write(staging, artifact.base_name, artifact.revision)
        if artifact.card is not None:
            write_bytes(staging / README, model_card(artifact.card, artifact.payload.opened_by).encode())
        _check(target, there, {file.name for file in staging.iterdir()})


def _there(target: Path) -> set[str]:
    """The files of a folder that looks like an earlier export; none where it is empty or not there."""
    from softprompt.library.changed import MODEL_FILE
    from softprompt.library.peft_format import CONFIG_FILE, WEIGHTS_FILE

    if not target.exists() and not target.is_symlink():
        return set()
    if not target.is_dir() or target.is_symlink():
        raise _error(f"{target} is in the way and is no folder; choose another one.")
    there = {file.name for file in target.iterdir()}
    if MODEL_FILE not in there:  # beside a model lie files of many names
        _check(target, there, {CONFIG_FILE, WEIGHTS_FILE})
    return there


def _check(target: Path, there: set[str], new: set[str]) -> None:
    """Let only what is written again be replaced."""
    from softprompt.library.changed import FRONT_FILE

    if there - new - {README, FRONT_FILE}:
        raise _error(f"{target} holds other files, so it is not replaced; choose a new folder.")


def _error(sentence: str) -> Exception:
    from softprompt.errors import ConfigError

    return ConfigError(sentence)
