"""What people and programs see: results on stdout, everything else on stderr. Knows text, no verbs.

Artifacts and data come from strangers: nothing printed here lets them steer the terminal.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from softprompt.harmless import visible as clean

__all__ = [
    "bytes_text",
    "clean",
    "command_line",
    "complain",
    "err",
    "facts",
    "out",
    "print_grid",
    "print_json",
    "say",
    "seconds_text",
    "waiting",
    "wake",
]

_UNREAD_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""

_WORD = 24
"""Letters of a word that a table keeps together."""


def out() -> Console:
    """Where results go."""
    return _console(stderr=False)


def err() -> Console:
    """Where progress, notes and errors go."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNREAD_WIDTH
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def print_json(value: Any) -> None:
    """One JSON object, in ASCII so that every terminal and every parser takes it."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False), flush=True)


def say(sentence: str, *, style: str = "") -> None:
    """A note on stderr."""
    err().print(Text(clean(sentence), style=style), soft_wrap=True)


def complain(message: str) -> None:
    """An error on stderr; further lines stand under the first."""
    first, *more = clean(message).splitlines()
    text = Text.assemble(("Error: ", "bold red"), "\n       ".join([first, *more]))
    err().print(text, soft_wrap=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner while something without steps goes on; nothing where stderr is no terminal."""
    console = err()
    if not console.is_terminal:
        yield
        return
    with console.status(Text(clean(what))):
        yield


def wake() -> None:
    """Import what computes, which takes seconds, while a spinner turns.

    Nothing of it is ever garbage, and looking for some takes a tenth of the time, so nobody looks.
    """
    if "torch" not in sys.modules:
        gc.disable()
        with waiting("Starting"):
            importlib.import_module("softprompt.library.prompt")
        gc.freeze()
        gc.enable()


def print_grid(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """A table with a line of heads, or where the terminal is too narrow for it, a paragraph a row.

    Args:
        heads: of the columns.
        rows: their cells.
        right: columns that hold numbers, which are kept whole.
    """
    console = out()
    table = _table(heads, rows, right)
    unbounded = console.options.update(max_width=10_000)  # else it is never found to be wider
    if Measurement.get(console, unbounded, table).minimum <= console.width:
        console.print(table)
        return
    for row in rows:
        console.print(facts(dict(zip(heads, row, strict=True))))
        console.print()


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> Table:
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, header_style="bold"
    )
    for number, head in enumerate(heads):
        cells = [row[number] for row in rows]
        longest = max((len(word) for cell in (head, *cells) for word in cell.split()), default=1)
        whole = number in right or longest <= _WORD
        table.add_column(
            head,
            justify="right" if number in right else "left",
            overflow="fold",
            min_width=longest if whole else _WORD,
            no_wrap=whole and not any(" " in cell for cell in (head, *cells)),
        )
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    return table


def facts(pairs: Mapping[str, str]) -> Table:
    """Names and values, a line each."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(Text(clean(name)), Text(clean(value)))
    return table


def command_line(*words: str) -> str:
    """A line that runs softprompt with these arguments when it is typed as it stands, in a POSIX shell.

    Where PATH does not lead to the command that runs now, such as one in .venv/bin, it is named by its path.
    """
    running = Path(sys.argv[0])
    known = shutil.which("softprompt")
    if running.name != "softprompt" or (known is not None and Path(known).samefile(running)):
        return shlex.join(["softprompt", *words])
    here = running.absolute()
    near = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
    return shlex.join([str(near), *words])


def bytes_text(size: int) -> str:
    """A size in the unit that suits it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}" if size < 999.5 * scale else f"{size / scale:,.0f} {unit}"
    return f"{size} bytes"


def seconds_text(seconds: float) -> str:
    """A span of time, in words under a minute and as h:mm:ss above."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02} min"


def _finite(value: Any) -> Any:
    """The value with null for numbers JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
