"""The verb ``compare``: a file of methods in, a table, ``results.json`` and ``report.html`` out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import examples, json_option, ray_option, require_ray

if TYPE_CHECKING:
    from softprompt.comparison.settings import Comparison, Contender
    from softprompt.listener import Report

__all__ = ["command"]

EXAMPLES = """
softprompt compare sentiment.toml
softprompt compare sentiment.toml --model Qwen/Qwen3-0.6B --device cuda --set compare.seeds=[0,1]
softprompt compare sentiment.toml --json > results.json
softprompt compare sentiment.toml --plan
softprompt compare sentiment.toml --hours 2
softprompt compare sentiment.toml --model smollm2-135m --model Qwen/Qwen3-0.6B-Base
softprompt compare sentiment.toml --ray 10.0.0.1:6379
"""
_SETTINGS = {
    "device": "base.device",
    "hours": "compare.hours",
    "batch_size": "train.batch_size",
    "epochs": "train.epochs",
}
EVERY = 15.0
"""Seconds between two lines about a training that is going on."""


@click.command("compare", epilog=examples(EXAMPLES))
@click.argument("config", metavar="CONFIG.toml")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="M",
    help="The base: a bundled name, hub id, folder or .gguf file; of several, each in turn.",
)
@click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--batch-size", type=int, metavar="N", help="Rows of one step.")
@click.option("--epochs", type=int, metavar="N", help="How often every row is seen.")
@click.option("--set", "assignments", multiple=True, metavar="A.B=C", help="Any other setting; may repeat.")
@click.option("--hours", type=float, metavar="H", help="Cut trials, seeds and rows until it fits.")
@click.option("--plan", is_flag=True, help="Only say what would run, and what difference it could see.")
@ray_option
@json_option
def command(
    config: str,
    models: tuple[str, ...],
    assignments: tuple[str, ...],
    plan: bool,
    ray: str | None,
    as_json: bool,
    **flags: Any,
) -> int:
    """Find out which method wins on your rows, and at what cost.

    Every method gets the same rows and the same number of tuning trials; choices are made on validation,
    and test rows are read by the chosen settings only. Stopped or killed, it goes on where it was when it
    is started again. A file with several data sets ([[tasks]]), or several bases, is compared on each.
    """
    from softprompt.cli import screen
    from softprompt.cli.compare_table import print_comparison, print_suite
    from softprompt.cli.interrupt import Interrupts
    from softprompt.comparison.run import REPORT, RESULTS, compare, folder_of
    from softprompt.comparison.suite import compare_all, members
    from softprompt.config_io import toml_value

    given = [f"{_SETTINGS[flag]}={toml_value(value)}" for flag, value in flags.items() if value is not None]
    if len(models) == 1:
        given.append(f"base.model={toml_value(models[0])}")
    bases, overrides = models if len(models) > 1 else (), (*given, *assignments)
    if plan:
        _plan(config, overrides, bases)
        return 0
    spread = None
    if ray is not None:
        require_ray(ray, otherwise="compare without --ray")
        from softprompt.cluster.cells import spread_over

        spread = spread_over(ray)
    with Interrupts("\nStopping after this step; what is done is kept, start again to go on.\n") as asked:
        how: dict[str, Any] = {"notify": screen.say, "watch": _steps(screen.say), "stop": asked.asked}
        several = members(config, overrides, bases)
        try:
            if several:
                suite = compare_all(several, spread=spread, **how)
            else:
                results = compare(config, overrides, spread=spread, **how)
        except KeyboardInterrupt:
            again = click.get_current_context().obj or ["compare", config]
            screen.say(f"Stopped. To go on:\n  {screen.command_line(*again)}")
            return 130
    if as_json:
        screen.print_json((suite if several else results).model_dump())
        return 0
    if several:
        print_suite(suite)
        folder, found = several[0].folder.parent, any(base.means for base in suite.bases)
    else:
        print_comparison(results)
        folder, found = folder_of(results), any(method.runs for method in results.methods)
    screen.out().print(f"\nReport: {folder / REPORT}\nNumbers and predictions: {folder / RESULTS}")
    return 0 if found else 2


def _plan(config: str, overrides: tuple[str, ...], bases: tuple[str, ...]) -> None:
    """The runs of every method, and what difference so many test rows and seeds can show."""
    from softprompt.cli import screen
    from softprompt.comparison.settings import load_comparison
    from softprompt.comparison.suite import members

    several = members(config, overrides, bases)
    if not several:
        _print_plan(*load_comparison(config, overrides))
        return
    runs = 0
    for member in several:
        screen.out().print(f"\n{screen.clean(member.name)}", style="bold")
        runs += _print_plan(*load_comparison(member.settings))
    screen.out().print(f"\n{runs} runs in all {len(several)} comparisons.")


def _print_plan(comparison: Comparison, contenders: Sequence[Contender]) -> int:
    """Print it, and return how many runs there are."""
    from softprompt.cli import screen
    from softprompt.data.sources import read
    from softprompt.evaluation.paired import visible_difference

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
    there = len(read(str(comparison.data.test), separator=comparison.data.separator))
    rows = min(there, comparison.data.test_rows or there)
    runs, visible = sum(line[3] for line in lines), 100 * visible_difference(rows, seeds)
    screen.out().print(
        f"\n{runs} runs. With {rows:,} test rows and {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}, two methods are told apart in 4 of 5 such comparisons if "
        f"their accuracies are about {visible:.1f} points apart (if they disagree on a fifth of the rows and "
        "seeds differ by 1.5 points).",
        soft_wrap=True,
    )
    if comparison.compare.hours is not None:
        from softprompt.comparison.run import Bench, within_hours
        from softprompt.numbers import seconds_text

        bench = Bench.of(comparison, contenders, screen.say, lambda *_: None, lambda: False)
        plan = within_hours(bench)
        assert plan is not None
        took = f"It takes about {seconds_text(plan.seconds)} here."
        screen.out().print(" ".join([*plan.notes, took]), soft_wrap=True)
    return runs


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
