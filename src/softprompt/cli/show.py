"""The verb ``show``: an artifact's name in, its card in readable form out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from softprompt.cli.options import json_option, library_option

if TYPE_CHECKING:
    from softprompt.library.card import Card

__all__ = ["command"]


@click.command("show")
@click.argument("name")
@library_option
@json_option
def command(name: str, library: str, as_json: bool) -> None:
    """Show all that is known about a saved prompt, adapter or model."""
    from softprompt.cli import screen
    from softprompt.cli.scores import print_scores
    from softprompt.errors import ArtifactError
    from softprompt.library.folder import Library

    artifact = Library(library).load(name)
    card = artifact.card
    if card is None:
        again = screen.command_line("import", str(artifact.path), "--name", "NAME")
        raise ArtifactError(f"{name} has no card; bring it in with `{again}`.")
    if as_json:
        screen.print_json({"path": str(artifact.path), "card": card.model_dump()})
        return
    console = screen.out()
    console.print(screen.facts(_facts(card, str(artifact.path))))
    if card.scores:
        console.print()
        print_scores(card.scores)


def _facts(card: Card, path: str) -> dict[str, str]:
    from softprompt.library.wording import noun

    template = card.template
    revision = f" at {card.base.revision}" if card.base.revision else ""
    stored = "" if card.base.quantisation == "none" else f", {card.base.quantisation}"
    found = {
        "name": card.name,
        "folder": path,
        "created": card.created,
        "kind": f"{noun(card.kind)}, {card.positions} positions, {card.trained_parameters:,} learnt numbers",
        "base": f"{card.base.name}{revision} ({card.base.model_type}, {card.base.dtype}{stored})",
        "fingerprint": card.base.fingerprint,
        "front": _quoted(template.front),
        "input": _quoted(template.input),
        "target": _quoted(template.target) + (" and end of text" if template.end_of_text else ""),
    }
    if template.labels is not None:
        found["labels"] = ", ".join(k if k == v else f"{k} ({v})" for k, v in template.labels.items())
    if template.scaling is not None:
        found["label scores"] = "scaled and shifted, as fitted on the training rows"
    for split, data in card.data.items():
        found[f"{split} rows"] = f"{data.rows:,} of {data.origin}"
    return found | _training(card) | {"made with": ", ".join(f"{k} {v}" for k, v in card.versions.items())}


def _training(card: Card) -> dict[str, str]:
    from softprompt.cli.screen import bytes_text, seconds_text

    about = card.training
    if about is None:
        return {}
    memory = f", {bytes_text(about.peak_memory_bytes)} of memory" if about.peak_memory_bytes else ""
    steps = f"{about.steps} steps, the best after {about.best_step}"
    return {"training": f"{steps}, ended: {about.ended}, {seconds_text(about.seconds)}{memory}"}


def _quoted(text: str) -> str:
    """A template with its line breaks and outer spaces to be seen."""
    shown = text.replace("\n", "\\n").replace("\t", "\\t")
    return f'"{shown}"'
