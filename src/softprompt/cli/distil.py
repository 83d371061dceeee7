"""The verb ``distil``: a long text and questions in, short prompts and their figures out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import examples, load_base_of, plain_text, refuse_taken, run_options

if TYPE_CHECKING:
    from softprompt.config import Config
    from softprompt.training.distil import Distilled

__all__ = ["command"]

EXAMPLES = r"""
softprompt distil support.toml
softprompt distil --text prompt.txt --questions asked.jsonl --chat --positions 32 --as support
softprompt distil --text handbook.txt --questions asked.csv --input "Q: {q}\nA:" --positions 16,32,64
softprompt distil --prompt my-lora --questions rows.jsonl --input "{text}" --as my-prefix
"""

_SETTINGS = {
    "text": "teacher.file",
    "prompt": "teacher.prompt",
    "positions": "teacher.positions",
    "questions": "data.train",
    "study": "teacher.study",
    "test": "data.test",
    "input": "data.input",
    "labels": "data.labels",
    "target": "data.target",
    "chat": "data.chat",
    "keep": "method.keep",
    "learning_rate": "train.learning_rate",
    "epochs": "train.epochs",
    "name": "name",
    "seed": "seed",
    "model": "base.model",
    "library": "output.library",
    "overwrite": "output.overwrite",
}


def _lengths(context: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected numbers, such as 32 or 8,16,32, got {text!r}.") from None


@click.command("distil", epilog=examples(EXAMPLES))
@click.argument("config", required=False, metavar="[CONFIG.toml]")
@click.option("--text", metavar="FILE", help="The text to learn: a system message, a handbook, examples.")
@click.option("--prompt", metavar="P", help="Or a saved prompt or adapter to learn from.")
@click.option("--questions", metavar="FILE", help="What will be asked, one a row; answers are not needed.")
@click.option("--study", type=int, metavar="N", help="Let the base make up so many questions about the text.")
@click.option("--test", metavar="FILE", help="Questions for the figures; else some of the others are kept.")
@click.option("--input", metavar="TEXT", help=r'How a row asks, such as "Q: {question}\nA:".')
@click.option("--target", metavar="TEXT", help='How an answer is written, such as " {label}".')
@click.option("--labels", metavar="A,B,C", help="The possible answers, if they are always the same.")
@click.option("--chat", is_flag=True, help="The text is the system message of a chat.")
@click.option(
    "--positions", callback=_lengths, metavar="N[,N...]", help="Length of the prompt; several give a curve."
)
@click.option("--keep", metavar="WHICH", help="What it starts from: matched, attended, first or last.")
@click.option("--as", "name", metavar="NAME", help="Name of the prompt.")
@click.option("--learning-rate", type=float, metavar="X", help="Highest learning rate.")
@click.option("--epochs", type=int, metavar="N", help="How often every question is seen.")
@click.option("--seed", type=int, metavar="N", help="Fixes every random choice.")
@click.option("--model", metavar="M", help="The base: a bundled name, hub id, folder or .gguf file.")
@run_options
@click.pass_context
def command(
    context: click.Context,
    /,
    config: str | None,
    assignments: tuple[str, ...],
    resume: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Learn a long text, or a saved prompt, into a short one that answers like it.

    The base answers your questions once with the text before them; a prefix of a few positions then learns to
    expect what it expected. Either a configuration file, or flags alone; flags win over the file.
    """
    wanted = _settings(config, flags, assignments)
    found = _learn(wanted, resume=resume)
    _tell(found, wanted, as_json=as_json)
    return 130 if found.figures is None else 0


def _settings(file: str | None, flags: dict[str, Any], assignments: tuple[str, ...]) -> Config:
    from softprompt.cli.flags import label_words
    from softprompt.config import load, parse
    from softprompt.config_io import toml_value

    if file is None and flags["text"] is None and flags["prompt"] is None and not assignments:
        raise click.UsageError(
            "There is nothing to learn; give a configuration file, or --text and --questions.",
            click.get_current_context(),
        )
    given = {flag: value for flag, value in flags.items() if value is not None and value is not False}
    if file is None and "name" not in given:
        given["name"] = Path(given.get("text") or given.get("prompt") or "prompt").stem
    for flag in ("input", "target"):
        if flag in given:
            given[flag] = plain_text(given[flag])
    if "labels" in given:
        given["labels"] = label_words(given["labels"])
        given.setdefault("target", " {label}")
    overrides = [f"{_SETTINGS[flag]}={toml_value(value)}" for flag, value in given.items()]
    if file is None:
        return parse({"teacher": {}}, [*overrides, *assignments], folder=Path.cwd())
    return load(file, [*overrides, *assignments])


def _learn(config: Config, *, resume: bool) -> Distilled:
    """Distil with progress on stderr; the first Ctrl-C ends well, the second at once."""
    from softprompt.cli.interrupt import Interrupts
    from softprompt.cli.screen import say
    from softprompt.cli.watch import watcher
    from softprompt.listener import Listener
    from softprompt.packages import require
    from softprompt.training.distil import distil, lengths

    require(*config.needs)
    names = [one.name for one in lengths(config)]
    if not resume:
        refuse_taken(config, names, by="--as")
    base = load_base_of(config)
    with watcher() as watch, Interrupts() as interrupts:
        found = distil(
            base,
            config,
            resume=resume,
            listener=Listener(watch.note, watch.report, watch.progress, interrupts.asked),
        )
    if found.figures is None:
        say("Stopped; the best so far is saved. To go on from here, give the same command with --resume.")
    return found


def _tell(found: Distilled, config: Config, *, as_json: bool) -> None:
    from softprompt.cli import screen
    from softprompt.library.folder import Library
    from softprompt.training.distil import REPORT

    library = Library(config.output.library)
    if as_json:
        screen.print_json(
            {
                "prompts": [
                    {"name": one.name, "path": library.where(one.name), "card": one.card.model_dump()}
                    for one in found.prompts
                ],
                "figures": None if found.figures is None else found.figures.to_json(),
            }
        )
        return
    if found.figures is None:
        return
    console, figures = screen.out(), found.figures
    heads = ("in front", "positions", "kept", "same answer", "first token")
    rows = []
    for row in figures.rows:
        costs = figures.costs
        took = costs.prompts.get(row.name, {"text": costs.read}.get(row.role))
        rows.append(
            (
                row.name,
                f"{row.positions:,}",
                f"{row.kept.value:.1%} ({100 * row.kept.low:.1f}-{100 * row.kept.high:.1f})",
                f"{row.same.value:.1%}",
                "-" if took is None else f"{1000 * took:.0f} ms",
            )
        )
    screen.print_grid(heads, rows, right=(1, 2, 3, 4))
    console.print(
        f"\nKept: the share of the bare base's divergence from {figures.teacher} that is gone, on "
        f"{figures.questions} questions that nothing was learnt from or chosen by.",
        soft_wrap=True,
    )
    console.print(f"The report: {screen.clean(str(found.folder / REPORT))}", soft_wrap=True)
    console.print("\nWhat one would type next:")
    for one in found.prompts[-1:]:
        for verb in ("generate", "show"):
            words = [verb, one.name, *(["your question"] if verb == "generate" else [])]
            console.print(f"  {screen.clean(screen.command_line(*words))}", soft_wrap=True)
