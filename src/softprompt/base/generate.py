"""Answers: many rows, each behind its own prefix, written together token by token.

It knows prefixes and token ids. A row's answer does not depend on which rows it is answered with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.base.model import Base
from softprompt.base.packing import split
from softprompt.base.sampling import Chooser, Sampling
from softprompt.base.strips import Chunk, Strip, Strips
from softprompt.base.writer import Writer
from softprompt.errors import BaseModelError
from softprompt.prefix import Prefix

__all__ = ["Request", "Sampling", "generate"]

PASS_TOKENS = 2048
"""Text tokens read in one pass; bounds memory, changes no answer."""


@dataclass(frozen=True)
class Request:
    """One row to answer: its tokens, the prefix in front of them, and how long its answer may be at most."""

    ids: tuple[int, ...]
    prefix: Prefix
    limit: int | None = None

    def longest(self, sampling: Sampling) -> int:
        """The most tokens of its answer."""
        return min(sampling.max_new_tokens, self.limit or sampling.max_new_tokens)


class _Row:
    """An answer while it is being written."""

    def __init__(self, base: Base, request: Request, sampling: Sampling, number: int) -> None:
        self.expected = request.prefix.hidden  # [E]
        self.text: str | None = None
        self._chooser = Chooser(sampling, request.ids, number)
        self._writer = Writer(base, sampling.stop)
        self._sampling, self._end = sampling, base.end_id
        self._left = request.longest(sampling)

    def advance(self, logits: Tensor) -> int | None:
        """Choose the next token from logits [V]; None if that ended the answer before the token."""
        token = self._chooser.choose(logits).id
        if self._sampling.ends_at(token, self._end):
            self._close()
            return None
        self._writer.push(token)
        self._left -= 1
        if self._writer.stopped or not self._left:
            self._close()
        return token

    def _close(self) -> None:
        self._writer.finish()
        self.text = self._writer.text


def generate(
    base: Base,
    requests: Sequence[Request],
    sampling: Sampling | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Answer every request, all in one batch.

    Args:
        base: the model all prefixes belong to.
        requests: rows; prefixes may differ in length, content and kind.
        sampling: greedy and 64 tokens by default.
        on_token: called with (row, token id) for every token as it is chosen.

    Raises:
        WrongBaseError: a prefix of another base.
        BaseModelError: a row longer than the model's positions, or with nothing to go on from.
    """
    sampling = sampling or Sampling()
    _check_lengths(base, requests, sampling)
    rows = [_Row(base, request, sampling, number) for number, request in enumerate(requests)]
    with torch.no_grad():
        strips = Strips(base)
        places = {number: _open(strips, request, sampling) for number, request in enumerate(requests)}
        for part in _parts(requests):
            _read(strips, rows, {number: (places[number], requests[number].ids) for number in part})
        while places:
            logits = base.head.logits(torch.stack([_known(rows[number]) for number in places]))
            said = {number: rows[number].advance(row) for number, row in zip(places, logits, strict=True)}
            for number, token in said.items():
                if on_token is not None and token is not None:
                    on_token(number, token)
                if rows[number].text is not None:
                    strips.close(places.pop(number))
            _read(strips, rows, {n: (place, [said[n] or 0]) for n, place in places.items()})
    return [row.text or "" for row in rows]


def _open(strips: Strips, request: Request, sampling: Sampling) -> Strip:
    need = request.prefix.length + len(request.ids) + request.longest(sampling)
    strip = strips.open(request.prefix, need)
    assert strip is not None  # there is no bound
    return strip


def _parts(requests: Sequence[Request]) -> Iterable[list[int]]:
    """The rows that have a text, a bounded number of tokens at a time."""
    numbers = [number for number, request in enumerate(requests) if request.ids]
    for part in split([len(requests[number].ids) for number in numbers], PASS_TOKENS):
        yield [numbers[place] for place in part]


def _read(strips: Strips, rows: Sequence[_Row], coming: dict[int, tuple[Strip, Sequence[int]]]) -> None:
    """Read the next tokens of some rows, and note what each then expects."""
    if coming:
        found = strips.read([Chunk(strip, ids) for strip, ids in coming.values()])
        for number, hidden in zip(coming, found, strict=True):
            rows[number].expected = hidden[-1]


def _known(row: _Row) -> Tensor:
    assert row.expected is not None  # checked before the first token was read
    return row.expected


def _check_lengths(base: Base, requests: Iterable[Request], sampling: Sampling) -> None:
    limit = base.max_positions
    for number, request in enumerate(requests):
        base.accept(request.prefix)
        length = request.prefix.length + len(request.ids)
        if limit is not None and length + sampling.max_new_tokens > limit:
            raise BaseModelError(
                f"Row {number} needs {length} positions and {sampling.max_new_tokens} new tokens, but "
                f"{base.name} holds {limit}; shorten the text or lower max_new_tokens."
            )
        if not request.ids and request.prefix.hidden is None:
            raise BaseModelError(f"Row {number} has no text to go on from; give it at least one token.")
