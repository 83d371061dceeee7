"""The verb ``import``: a folder PEFT or transformers wrote in, an artifact, bound to its base, out."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

import softprompt
from softprompt.cli.options import (
    BaseChoice,
    base_options,
    examples,
    json_option,
    library_option,
    plain_text,
)

if TYPE_CHECKING:
    from softprompt.base.model import Base
    from softprompt.library.card import Card, TemplateCard
    from softprompt.library.folder import Artifact
    from softprompt.library.payload import Payload

__all__ = ["command"]

_MAX_TOKENS = 512


EXAMPLES = r"""
softprompt import my-peft-folder --name topics --model smollm2-135m --input "{text}\nTopic:"
softprompt import me/topics-lora --name topics --model smollm2-135m --labels sport,business
"""


@click.command("import", epilog=examples(EXAMPLES))
@click.argument("folder", metavar="FOLDER|OWNER/NAME")
@click.option("--name", required=True, metavar="N", help="Name it gets in the library.")
@click.option("--input", metavar="TEXT", help="What the model reads.  [default: {text}]")
@click.option("--target", metavar="TEXT", help="What it should write.  [default: {target}]")
@click.option("--labels", metavar="A,B,C", help="The possible labels; 0=no,1=yes where words differ.")
@click.option("--overwrite", is_flag=True, help="Replace a prompt of the same name.")
@library_option
@base_options
@json_option
def command(
    folder: str,
    name: str,
    input: str | None,
    target: str | None,
    labels: str | None,
    overwrite: bool,
    library: str,
    model: str | None,
    dtype: str,
    device: str,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Bring a PEFT prompt, prefix, LoRA or IA3, or a fine-tuned model into the library, bound to its base.

    It comes from a folder or from the model hub, where `OWNER/NAME@REVISION` names a branch, tag or commit.
    """
    from softprompt.cli import screen
    from softprompt.library.folder import Library
    from softprompt.library.wording import noun
    from softprompt.packages import require

    artifact = Library(library).load_to_import(folder)
    require(*artifact.payload.needs)
    template = None
    if artifact.card is None:
        template = _template(artifact.payload, input or "{text}", target or "{target}", labels)
    _check(folder, artifact, model, told=(input, target, labels))
    base = _base(artifact, BaseChoice(model, dtype, device, trust_remote_code))
    payload, card = _bound(artifact, base, name, template)
    shelf = Library(library)
    shelf.save(name, payload, card, overwrite=overwrite)
    path = shelf.where(name)
    if as_json:
        screen.print_json({"name": name, "path": path, "card": card.model_dump()})
        return
    screen.out().print(
        screen.clean(
            f"Saved as {path}: {noun(card.kind)}, {card.positions} positions, bound to {base.name}."
        ),
        soft_wrap=True,
    )


def _check(folder: str, artifact: Artifact, model: str | None, told: tuple[str | None, ...]) -> None:
    """Refuse flags that a folder needs and were not given, or that it has no use for."""
    from softprompt.config_io import shown

    fault = None
    if artifact.card is None and model is None:
        says = f" ({shown(artifact.base_name)} by its own word)" if artifact.base_name else ""
        fault = f"{folder} does not say for sure which base it was learnt on{says}; name it with --model."
    if artifact.card is not None and any(value is not None for value in told):
        fault = f"{folder} brings its own template; leave --input, --target and --labels out."
    if fault is not None:
        raise click.UsageError(fault, click.get_current_context())


def _template(payload: Payload, input: str, target: str, labels: str | None) -> TemplateCard:
    """The template of a folder that brings none; checked before any base is loaded."""
    from softprompt.cli.flags import label_words
    from softprompt.data.template import Template
    from softprompt.library.card import TemplateCard

    words = None if labels is None else label_words(labels)
    made = Template(plain_text(input), plain_text(target), words)
    return TemplateCard(
        front=payload.front_template,
        input=made.input,
        target=made.target,
        labels=dict(made.labels) if made.labels is not None else None,
        label_column=made.label_column,
        end_of_text=made.labels is None,
        max_tokens=_MAX_TOKENS,
    )


def _base(artifact: Artifact, choice: BaseChoice) -> Base:
    if artifact.card is None:
        return choice.load(choice.model or "")
    return choice.load_for(artifact.card.base)


def _bound(artifact: Artifact, base: Base, name: str, template: TemplateCard | None) -> tuple[Payload, Card]:
    """What was read and its card, once it was found to fit ``base``."""
    from softprompt.library.folder import check_base

    check_base(artifact, base)
    payload = artifact.payload if artifact.card is not None else artifact.payload.adopted(base)
    payload.meet(base)  # says so if the shapes do not fit
    if artifact.card is not None:
        return payload, artifact.card.model_copy(update={"name": name})
    assert template is not None
    return payload, _new_card(payload, base, name, template)


def _new_card(payload: Payload, base: Base, name: str, template: TemplateCard) -> Card:
    import torch

    from softprompt.library.card import BaseCard, Card, kept_name

    return Card(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=payload.kind,
        base=BaseCard(
            name=kept_name(base.name),
            fingerprint=base.fingerprint,
            model_type=base.config.model_type,
            dtype=str(base.dtype).removeprefix("torch."),
        ),
        positions=payload.positions,
        trained_parameters=payload.numbers,
        template=template,
        data={},
        scores={},
        settings={},
        versions={
            "softprompt": softprompt.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )
