"""The verb ``plan``: a job or a shape in, what it will need and whether it fits out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import examples, json_option

if TYPE_CHECKING:
    from softprompt.config import Config
    from softprompt.planning.plan import Plan

__all__ = ["command"]

EXAMPLES = """
softprompt plan topics.toml
softprompt plan --shape bloom-7b1 --method lora --quantisation nf4 --rank 16 --targets query_key_value \\
    --batch-size 4 --tokens 128 --rows 2000 --gpu t4
"""

_SETTINGS = {
    "model": "base.model",
    "quantisation": "base.quantisation",
    "device": "base.device",
    "method": "method.kind",
    "front": "method.front",
    "rank": "method.rank",
    "targets": "method.targets",
    "batch_size": "train.batch_size",
    "epochs": "train.epochs",
}
_NO_JOB: dict[str, Any] = {"data": {"input": "{text}", "target": " {target}"}}
"""Stands for a job's templates where only sizes are asked for."""


@click.command("plan", epilog=examples(EXAMPLES))
@click.argument("config", required=False, metavar="[CONFIG.toml]")
@click.option("--shape", metavar="S", help="A base by its figures alone, such as llama-7b; needs no file.")
@click.option("--model", metavar="M", help="The base: a bundled name, hub id, folder or .gguf file.")
@click.option("--method", metavar="K", help="prompt-tuning, prefix-tuning, text, lora, ia3 or full.")
@click.option("--front", metavar="F", help='What stands in front, such as "{soft:20}".')
@click.option("--quantisation", metavar="Q", help="none, nf4 or int8: how the base's layers are stored.")
@click.option("--rank", type=int, metavar="N", help="Inner width of LoRA's adapters.")
@click.option("--targets", metavar="A,B", help="Layers that get an adapter, or all-linear.")
@click.option("--batch-size", type=int, metavar="N", help="Rows of one step.")
@click.option("--epochs", type=int, metavar="N", help="How often every row is seen.")
@click.option("--tokens", type=int, metavar="N", help="Tokens of a row, instead of reading the job's rows.")
@click.option("--rows", type=int, metavar="N", help="How many training rows, instead of reading them.")
@click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--gpu", metavar="CARD", help="Plan for a card by its name: t4, rtx-3090, a100-80.")
@click.option("--gpus", type=click.IntRange(1), default=1, metavar="N", help="So many of that card.")
@click.option("--device-memory", metavar="SIZE", help="Plan for a GPU that holds this: 16GB, 24GiB.")
@click.option("--no-measure", is_flag=True, help="Tell no time: load nothing, run nothing.")
@click.option("--set", "assignments", multiple=True, metavar="A.B=C", help="Any other setting; may repeat.")
@json_option
def command(
    config: str | None,
    shape: str | None,
    tokens: int | None,
    rows: int | None,
    gpu: str | None,
    gpus: int,
    device_memory: str | None,
    no_measure: bool,
    assignments: tuple[str, ...],
    as_json: bool,
    **flags: Any,
) -> None:
    """Say what a job will need before it runs, and whether it fits.

    Parameters, memory by part, time, the artifact's size. Nothing is downloaded.
    """
    from softprompt.cli import screen
    from softprompt.planning.plan import plan
    from softprompt.planning.sizes import parse_size

    if shape is not None:
        if flags["model"] is not None:
            raise click.UsageError("--shape and --model both name the base; give one of them.")
        flags["model"] = f"shape:{shape}"
    wanted = _settings(config, flags, assignments)
    memory = None if device_memory is None else parse_size(device_memory)
    with screen.waiting("Planning"):
        found = plan(
            wanted,
            measure=not no_measure,
            device_memory=memory,
            gpu=gpu,
            gpus=gpus,
            tokens=tokens,
            rows=rows,
            notify=screen.say,
        )
    if as_json:
        screen.print_json(found.to_json())
    else:
        _tell(found)


def _settings(config: str | None, flags: dict[str, Any], assignments: tuple[str, ...]) -> Config:
    from softprompt.config import load, parse

    given = {flag: value for flag, value in flags.items() if value is not None}
    if config is None and not given and not assignments:
        raise click.UsageError(
            "There is nothing to plan; give a configuration file, or --shape or --model and --method.",
            click.get_current_context(),
        )
    wanted = [f"{_SETTINGS[flag]}={json.dumps(_value(flag, value))}" for flag, value in given.items()]
    overrides = [*wanted, *assignments]
    return parse(_NO_JOB, overrides, folder=Path.cwd()) if config is None else load(config, overrides)


def _value(flag: str, value: Any) -> Any:
    if flag != "targets" or value == "all-linear":
        return value
    return [part.strip() for part in value.split(",")]


def _tell(found: Plan) -> None:
    from softprompt.cli import screen

    console = screen.out()
    rows = [(part.name, screen.bytes_text(part.bytes)) for part in found.parts]
    screen.print_grid(
        ("memory, when most is held", ""), [*rows, ("together", screen.bytes_text(found.needs))], right=[1]
    )
    console.print()
    console.print(screen.facts(_facts(found)))
    for note in found.notes:
        console.print(screen.clean(note), style="dim", soft_wrap=True)
    console.print()
    console.print(_verdict(found), style="bold", soft_wrap=True)
    for advice in found.advice:
        fits = "" if advice.fits else ", which is still too much"
        console.print(
            f"With {screen.clean(advice.change)} it needs about {_gigabytes(advice.needs)}{fits}.",
            soft_wrap=True,
        )
    if found.ways:
        console.print()
        ways = [
            (
                way.name,
                "-" if way.needs is None else _gigabytes(way.needs),
                "yes" if way.fits else "no",
                way.how,
            )
            for way in found.ways
        ]
        screen.print_grid(("over several cards", "each needs", "fits", "how"), ways, right=[1])


def _facts(found: Plan) -> dict[str, str]:
    from softprompt.cli.screen import bytes_text, seconds_text

    share = found.trained / found.parameters
    about = {
        "base": f"{found.base}, {found.parameters:,} parameters",
        "computes in": found.dtype,
        "trained": f"{found.trained:,} numbers by {found.method} ({share:.2%} of the base)",
        "artifact": bytes_text(found.artifact),
    }
    if found.steps is not None:
        about["steps"] = f"{found.steps:,}"
    if found.timing is not None:
        parts = (
            f"training {seconds_text(found.timing.training)}, scoring {seconds_text(found.timing.scoring)}"
        )
        about["time"] = f"about {seconds_text(found.timing.total)} ({parts}; {found.timing.how})"
    return about


def _verdict(found: Plan) -> str:
    needs, capacity, apart = map(_gigabytes, (found.needs, found.capacity, abs(found.margin)))
    if found.fits:
        return f"Fits: needs about {needs} of {capacity}, {apart} to spare."
    return f"Does not fit: needs about {needs}, {apart} more than {found.device} with {capacity} holds."


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
