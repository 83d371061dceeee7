"""The verb ``demo``: trains three prompts on one base and shows, in texts and numbers, what that gained."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import BaseChoice, json_option

if TYPE_CHECKING:
    from softprompt.demo import Answer, Demo, JobResult, Watch

__all__ = ["command"]

_WIDTH, _LEAST = 100, 24
"""Columns of a text at most, and of what stands beside its label at least."""


@click.command("demo")
@click.option("--model", default="smollm2-135m", metavar="M", help="The base.", show_default=True)
@click.option("--dtype", default="auto", metavar="D", help="Number format of the base.", show_default=True)
@click.option("--library", default="prompts", metavar="DIR", help="Where the three prompts are saved.")
@json_option
def command(model: str, dtype: str, library: str, as_json: bool) -> int:
    """Teach one base three jobs and answer for all at once (a few minutes)."""
    from softprompt.cli import screen
    from softprompt.demo import run_demo

    base = BaseChoice(model, dtype, "auto", False).load(model)
    demo = run_demo(base, _Stage(), library=library)
    if as_json:
        screen.print_json(_as_json(demo))
    else:
        _tell(demo, library)
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


def _tell(demo: Demo, library: str) -> None:
    from softprompt.cli import screen
    from softprompt.demo import NEW_TOKENS

    console = screen.out()
    console.print(f"\nOne frozen model, {demo.roles.prompt.base.name}, learns three jobs.", style="bold")
    console.print("Before: the model alone. After: the same model behind the prompt it has learnt.")
    console.print(
        f"Openings were fixed before training. An answer ends by itself or, where dots stand, after "
        f"{NEW_TOKENS} tokens."
    )
    for job, rows in ((demo.roles, "role prompts"), (demo.quotes, "inspirational quotes")):
        count = job.prompt.card.data["train"].rows
        console.print(f"\n{job.prompt.name}, learnt from {count} {rows}", style="bold")
        for before, after in zip(job.before, job.after, strict=True):
            console.print()
            _block("  ", before.text)
            _block("    before  ", _words(before))
            _block("    after   ", _words(after))
    console.print()
    _gains(demo)
    console.print()
    _costs(demo)
    console.print("\nOne batch, each row behind its own prompt:", style="bold")
    width = max(len(answer.prompt) for answer in demo.together)
    for answer in demo.together:
        _block(f"  {answer.prompt:<{width}}  ", f"{answer.text} -> {_words(answer)}")
    console.print("\nWhat one would type next:", style="bold")
    where = [] if library == "prompts" else ["--library", library]
    for words in (
        ["generate", demo.roles.prompt.name, "I want you to act as a gardener."],
        ["generate", demo.quotes.prompt.name, "Courage"],
        ["generate", demo.topics.prompt.name, "Shares fall as oil price climbs", "--classify"],
        ["show", demo.quotes.prompt.name],
    ):
        console.print(f"  {screen.clean(screen.command_line(*words, *where))}", soft_wrap=True)


def _words(answer: Answer) -> str:
    """An answer on one line, with dots where it was cut."""
    return " ".join(answer.answer.split()) + ("" if answer.whole else " ...")


def _block(label: str, text: str) -> None:
    """A label and, beside it, a text in as many lines as it takes."""
    from softprompt.cli import screen

    width = max(_LEAST, min(screen.out().width, _WIDTH) - len(label))
    beside = ("\n" + " " * len(label)).join(textwrap.wrap(screen.clean(text), width))
    screen.out().print(label + beside, soft_wrap=True)


def _gains(demo: Demo) -> None:
    """Before and after on rows that no prompt has seen, and what shown examples reach instead."""
    from softprompt.cli.scores import with_interval
    from softprompt.cli.screen import out, print_grid

    def row(job: JobResult, what: str, measure: str) -> list[str]:
        ways = [_summary(job, way) for way in ("untuned", "soft prompt")]
        return [job.prompt.name, f"{what} ({ways[0]['rows']})", *(with_interval(w, measure) for w in ways)]

    topics = len(demo.topics.prompt.template.labels or ())
    heads = ("prompt", "on rows it never saw (their number)", "before", "after")
    rows = [
        row(demo.roles, "loss per token, lower is better", "nll"),
        row(demo.quotes, "loss per token, lower is better", "nll"),
        row(demo.quotes, "openings finished as one sentence", "whole_sentences"),
        row(demo.topics, f"headlines given their topic of {topics}", "accuracy"),
    ]
    print_grid(heads, rows, right=(2, 3))
    falls = [
        f"by {-found.difference:.2f} ({-found.high:.2f} to {-found.low:.2f}) for {job.prompt.name}"
        for job in demo.jobs
        if (found := job.change) is not None
    ]
    _block("", f"95% intervals in brackets. On the same rows the loss falls {' and '.join(falls)}.")
    for way in demo.topics.scores:
        if way not in ("untuned", "soft prompt"):
            shown = with_interval(_summary(demo.topics, way), "accuracy")
            out().print(f"Headlines behind {way}, one of each topic: {shown}.")


def _costs(demo: Demo) -> None:
    from softprompt.cli.screen import bytes_text, print_grid, seconds_text

    rows = []
    for job in demo.jobs:
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


def _summary(job: JobResult, way: str) -> dict[str, Any]:
    """The scores of one way, with its share of finished sentences where that was measured."""
    found = job.scores[way].summary()
    if way in job.finished:
        ended = job.finished[way]
        found |= {"whole_sentences": ended.share, "whole_sentences_interval": ended.interval}
    return found


def _as_json(demo: Demo) -> dict[str, Any]:
    jobs = {"roles": demo.roles, "quotes": demo.quotes, "topics": demo.topics}
    return {
        **{
            name: {
                "scores": {way: _summary(job, way) for way in job.scores},
                "trained_parameters": job.prompt.card.trained_parameters,
                "artifact_bytes": job.artifact_bytes,
                "training": job.prompt.card.training and job.prompt.card.training.model_dump(),
            }
            for name, job in jobs.items()
        },
        "before": [vars(answer) for job in demo.jobs for answer in job.before],
        "after": [vars(answer) for job in demo.jobs for answer in job.after],
        "together": [vars(answer) for answer in demo.together],
    }
