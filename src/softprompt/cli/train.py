"""The verb ``train``: flags and a file in, a saved prompt and its scores out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import (
    examples,
    load_base_of,
    ray_option,
    refuse_taken,
    require_ray,
    run_options,
)
from softprompt.team import join

if TYPE_CHECKING:
    from softprompt.config import Config
    from softprompt.library.prompt import Prompt

__all__ = ["command", "learn", "tell"]


EXAMPLES = r"""
softprompt train --data train.jsonl --input "Q: {question}\nA:" --target " {answer}"
softprompt train topics.toml --epochs 5 --batch-size 8
softprompt train bbc-topics
softprompt train topics.toml --learning-rate 0.07,0.2 --front "{soft:10}" --front "{soft:40}" --seeds 0,1,2
softprompt train topics.toml --learning-rate 0.03,0.07,0.2 --ray 10.0.0.1:6379
"""


def _numbers(kind: type[int] | type[float]) -> Callable[[Any, Any, str | None], tuple[float, ...]]:
    """Reads numbers with commas between."""

    def read(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...]:
        if text is None:
            return ()
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            some = "0,1,2" if kind is int else "0.01 or 0.01,0.03"
            raise click.BadParameter(f"expected numbers, such as {some}, got {text!r}.") from None

    return read


@click.command("train", epilog=examples(EXAMPLES))
@click.argument("config", required=False, metavar="[CONFIG.toml | RECIPE]")
@click.option(
    "--data", metavar="FILE", help="Training rows: .jsonl, .csv, ..., bundled:NAME/SPLIT or hub:..."
)
@click.option("--validation", metavar="FILE", help="Rows to choose on; else a fifth of the training rows.")
@click.option("--test", metavar="FILE", help="Rows to score once, at the end.")
@click.option("--input", metavar="TEXT", help=r'What the model reads, such as "Headline: {text}\nTopic:".')
@click.option("--target", metavar="TEXT", help='What it should write, such as " {label}".')
@click.option(
    "--labels", metavar="A,B,C", help="The possible labels; auto finds them; 0=no,1=yes where words differ."
)
@click.option("--name", metavar="N", help="Name of the prompt.  [default: the data's name]")
@click.option("--model", metavar="M", help="The base: a bundled name, hub id, folder or .gguf file.")
@click.option(
    "--front",
    multiple=True,
    metavar="F",
    help='What is learnt in front, such as "{soft:20}"; if given again, tries all.',
)
@click.option(
    "--learning-rate",
    callback=_numbers(float),
    metavar="X[,X...]",
    help="Highest learning rate; of several the one that validates best.",
)
@click.option("--epochs", type=int, metavar="N", help="How often every row is seen.")
@click.option("--batch-size", type=int, metavar="N", help="Rows of one step.")
@click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--dtype", metavar="T", help="auto, float32, bfloat16 or float16.")
@click.option("--seed", type=int, metavar="N", help="Fixes every random choice.")
@click.option(
    "--seeds", callback=_numbers(int), metavar="N,N...", help="Learn on several seeds; keeps each of them."
)
@ray_option
@run_options
@click.pass_context
def command(
    context: click.Context,
    /,
    config: str | None,
    assignments: tuple[str, ...],
    ray: str | None,
    resume: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Teach a base one job and keep the prompt.

    Either a configuration file or the name of a recipe, or flags alone; flags win over the file, --set over
    both. Several learning rates, fronts or seeds train together, and the choice is made on validation; with
    --ray each is a task of a cluster.
    """
    from softprompt.cli.screen import waiting

    if ray is not None:
        require_ray(ray, otherwise="train without --ray")
    with waiting("Reading the settings"):
        from softprompt.cli.flags import settings

        wanted = settings(config, flags, assignments)
    prompt = learn(wanted, resume=resume, typed=context.obj or ["train"], ray=ray)
    if join().leads:  # the others have no files to tell of
        tell(prompt, wanted, as_json=as_json)
    about = prompt.card.training
    return 130 if about is not None and about.ended == "interrupted" else 0


