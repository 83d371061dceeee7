"""The verb ``prune``: a saved prompt in, a shorter one saved, with the score that every length keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.inspect import bars, base_of
from softprompt.cli.options import BaseChoice, base_options, examples, json_option, library_option

if TYPE_CHECKING:
    from softprompt.interpretation.prune import Length, Pruned

__all__ = ["command"]

EXAMPLES = r"""
softprompt prune moods --keep 10 --as moods-10
softprompt prune moods --tolerance 0.01 --as moods-short
"""


@click.command("prune", epilog=examples(EXAMPLES))
@click.argument("name")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Keep N positions.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Or the shortest that gives away at most this much accuracy, or nats of free text.",
)
@click.option("--as", "new", required=True, metavar="NEWNAME", help="The name of the shorter prompt.")
@click.option("--anew", is_flag=True, help="Rank what is left again after each position; P/2 times as long.")
@click.option("--data", metavar="ROWS", help="Rows to choose by.  [default: those it was validated on]")
@click.option("--rows", type=click.IntRange(min=1), metavar="N", help="How many at most.  [default: all]")
@click.option("--seed", type=int, default=0, metavar="N", help="Which rows --rows draws.")
@click.option("--overwrite", is_flag=True, help="Replace a prompt of that name.")
@library_option
@base_options
@json_option
def command(
    name: str,
    keep: int | None,
    tolerance: float | None,
    new: str,
    anew: bool,
    data: str | None,
    rows: int | None,
    seed: int,
    overwrite: bool,
    library: str,
    as_json: bool,
    **base: Any,
) -> None:
    """Make a shorter prompt of a saved one: positions that matter least are taken out first.

    Every length is scored as it would be used. Positions are chosen on the rows they are scored on, so score
    the result on rows of its own: softprompt eval NEWNAME ROWS.
    """
    if (keep is None) == (tolerance is None):
        raise click.UsageError(
            "Say either how many positions to --keep or what --tolerance there is.",
            click.get_current_context(),
        )
    from softprompt.errors import ConfigError
    from softprompt.interpretation.inspected import open_prompt, rows_of
    from softprompt.interpretation.prune import prune
    from softprompt.library.folder import Library

    if not overwrite and new in Library(library).names():
        raise ConfigError(
            f"There is a prompt {new!r} in {library} already; choose another name or --overwrite."
        )
    loaded = BaseChoice(**base).load_for(base_of((name,), library))
    inspected = open_prompt(name, loaded, library)
    chosen = rows_of(inspected, data, most=rows, seed=seed)
    with bars() as listener:
        found = prune(
            inspected,
            chosen,
            new,
            keep=keep,
            tolerance=tolerance,
            anew=anew,
            progress=listener.counting(f"{name}: pruning"),
        )
    found.prompt.save(library, overwrite=overwrite)
    _tell(found, inspected.kind, Library(library).where(new), as_json)


def _tell(found: Pruned, kind: str, path: str, as_json: bool) -> None:
    from softprompt.cli import screen
    from softprompt.interpretation.summary import list_of, score_text

    if as_json:
        screen.print_json(found.to_json() | {"path": path})
        return
    heads = ("positions", "taken out", "score", "change", "")
    screen.print_grid(heads, [_line(length, found) for length in found.curve], right=(0, 1, 2, 3))
    whole, chosen = found.curve[0], found.chosen
    screen.out().print(
        screen.clean(
            f"\nKept {chosen.positions} of {whole.positions} positions ({list_of(chosen.kept)}): "
            f"{score_text(chosen.scores)} where the whole prompt scores {score_text(whole.scores)}, "
            f"on {found.rows}."
        ),
        soft_wrap=True,
    )
    if kind == "KV prefix":
        screen.say("The keys that stay keep the rotation of the place they had.")
    screen.say("Positions were chosen on these rows, so score it on others for a number to quote.")
    screen.out().print(f"Saved: {screen.clean(path)}", soft_wrap=True)


def _line(length: Length, found: Pruned) -> tuple[str, ...]:
    from softprompt.interpretation.summary import gap_text, score_text

    lost = ""
    if length.lost is not None and length.lost.accuracy is not None:
        lost = f"{gap_text(length.lost.accuracy, points=True)} points"
    elif length.lost is not None:
        lost = gap_text(length.lost.nll)
    removed = "-" if length.removed is None else str(length.removed)
    mark = "kept" if length is found.chosen else ""
    return str(length.positions), removed, score_text(length.scores), lost, mark
