"""The verb ``demo``: trains two prompts on one base and shows, in numbers, what that gained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import BaseChoice, json_option

if TYPE_CHECKING:
    from softprompt.demo import Answer, Demo, JobResult, Watch

__all__ = ["command"]


@click.command("demo")
@click.option("--model", default="smollm2-135m", metavar="M", help="The base.", show_default=True)
@click.option("--dtype", default="auto", metavar="D", help="Number format of the base.", show_default=True)
@click.option("--library", default="prompts", metavar="DIR", help="Where the two prompts are saved.")
@json_option
def command(model: str, dtype: str, library: str, as_json: bool) -> int:
    """Teach one base two jobs and answer for both at once (a few minutes)."""
    from softprompt.cli import screen
    from softprompt.demo import run_demo

    base = BaseChoice(model, dtype, "auto", False).load(model)
    demo = run_demo(base, _Stage(), library=library)
    if as_json:
        screen.print_json(_as_json(demo))
    else:
        _tell(demo)
    return 0


class _Stage:
    """Shows what the demo is doing on stderr."""

    @contextmanager
    def training(self, title: str) -> Iterator[Watch]:
        from softprompt.cli import screen
        from softprompt.cli.watch import watcher

        screen.say(title)
        with watcher() as watch:
            yield watch

    @contextmanager
    def counting(self, title: str) -> Iterator[Callable[[int, int], None]]:
        from rich.progress import Progress

        from softprompt.cli import screen

        if not screen.err().is_terminal:
            screen.say(title)
            yield lambda done, total: None
            return
        with Progress(console=screen.err(), transient=True) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)


def _tell(demo: Demo) -> None:
    from softprompt.cli.screen import out

    console = out()
    topics, quotes = demo.topics, demo.quotes
    console.print(f"\nOne base, {topics.prompt.base.name}, two jobs.\n", style="bold")
    _table(topics, "News headline -> topic", "accuracy")
    _table(quotes, "Inspirational quotes, loss per token", "nll")
    _costs(demo)
    for index, answer in enumerate(demo.before):
        console.print(f"\n{answer.text}", style="bold")
        _answer("  before  ", answer)
        _answer("  after   ", demo.after[index])
    console.print("\nOne batch, each row behind its own prompt:", style="bold")
    for answer in demo.together:
        _answer(f"  {answer.prompt:<15}  {answer.text} ->", answer)
    console.print("\nWhat one would type next:")
    console.print(f'  softprompt generate {topics.prompt.name} "Shares fall as oil price climbs"')
    console.print(f"  softprompt show {quotes.prompt.name}")


def _table(job: JobResult, title: str, measure: str) -> None:
    from softprompt.cli.scores import with_interval
    from softprompt.cli.screen import out, print_grid

    rows = [(name, with_interval(scores.summary(), measure)) for name, scores in job.scores.items()]
    count = next(iter(job.scores.values())).rows
    print_grid((f"{title} ({count} test rows)", "95% interval in brackets"), rows, right=(1,))
    out().print()


def _costs(demo: Demo) -> None:
    from softprompt.cli.screen import bytes_text, print_grid, seconds_text

    rows = []
    for job in (demo.topics, demo.quotes):
        training = job.prompt.card.training
        assert training is not None
        rows.append(
            (
                job.prompt.name,
                f"{job.prompt.card.trained_parameters:,}",
                bytes_text(job.artifact_bytes),
                seconds_text(training.seconds),
                bytes_text(training.peak_memory_bytes or 0),
            )
        )
    heads = ("prompt", "trained parameters", "artifact", "training", "peak memory")
    print_grid(heads, rows, right=(1, 2, 3, 4))


def _answer(label: str, answer: Answer) -> None:
    from softprompt.cli.screen import clean, out

    out().print(f"{label} {clean(' '.join(answer.answer.split()))}", soft_wrap=True)


def _as_json(demo: Demo) -> dict[str, Any]:
    jobs = {"topics": demo.topics, "quotes": demo.quotes}
    return {
        **{
            name: {
                "scores": {title: scores.summary() for title, scores in job.scores.items()},
                "trained_parameters": job.prompt.card.trained_parameters,
                "artifact_bytes": job.artifact_bytes,
                "training": job.prompt.card.training and job.prompt.card.training.model_dump(),
            }
            for name, job in jobs.items()
        },
        **{name: [vars(a) for a in getattr(demo, name)] for name in ("before", "after", "together")},
    }
