"""The verb ``inspect``: names of saved prompts in, what can be seen inside them out, and a page of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import (
    BaseChoice,
    base_options,
    examples,
    json_option,
    library_option,
    plain_text,
    ray_option,
    require_ray,
)

if TYPE_CHECKING:
    from softprompt.interpretation.grids import Grid
    from softprompt.interpretation.inspect import Inspection, PromptInspection
    from softprompt.library.card import BaseCard
    from softprompt.listener import Listener

__all__ = ["bars", "base_of", "command"]

EXAMPLES = r"""
softprompt inspect moods
softprompt inspect moods --only ablation,attention --rows 50
softprompt inspect moods topics --only relations --data test.jsonl
softprompt inspect moods topics tickets --ray 10.0.0.1:6379
"""
_SECTIONS = ("near", "drift", "ablation", "attention", "words", "says", "mixing", "relations")
PAGE = "inspect.html"


@click.command("inspect", epilog=examples(EXAMPLES))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--only", metavar="A,B", help=f"Some sections only: {', '.join(_SECTIONS)}.")
@click.option("--data", metavar="ROWS", help="Rows to try it on.  [default: those it was validated on]")
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="How many at most.",
)
@click.option("--seed", type=int, default=0, metavar="N", help="Fixes every draw.")
@click.option("--search", is_flag=True, help="Search for words that do what the prompt does; trains a while.")
@click.option("--wayward", metavar="TEXT", help="Train a control that does the job beside this text.")
@click.option("--umap", is_flag=True, help="Draw the map by UMAP instead of the two widest axes.")
@click.option("--page", metavar="FILE", help=f"Where the page goes.  [default: {PAGE}; none with --json]")
@click.option("--no-page", is_flag=True, help="Make no page.")
@library_option
@base_options
@ray_option
@json_option
def command(
    names: tuple[str, ...],
    only: str | None,
    page: str | None,
    no_page: bool,
    library: str,
    as_json: bool,
    data: str | None,
    rows: int,
    seed: int,
    search: bool,
    wayward: str | None,
    umap: bool,
    ray: str | None,
    **base: Any,
) -> None:
    """Look inside saved prompts: what they are near, what each position does, whether words can say it.

    For soft prompts and KV prefixes. With several names it also tells how they relate; with --ray each is
    looked into by a task of a cluster.
    """
    from softprompt.cli import screen
    from softprompt.interpretation.inspect import InspectOptions, inspect
    from softprompt.packages import require

    if ray is not None:
        require_ray(ray, otherwise="inspect without --ray")
    options = InspectOptions(
        only=_chosen(only),
        data=data,
        rows=rows,
        seed=seed,
        search=search,
        wayward=None if wayward is None else plain_text(wayward),
        umap=umap,
    )
    target = None if no_page else page or (None if as_json else PAGE)
    if target is not None:
        require("an HTML page", otherwise="leave the page out with --no-page")
    require(*options.needs(len(names)), otherwise="ask for other sections with --only")
    choice, spread = BaseChoice(**base), None
    about = base_of(names, library)
    loaded = choice.load_for(about)
    if ray is not None:
        from softprompt.cluster.prompts import spread_over

        spread = spread_over(choice.settings_for(about), ray)
    with bars() as listener:
        seen = inspect(names, loaded, library, options, listener=listener, spread=spread)
    if target is not None:
        from softprompt.interpretation.page import write_page

        write_page(seen, Path(target))
    if as_json:
        screen.print_json(seen.to_json())
        return
    _tell(seen)
    if target is not None:
        screen.out().print(f"\nPage: {screen.clean(target)}", soft_wrap=True)


def _chosen(only: str | None) -> tuple[str, ...]:
    """The sections asked for; what is none of them is refused further down, by name."""
    return _SECTIONS if only is None else tuple(part.strip() for part in only.split(",") if part.strip())


def base_of(names: tuple[str, ...], library: str) -> BaseCard:
    """The base of the first prompt; what cannot be inspected is refused before it is loaded."""
    from softprompt.interpretation.inspected import card_of
    from softprompt.library.folder import Library

    cards = [card_of(Library(library).load(name)) for name in names]
    return cards[0].base


@contextmanager
def bars() -> Iterator[Listener]:
    """What is going on, as a bar where stderr is a terminal."""
    from rich.progress import Progress

    from softprompt.cli import screen
    from softprompt.listener import Listener

    console = screen.err()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=screen.clean(what), completed=done, total=total)

        yield Listener(progress=progress)


# The terminal ------------------------------------------------------------------------------------


def _tell(seen: Inspection) -> None:
    from softprompt.cli import screen
    from softprompt.interpretation import grids, summary

    for number, found in enumerate(seen.prompts):
        if number:
            screen.out().print()
        _head(found.inspected.name)
        screen.out().print(screen.facts(summary.facts(found)))
        for section in _SECTIONS[:-1]:
            lines = summary.section_lines(found, section)
            if lines:
                _say(summary.TITLES[section], lines)
                for grid in _grids(found, section):
                    _print(grid)
    lines = summary.relation_lines(seen)
    if lines:
        _say(summary.TITLES["relations"], lines)
        for matrix in (*seen.likeness, *seen.effects):
            _print(grids.matrix_grid(matrix))


def _grids(found: PromptInspection, section: str) -> list[Grid]:
    """The tables of a section that suit a terminal."""
    from softprompt.interpretation import grids

    if section in found.left_out:
        return []
    if section == "near":
        return [grids.near_grid(found)]
    if section == "ablation" and found.ablation is not None:
        most = [found.ablation.each[p] for p in found.ablation.order[:5]]
        return [grids.ablation_grid([*most, *found.ablation.groups])]
    makers = {"words": grids.readings_grid, "says": grids.moved_grid, "mixing": grids.mixing_grid}
    return [makers[section](found)] if section in makers else []


def _head(text: str) -> None:
    from rich.text import Text

    from softprompt.cli import screen

    screen.out().print(Text(screen.clean(text), style="bold"))


def _say(title: str, lines: list[str]) -> None:
    from rich.text import Text

    from softprompt.cli import screen

    screen.out().print()
    _head(title)
    for line in lines:
        screen.out().print(Text(screen.clean(line)))


def _print(grid: Grid) -> None:
    from softprompt.cli import screen

    screen.out().print()
    screen.print_grid(grid.heads, grid.rows, right=grid.right)
