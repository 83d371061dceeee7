"""The verb ``compare``: a file of methods in, a table, ``results.json`` and ``report.html`` out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import examples, json_option, ray_option, require_ray

if TYPE_CHECKING:
    from softprompt.comparison.results import Results
    from softprompt.listener import Report

__all__ = ["command"]

EXAMPLES = """
softprompt compare sentiment.toml
softprompt compare sentiment.toml --model Qwen/Qwen3-0.6B --device cuda --set compare.seeds=[0,1]
softprompt compare sentiment.toml --json > results.json
softprompt compare sentiment.toml --plan
softprompt compare sentiment.toml --ray 10.0.0.1:6379
"""
_SETTINGS = {
    "model": "base.model",
    "device": "base.device",
    "batch_size": "train.batch_size",
    "epochs": "train.epochs",
}
EVERY = 15.0
"""Seconds between two lines about a training that is going on."""


@click.command("compare", epilog=examples(EXAMPLES))
@click.argument("config", metavar="CONFIG.toml")
@click.option("--model", metavar="M", help="The base: a bundled name, hub id, folder or .gguf file.")
@click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--batch-size", type=int, metavar="N", help="Rows of one step.")
@click.option("--epochs", type=int, metavar="N", help="How often every row is seen.")
@click.option("--set", "assignments", multiple=True, metavar="A.B=C", help="Any other setting; may repeat.")
@click.option("--plan", is_flag=True, help="Only say what would run, and what difference it could see.")
@ray_option
@json_option
def command(
    config: str, assignments: tuple[str, ...], plan: bool, ray: str | None, as_json: bool, **flags: Any
) -> int:
    """Find out which method wins on your rows, and at what cost.

    Every method gets the same rows and the same number of tuning trials; choices are made on validation,
    and test rows are read by the chosen settings only. Stopped or killed, it goes on where it was when it
    is started again.
    """
    from softprompt.cli import screen
    from softprompt.cli.compare_table import print_comparison
    from softprompt.cli.interrupt import Interrupts
    from softprompt.comparison.run import REPORT, RESULTS, compare, folder_of
    from softprompt.config_io import toml_value

    given = [f"{_SETTINGS[flag]}={toml_value(value)}" for flag, value in flags.items() if value is not None]
    if plan:
        _plan(config, (*given, *assignments))
        return 0
    spread = None
    if ray is not None:
        require_ray(ray, otherwise="compare without --ray")
        from softprompt.cluster.cells import spread_over

        spread = spread_over(ray)
    with Interrupts("\nStopping after this step; what is done is kept, start again to go on.\n") as asked:
        try:
            results = compare(
                config,
                (*given, *assignments),
                notify=screen.say,
                watch=_steps(screen.say),
                stop=asked.asked,
                spread=spread,
            )
        except KeyboardInterrupt:
            again = click.get_current_context().obj or ["compare", config]
            screen.say(f"Stopped. To go on:\n  {screen.command_line(*again)}")
            return 130
    if as_json:
        screen.print_json(results.model_dump())
        return 0
    print_comparison(results)
    folder = folder_of(results)
    screen.out().print(f"\nReport: {folder / REPORT}\nNumbers and predictions: {folder / RESULTS}")
    return _ending(results)


def _plan(config: str, overrides: tuple[str, ...]) -> None:
    """The runs of every method, and what difference so many test rows and seeds can show."""
    from softprompt.cli import screen
    from softprompt.comparison.settings import load_comparison
    from softprompt.data.sources import read
    from softprompt.evaluation.paired import visible_difference

    comparison, contenders = load_comparison(config, overrides)
    seeds = len(comparison.compare.seeds)
    lines = [
        (
            screen.clean(one.name),
            one.kind,
            len(one.trials),
            0 if one.votes_of else len(one.trials) + seeds - 1,
        )
        for one in contenders
    ]
    screen.print_grid(
        ("method", "kind", "trials", "runs"), [tuple(map(str, line)) for line in lines], right=(2, 3)
    )
    rows = comparison.data.test_rows or len(read(str(comparison.data.test)))
    visible = 100 * visible_difference(rows, seeds)
    screen.out().print(
        f"\n{sum(line[3] for line in lines)} runs. With {rows:,} test rows and {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}, two methods are told apart in 4 of 5 such comparisons if "
        f"their accuracies are about {visible:.1f} points apart (if they disagree on a fifth of the rows and "
        "seeds differ by 1.5 points).",
        soft_wrap=True,
    )


def _ending(results: Results) -> int:
    """2 where every method failed, else 0."""
    return 0 if any(method.runs for method in results.methods) else 2


def _steps(say: Callable[[str], None]) -> Callable[[str, Report], None]:
    """A line now and then about the training that is going on."""
    last = time.monotonic()

    def watch(title: str, report: Report) -> None:
        nonlocal last
        if time.monotonic() - last < EVERY or not report.step:
            return
        last = time.monotonic()
        say(f"  {title}: step {report.step} of {report.total}, loss {report.loss:.3f}")

    return watch