def learn(
    config: Config, *, resume: bool = False, typed: Sequence[str] = (), ray: str | None = None
) -> Prompt:
    """Train with progress on stderr; the first Ctrl-C ends well, the second at once.

    Args:
        config: what to learn.
        resume: go on from the checkpoint, if there is one.
        typed: the arguments the user gave, to say how to go on.
        ray: the address of a cluster that its runs are spread over, if any.
    """
    from softprompt.cli.screen import say, wake

    wake()
    from softprompt.cli.interrupt import Interrupts
    from softprompt.cli.watch import watcher
    from softprompt.data.task import load_task
    from softprompt.listener import Listener
    from softprompt.packages import require
    from softprompt.training.run import refuse_alone, train
    from softprompt.training.trackers import refuse_unfollowable

    spread = None
    if ray is not None:
        from softprompt.cluster.runs import spread_over

        refuse_alone(config)
        spread = spread_over(ray)
    require(*config.needs)
    refuse_unfollowable(config)
    if not resume:  # whether what is there may be gone on with, the run itself finds out
        refuse_taken(config, config.names, by="--name")
    load_task(config.data, config.seed)  # whose faults should not wait for a base to come from the hub
    base = load_base_of(config)
    try:
        interrupting = Interrupts() if join().leads else Interrupts("")
        with watcher() as watch, interrupting as interrupts:
            listener = Listener(watch.note, watch.report, watch.progress, interrupts.asked)
            prompt = train(base, config, resume=resume, listener=listener, spread=spread)
    except KeyboardInterrupt:
        say(_stopped_at_once(config, typed))
        raise
    about = prompt.card.training
    if about is not None and about.ended == "interrupted":
        say(
            f"Stopped after step {about.steps}; the best so far, of step {about.best_step}, is saved. "
            f"To go on from here:\n  {_again(typed, '--resume')}"
        )
    return prompt


def tell(prompt: Prompt, config: Config, *, as_json: bool = False) -> None:
    """Print what came of a run."""
    from softprompt.cli import screen
    from softprompt.cli.scores import print_scores
    from softprompt.cli.search_table import print_search
    from softprompt.library.folder import Library

    library = Library(config.output.library)
    folder, size = library.where(prompt.name), library.size(prompt.name)
    if as_json:
        screen.print_json(
            {"name": prompt.name, "path": folder, "bytes": size, "card": prompt.card.model_dump()}
        )
        return
    console = screen.out()
    if prompt.card.search is not None:
        print_search(prompt.card.search)
        console.print(f"\n{prompt.name}:")
    print_scores(prompt.card.scores)
    console.print()
    console.print(screen.facts(_facts(prompt, folder, size)))
    console.print("\nWhat one would type next:")
    for words in _next(prompt, config):
        console.print(f"  {screen.clean(screen.command_line(*words))}", soft_wrap=True)


def _facts(prompt: Prompt, folder: str, size: int) -> dict[str, str]:
    from softprompt.cli.screen import bytes_text, seconds_text

    card = prompt.card
    found = {
        "trained parameters": f"{card.trained_parameters:,}",
        "saved in": f"{folder} ({bytes_text(size)})",
    }
    if card.training is not None:
        about = card.training
        found["best step"] = f"{about.best_step} of {about.steps}"
        found["time"] = seconds_text(about.seconds)
        if about.peak_memory_bytes is not None:
            found["peak memory"] = bytes_text(about.peak_memory_bytes)
    return found


def _next(prompt: Prompt, config: Config) -> list[list[str]]:
    """The arguments of commands to go on with; a prompt without input fields starts from nothing."""
    fields = prompt.template.input_fields
    rows = [part for field in fields for part in ("--row", f"{field}=your text")]
    asked = {0: [""], 1: ["your text"]}.get(len(fields), rows)
    where = config.output.library
    library = [] if where == "prompts" else ["--library", where]
    return [["generate", prompt.name, *asked, *library], ["show", prompt.name, *library]]


def _stopped_at_once(config: Config, typed: Sequence[str]) -> str:
    folder = Path(config.output.runs) / config.name
    if not any(folder.rglob("checkpoint.safetensors")):
        return "Stopped at once; no checkpoint had been written yet, so nothing is kept."
    return (
        f"Stopped at once; the last checkpoint is in {folder}. "
        f"To go on from it:\n  {_again(typed, '--resume')}"
    )


def _again(typed: Sequence[str], *extra: str) -> str:
    from softprompt.cli.screen import command_line

    return command_line(*typed, *(flag for flag in extra if flag not in typed))
