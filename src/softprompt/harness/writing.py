"""Answers with lm_eval's generation options; knows requests and options, not text or tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from softprompt.base.generate import Request, Sampling, generate
from softprompt.base.model import Base
from softprompt.errors import ConfigError

__all__ = ["MAX_NEW_TOKENS", "options_key", "sampling_of", "write"]

MAX_NEW_TOKENS = 256
"""Longest answer where a task does not say; lm_eval's own default."""

BATCH_POSITIONS = 16_384
"""Positions, prefix and room for the answer included, of the rows answered together; bounds memory."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = ("until", *_LENGTHS, "do_sample", "temperature", "top_k", "top_p")


@dataclass(frozen=True)
class _Numbered:
    number: int
    request: Request


def sampling_of(options: Mapping[str, Any], seed: int) -> Sampling:
    """lm_eval's generation options as ours, with its meaning of each: ``do_sample: false`` is greedy.

    Raises:
        ConfigError: an option there is not, or one with a wrong value.
    """
    for name in options:
        if name not in _KNOWN:
            raise ConfigError(
                f"The task sets the generation option {name!r}, which softprompt does not have; it has "
                f"{', '.join(_KNOWN)}."
            )
    given = {name: value for name, value in options.items() if value is not None}
    try:
        plain = normalize_gen_kwargs(given, MAX_NEW_TOKENS)
        until = [stop for stop in plain["until"] if stop != ""]
        if not all(isinstance(stop, str) for stop in until):
            raise ConfigError(f"The generation option 'until' must hold texts, got {plain['until']!r}.")
        return Sampling(
            max_new_tokens=plain["max_gen_toks"],
            temperature=float(plain.get("temperature", 0.0)),
            top_k=int(plain.get("top_k", 0)),
            top_p=float(plain.get("top_p", 1.0)),
            seed=seed,
            stop=tuple(until),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"A generation option of the task has a wrong value: {error}.") from None


def options_key(options: Mapping[str, Any]) -> str:
    """Equal for options that can be answered in one batch."""
    return json.dumps(options, sort_keys=True, default=repr)


def write(
    base: Base,
    requests: Sequence[Request],
    sampling: Sampling,
    rows: int | None = None,
    on_done: Callable[[int], object] = lambda count: None,
) -> list[str]:
    """Answer requests in order, a bounded number together.

    Drawn answers keep the order of the requests and take another seed every batch, so that no two requests
    share their draws.

    Args:
        base: the model.
        requests: what to answer.
        sampling: how, for all of them.
        rows: the most answered together, besides the bound on positions.
        on_done: called with how many have been answered since the last call.
    """
    numbered = [_Numbered(number, request) for number, request in enumerate(requests)]
    if sampling.temperature == 0:
        numbered.sort(key=lambda one: len(one.request.ids))
    answers = [""] * len(requests)
    special = _SpecialStops(base, sampling)
    for count, batch in enumerate(_batches(numbered, sampling.max_new_tokens, rows)):
        drawn = replace(sampling, seed=sampling.seed + count)
        said = _Said(len(batch))
        texts = generate(base, [one.request for one in batch], drawn, said.add)
        for one, text, ids in zip(batch, texts, said.tokens, strict=True):
            answers[one.number] = special.cut(text, ids)
        on_done(len(batch))
    return answers


def _batches(requests: Sequence[_Numbered], room: int, rows: int | None) -> Iterator[list[_Numbered]]:
    batch: list[_Numbered] = []
    widest = 0
    for one in requests:
        width = max(widest, one.request.prefix.length + len(one.request.ids) + room)
        full = rows is not None and len(batch) >= rows
        if batch and (full or width * (len(batch) + 1) > BATCH_POSITIONS):
            yield batch
            batch, width = [], one.request.prefix.length + len(one.request.ids) + room
        batch.append(one)
        widest = width
    if batch:
        yield batch


class _Said:
    """The tokens of the answers of one batch."""

    def __init__(self, rows: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]

    def add(self, row: int, token: int) -> None:
        self.tokens[row].append(token)


class _SpecialStops:
    """Stops such as ``<|im_end|>`` that are tokens of their own, which decoded text never shows."""

    def __init__(self, base: Base, sampling: Sampling) -> None:
        special = set(base.tokenizer.all_special_tokens) & set(sampling.stop)
        self._ids = {base.tokenizer.convert_tokens_to_ids(stop) for stop in special}
        self._base = base

    def cut(self, text: str, tokens: Sequence[int]) -> str:
        """The answer up to the first special stop among its tokens."""
        at = next((i for i, token in enumerate(tokens) if token in self._ids), None)
        if at is None:
            return text
        begun = self._base.decode(tokens[:at])
        return min(text, begun, key=len)  # an ordinary stop may have come before
