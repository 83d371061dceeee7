"""Answers: many rows, each behind its own prefix, decoded together token by token.

It knows prefixes, token ids and how to choose the next one. A row's answer does not depend on
which rows it is answered with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softprompt.base.cache import Slots
from softprompt.base.layout import Windows
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.errors import BaseModelError, ConfigError
from softprompt.prefix import Prefix

__all__ = ["Request", "Sampling", "generate"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when an answer ends.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        temperature: 0 takes the most likely token; higher draws more freely.
        top_k: draw among the k likeliest only; 0 for all.
        top_p: draw among the likeliest that together hold this much probability.
        seed: the draws of row i depend on ``(seed, i)`` alone.
        stop: an answer ends before the first of these strings.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not good:
                raise ConfigError(f"{name} must be {wanted}, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Request:
    """One row to answer: its tokens, the prefix in front of them, and how long its answer may be at most."""

    ids: tuple[int, ...]
    prefix: Prefix
    limit: int | None = None


@dataclass
class _Row:
    """The state of one answer while it is being written."""

    generator: torch.Generator
    limit: int
    tokens: list[int] = field(default_factory=list)
    text: str | None = None


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
    if not requests:
        return []
    sampling = sampling or Sampling()
    _check_lengths(base, requests, sampling)
    longest = sampling.max_new_tokens
    rows = [
        _Row(
            torch.Generator().manual_seed(_row_seed(sampling.seed, i)), min(longest, request.limit or longest)
        )
        for i, request in enumerate(requests)
    ]
    with torch.no_grad():
        decoder, hidden = Decoder.after(base, requests, longest)
        while True:
            chosen = _advance(base, base.head.logits(hidden), rows, sampling, on_token)
            if all(row.text is not None for row in rows):
                return [row.text or "" for row in rows]
            hidden = decoder.step(chosen)


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


class Decoder:
    """B rows being written at once; each ``step`` takes one token a row and reads it."""

    def __init__(self, base: Base, slots: Slots, lengths: Tensor) -> None:
        """slots: the rows so far; lengths: [B] how many positions each has filled."""
        self._base, self._slots, self._lengths = base, slots, lengths
        self._windows = Windows.of(base.config)

    @classmethod
    def after(cls, base: Base, requests: Sequence[Request], room: int) -> tuple[Decoder, Tensor]:
        """Read every row behind its prefix, those of one prefix in one packed pass.

        Returns the decoder, with ``room`` for that many steps, and each row's last hidden
        state ``[B, E]``.
        """
        lengths = [r.prefix.length + len(r.ids) for r in requests]
        some = requests[0].prefix.keys
        keys, values = ([_room(len(requests), k, max(lengths) + room) for k in some] for _ in range(2))
        hidden: list[Tensor] = [torch.empty(0)] * len(requests)
        for group in _by_prefix(requests):
            prefix = requests[group[0]].prefix
            last, added = base.read([TokenRow(requests[i].ids) for i in group], prefix)
            for place, number in enumerate(group):
                hidden[number] = last[place]
                for layer in range(len(keys)):
                    k, v = added.of_row(layer, place, len(requests[number].ids))
                    _fill(keys[layer][number], prefix.keys[layer], k)
                    _fill(values[layer][number], prefix.values[layer], v)
        return cls(base, Slots(keys, values), torch.tensor(lengths, device=base.device)), torch.stack(hidden)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token a row, [B]; the hidden states after it, [B, E]."""
        visible = int(self._lengths.max()) + 1
        self._slots.step(self._lengths, visible)
        where = self._base.layout.decoding(self._lengths, visible, self._windows, self._base.dtype)
        hidden = self._base.run(input_ids=tokens[:, None], past_key_values=self._slots, **where)
        self._lengths = self._lengths + 1
        return hidden[:, -1]


def _by_prefix(requests: Sequence[Request]) -> list[list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        groups[id(request.prefix)].append(number)
    return list(groups.values())


def _room(rows: int, like: Tensor, capacity: int) -> Tensor:
    """Zeroed slots [B, K, C, D] for one layer, shaped and typed like its prefix [K, P, D]."""
    return like.new_zeros(rows, like.shape[0], capacity, like.shape[2])


def _fill(slots: Tensor, prefix: Tensor, text: Tensor) -> None:
    """Put a prefix [K, P, D] and a text [K, T, D] at the head of one row's slots [K, C, D]."""
    slots[:, : prefix.shape[1]] = prefix
    slots[:, prefix.shape[1] : prefix.shape[1] + text.shape[1]] = text


def _row_seed(seed: int, row: int) -> int:
    return (seed * 1_000_003 + row) % (2**63)


def _advance(
    base: Base,
    logits: Tensor,
    rows: Sequence[_Row],
    sampling: Sampling,
    on_token: Callable[[int, int], None] | None,
) -> Tensor:
    """Choose the next token of every open row [B]; closed rows repeat token 0, which nobody reads."""
    chosen = [0] * len(rows)
    for number, row in enumerate(rows):
        if row.text is not None:
            continue
        token = choose(logits[number], sampling, row.generator)
        if token == base.end_id:
            row.text = base.decode(row.tokens)
            continue
        row.tokens.append(token)
        chosen[number] = token
        if on_token is not None:
            on_token(number, token)
        row.text = _stopped(base, row.tokens, sampling.stop)
        if row.text is None and len(row.tokens) == row.limit:
            row.text = base.decode(row.tokens)
    return torch.tensor(chosen, dtype=torch.long, device=base.device)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from fp32 logits [V]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    ordered, ids = (logits.cpu() / sampling.temperature).sort(descending=True)
    if sampling.top_k:
        ordered, ids = ordered[: sampling.top_k], ids[: sampling.top_k]
    probabilities = torch.softmax(ordered, dim=-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.where(before < sampling.top_p, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def _stopped(base: Base, tokens: Sequence[int], stop: Sequence[str]) -> str | None:
    """The answer up to the first stop string, if one has appeared."""
    if not stop:
        return None
    text = base.decode(tokens)
    found = [at for at in (text.find(s) for s in stop) if at >= 0]
    return text[: min(found)] if found else None
