"""The verb ``generate``: texts in, a prompt's answers or label probabilities out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softprompt.cli.options import (
    BaseChoice,
    base_options,
    examples,
    json_option,
    library_option,
    open_prompt,
    sampling_of_options,
    sampling_options,
)

if TYPE_CHECKING:
    from softprompt.generation.sampler import Sampling
    from softprompt.library.prompt import Prompt, Text

__all__ = ["command"]

TOGETHER = 16
"""Texts answered in one batch; bounds memory."""


EXAMPLES = r"""
softprompt generate topics "Rates cut as growth slows"
softprompt generate topics --file headlines.txt --classify
softprompt generate story "Once upon a time" --temperature 0.8 --min-p 0.05 --repetition-penalty 1.1
softprompt generate entailment --row premise="It rains." --row hypothesis="It is dry."
"""


@click.command("generate", epilog=examples(EXAMPLES))
@click.argument("name")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--row", "cells", multiple=True, metavar="COLUMN=VALUE", help="One row, a column at a time.")
@click.option("--file", metavar="FILE", help="Texts, one a line; - for stdin.")
@sampling_options
@click.option("--classify", is_flag=True, help="Print the probability of every label.")
@click.option("--base-only", is_flag=True, help="Leave the prompt out: what the bare base says.")
@library_option
@base_options
@json_option
def command(
    name: str,
    texts: tuple[str, ...],
    cells: tuple[str, ...],
    file: str | None,
    classify: bool,
    base_only: bool,
    library: str,
    model: str | None,
    dtype: str,
    device: str,
    trust_remote_code: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer texts with a saved prompt."""
    from softprompt.cli.screen import say

    asked = _asked(texts, cells, file)
    options = sampling_of_options(sampling)
    prompt = open_prompt(name, library, BaseChoice(model, dtype, device, trust_remote_code))
    for note in _notes(prompt, asked):
        say(note)
    if base_only:
        prompt = prompt.bare()
    _tell_cuts(prompt, asked)
    if classify:
        _classify(prompt, asked, as_json)
        return
    if len(asked) == 1 and not as_json and not options.stop and sys.stdout.isatty():
        _stream(prompt, asked[0], options)
    else:
        _answer(prompt, asked, options, as_json)


def _tell_cuts(prompt: Prompt, asked: Sequence[Text]) -> None:
    from softprompt.cli import screen

    cut = sum(prompt.tokens(text).cut for text in asked)
    if cut:
        most = prompt.card.template.max_tokens
        screen.say(
            f"{cut} of {len(asked)} texts had more than the {most} tokens that {prompt.name} reads, so the "
            "beginning was left out."
        )


def _asked(texts: Sequence[str], cells: Sequence[str], file: str | None) -> list[Text]:
    """Everything to answer, in the order of arguments, row, file."""
    asked: list[Text] = list(texts)
    if cells:
        asked.append(dict(_cell(cell) for cell in cells))
    if file is not None:
        asked += _lines(file)
    if not asked:
        raise click.UsageError(
            "There is nothing to answer; give a TEXT, --row COLUMN=VALUE or --file FILE.",
            click.get_current_context(),
        )
    return asked


def _cell(cell: str) -> tuple[str, str]:
    column, equals, value = cell.partition("=")
    if not equals or not column:
        raise click.UsageError(
            f"--row {cell}: expected COLUMN=VALUE; for plain text leave --row out.",
            click.get_current_context(),
        )
    return column, value


def _lines(file: str) -> list[str]:
    """The texts of a file, one a line; blank lines are left out."""
    from softprompt.errors import DataError

    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
        text = raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"There is no file {file}; check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text; save it as UTF-8.") from error
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{'stdin' if file == '-' else file} is empty; give one text a line.")
    return lines


def _notes(prompt: Prompt, asked: Sequence[Text]) -> Iterator[str]:
    """What a user may not have meant; every text is answered as it is all the same."""
    pieces = [[text] if isinstance(text, str) else list(map(str, text.values())) for text in asked]
    spaced = sum(any(piece != piece.rstrip() for piece in row) for row in pieces)
    empty = sum("" in row for row in pieces) if prompt.template.input_fields else 0
    if spaced:
        which = "The text ends" if len(asked) == 1 else f"{spaced} of {len(asked)} texts end"
        yield (
            f"{which} in white space, which the model reads as a token of its own; texts it learnt from "
            "seldom end so, and answers suffer: leave it out unless you mean it."
        )
    if empty:
        which = "The text is" if len(asked) == 1 else f"{empty} of {len(asked)} texts are"
        yield f"{which} empty, so there is nothing to answer but the prompt itself; give some words."


def _answer(prompt: Prompt, asked: Sequence[Text], sampling: Sampling, as_json: bool) -> None:
    from softprompt.cli import screen

    found: list[dict[str, object]] = []
    for start, batch in _batches(asked):
        options = vars(sampling) | {"seed": sampling.seed + start // TOGETHER}
        for text, answer in zip(batch, prompt.generate(batch, **options), strict=True):
            found.append({"input": text, "answer": answer})
            if not as_json:
                print(_one_line(answer) if len(asked) > 1 else _shown(answer.strip()), flush=True)
    if as_json:
        screen.print_json({"name": prompt.name, "base": prompt.base.name, "answers": found})


def _batches(asked: Sequence[Text]) -> Iterator[tuple[int, Sequence[Text]]]:
    for start in range(0, len(asked), TOGETHER):
        yield start, list(asked[start : start + TOGETHER])


def _stream(prompt: Prompt, text: Text, sampling: Sampling) -> None:
    """Print an answer word for word while it is written."""
    from softprompt.generation.offline import generate
    from softprompt.generation.request import Event, TextDelta

    begun = False

    def told(number: int, event: Event) -> None:
        nonlocal begun
        if isinstance(event, TextDelta):
            piece = event.text if begun else event.text.lstrip()
            begun = begun or bool(piece)
            print(_shown(piece), end="", flush=True)

    generate([prompt.request(text, sampling)], on_event=told)
    print(flush=True)


def _classify(prompt: Prompt, asked: Sequence[Text], as_json: bool) -> None:
    from softprompt.cli import screen

    found = [(text, prompt.classify(text)) for text in asked]
    if as_json:
        answers = [{"input": t, "label": next(iter(p)), "probabilities": p} for t, p in found]
        screen.print_json({"name": prompt.name, "base": prompt.base.name, "answers": answers})
        return
    if len(found) == 1:
        rows = [(label, f"{100 * share:.1f}%") for label, share in found[0][1].items()]
        screen.print_grid(("label", "probability"), rows, right=[1])
        return
    best = [(_words(text), *next(iter(shares.items()))) for text, shares in found]
    rows3 = [(text, label, f"{100 * share:.1f}%") for text, label, share in best]
    screen.print_grid(("text", "label", "probability"), rows3, right=[2])


def _words(text: Text) -> str:
    return text if isinstance(text, str) else "  ".join(f"{key}={value}" for key, value in text.items())


def _one_line(answer: str) -> str:
    return _shown(answer.strip().replace("\\", "\\\\").replace("\n", "\\n"))


def _shown(text: str) -> str:
    """The answer itself for a file or a pipe; for a terminal without anything it would obey."""
    from softprompt.cli.screen import clean

    return clean(text) if sys.stdout.isatty() else text
