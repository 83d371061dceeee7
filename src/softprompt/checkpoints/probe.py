"""Finds out by trying how an architecture can be read, instead of trusting its name.

A few short rows are read behind a short front, also in a KV pool and by steps, and the logits are held
against the model's own plain forward pass. Then a few tokens are read behind a front longer than any window
its configuration may mean, and held against the model reading each row alone, by its own masks. The first
layout that agrees in both is the model's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from softprompt.base.cache import DecodeCache
from softprompt.base.kv_pool import Chunk, KVPool
from softprompt.base.layout import ALONE, FLAT, LAYOUTS, PACKED, PADDED, REPEATED, TOLD, Windows
from softprompt.base.model import Base, Batch
from softprompt.base.packing import TokenRow
from softprompt.errors import BaseModelError, ResourceError
from softprompt.prefix import Prefix

__all__ = ["agrees", "attend_with", "settle"]

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest relative difference (of norms) that rounding explains in each dtype."""

ROUGH = 0.1

_BARE = (5,)
"""A row that begins with nothing before it, beside rows that go on."""

SHORT = 8
"""Positions of the longest short row: it passes smaller windows."""

COMPANY = 8
"""Tokens of a row that stands beside shorter ones behind a long front."""

_CHOICE = re.compile("window|chunk|keep|topk")
"""How configurations call the number of keys that a token may see."""

_LOOKED_UP = 1e-4
"""Relative difference that is no rounding of equal passes."""

_USUAL_CHUNK, _LONGEST_CHUNK = 64, 512
"""Tokens that layers with a state compute at once: where no configuration says, and the most looked for."""

FARTHEST = 2**17
"""Longer windows are not looked for where a configuration does not say how far the model reads."""


_WITHOUT_STATES = (FLAT, PACKED, REPEATED, PADDED, ALONE)
_WITH_STATES = (TOLD, PADDED, ALONE)
"""Rows that share a bin would share a state. Told positions come first: rounding can hide wrong ones."""


def settle(base: Base) -> Base:
    """The base with the fastest layout it is exact in.

    Raises:
        BaseModelError: the model agrees with its own plain forward pass in no layout.
        ResourceError: there is not enough memory to try.
    """
    reason = ""
    short: _Short | None = None
    far: _Far | None = None
    for layout in LAYOUTS.values():
        candidate = replace(base, layout=layout)
        try:
            short = short or _Short.of(base)
            if layout not in (_WITH_STATES if short.prefix.states else _WITHOUT_STATES):
                continue
            error = short.disagreement(candidate)
            reason = f"its logits differ by {error:.2g} from those of its own plain forward pass"
            if short.prefix.states:
                reason += ", where it goes on from a state"
            if error <= _tolerance(base):
                if short.prefix.states:
                    _check_states(candidate, short.prefix)
                far = far or _Far.of(base, short.prefix)
                error = far.disagreement(candidate)
                reason = (
                    f"behind {far.front.length} positions rows differ by {error:.2g} from rows read alone"
                )
                if not error <= _tolerance(base):
                    far.check_order()
        except torch.OutOfMemoryError as failure:  # a RuntimeError, too, but not the layout's fault
            raise ResourceError(
                f"There is not enough memory to read {base.name}: choose dtype bfloat16, another device or a "
                "smaller model."
            ) from failure
        except _NotCausalError as failure:
            reason = str(failure)
            break
        except BaseModelError as failure:
            reason = str(failure).rstrip(".")
        except Exception as failure:  # anything at all comes from a model that is asked for what it lacks
            said = str(failure).strip().partition("\n")[0][:120] or "no message"
            reason = f"it fails with {type(failure).__name__}: {said}"
        else:
            if error <= _tolerance(base):
                return candidate
    # The last layout asks least of a model, so its reason is the model's.
    if short is not None and (error := _beside_embeddings(base)) > _LOOKED_UP:
        reason = (
            "it looks up more of a word than its embedding, which no prompt of vectors has, and its logits "
            f"differ by {error:.2g} without"
        )
    raise BaseModelError(
        f"{base.name} is a {base.config.model_type} model, which softprompt cannot read behind a prefix "
        f"({reason}); use a decoder-only transformer with a key/value cache."
    )


def _beside_embeddings(base: Base) -> float:
    """Relative difference of a plain pass over the embeddings of words to one over the words themselves."""
    ids = _tokens(base, SHORT)
    with torch.no_grad():
        try:
            given = base.model(inputs_embeds=base.embed(ids)[None], use_cache=False).logits[0, -1].float()
            return _apart(given, _plain(base, ids))
        except Exception:  # what it fails with is its reason
            return 0.0


def attend_with(base: Base, implementation: str) -> None:
    """Give the model another attention function, unless it tells its own one more than that heeds."""
    own, row = base.config._attn_implementation, _tokens(base, SHORT)
    with torch.no_grad():
        try:
            before = _plain(base, row)
            base.model.set_attn_implementation(implementation)
            if _apart(_plain(base, row), before) <= _tolerance(base):
                return
        except Exception:  # what cannot be read at all is refused with its reason later
            return
    base.model.set_attn_implementation(own)


def agrees(base: Base, original: Base) -> bool:
    """Whether a copy still reads in its layout what the plain forward pass of the original does."""
    return _Short.of(original).disagreement(base) <= _tolerance(base)


def _tolerance(base: Base) -> float:
    # In 8 bits what is read is rounded too, in a way that depends on what is read with it.
    rounds_inputs = getattr(base.model, "is_loaded_in_8bit", False)
    return ROUGH if rounds_inputs else TOLERANCE.get(base.dtype, ROUGH)


# Short rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Short:
    """A few short rows behind a short front.

    Attributes:
        prefix: of the front.
        bare: of none, before a row of one token, where layers keep states.
        front, rows: their tokens.
        expected: fp32 logits ``[3, V]`` after each row, from plain forward passes over front and row; of the
            bare row behind those.
    """

    prefix: Prefix
    bare: Prefix | None
    front: tuple[int, ...]
    rows: list[tuple[int, ...]]
    expected: Tensor

    @classmethod
    def of(cls, base: Base) -> _Short:
        tokens = _tokens(base, 6 + SHORT)
        front, rows = tokens[:3], [tokens[3:8], tokens[8:10], tokens[10:]]
        with torch.no_grad():
            plain = [_plain(base, front + row) for row in rows]
            prefix, bare = base.prefill(base.embed(front)), None
            if prefix.states:
                bare = base.prefill(base.embed(()))
                plain.append(_plain(base, _BARE))
            return cls(prefix, bare, front, rows, torch.stack(plain))

    def disagreement(self, base: Base) -> float:
        """Relative difference of packed rows and their front read with them, and of the KV pool."""
        rows = [TokenRow(row) for row in self.rows]
        with torch.no_grad():
            seen = [base.next_logits(rows, base.embed(self.front)), self._continued(base)]
        return _worst([_apart(logits, self.expected[: len(logits)]) for logits in seen])

    def _continued(self, base: Base) -> Tensor:
        """fp32 logits [B, V] after rows read into a KV pool, all but the last token first."""
        pool = KVPool(base, like=self.prefix)
        opened = [pool.open(self.prefix, self.prefix.length + len(row)) for row in self.rows]
        slots = [slot for slot in opened if slot is not None]
        pool.read([Chunk(slot, row[:-1]) for slot, row in zip(slots, self.rows, strict=True)])
        last = [Chunk(slot, row[-1:]) for slot, row in zip(slots, self.rows, strict=True)]
        if self.bare is not None and (slot := pool.open(self.bare, 1)) is not None:
            last.append(Chunk(slot, _BARE))
        found = pool.read(last)
        return base.head.logits(torch.cat(found))


def _plain(base: Base, ids: tuple[int, ...]) -> Tensor:
    """fp32 logits [V] after ``ids`` from the model's own forward pass over one unpadded row."""
    tokens = torch.tensor([ids], device=base.device)
    logits: Tensor = base.model(input_ids=tokens, use_cache=False).logits
    return logits[0, -1].float()


def _tokens(base: Base, count: int) -> tuple[int, ...]:
    words = base.embedding.weight.shape[0]
    return tuple(1 + (i * 7919) % (words - 1) for i in range(count))


def _worst(errors: list[float]) -> float:
    """The greatest; a NaN, which max may pass over, is greater than all."""
    return math.inf if any(map(math.isnan, errors)) else max(errors)


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# Behind a long front ------------------------------------------------------------------------------


class _NotCausalError(Exception):
    """What a token reads depends on those that follow it, so there is no order to read it in."""


@dataclass(frozen=True)
class _Far:
    """A few tokens behind a front longer than every window there may be, at the price of a few tokens.

    The front is made, not read: its keys are zeros, so every position gets the same attention, and its
    values are zeros, too, but noise, as loud as the front is long, where a window could begin. One position
    seen too many or too few shows in the logits. Layers of one shape share its tensors.

    Attributes:
        own: the model reading each row by its own masks.
        front: P positions.
        rows: of one token, of two and of many, the shorter ones being how the longest begins.
        expected: fp32 logits ``[3, V]`` after as many tokens of the longest, read alone.
    """

    own: Base
    front: Prefix
    rows: list[TokenRow]
    expected: Tensor

    @classmethod
    def of(cls, base: Base, like: Prefix) -> _Far:
        """As far as the model reads by itself, where its configuration does not say how far that is.

        like: any prefix of the model, which shows the shapes.
        """
        most = (base.max_positions or FARTHEST) - SHORT - COMPANY
        named = [(name, n) for name, n in _numbers(base.config.to_dict()) if SHORT < n <= most]
        spans = sorted({n for _, n in named})
        kept = {n for name, n in named if _CHOICE.search(name) and name != "sliding_window"}
        _check_order(base, kept)
        own = replace(base, layout=PADDED)
        tokens = _tokens(base, COMPANY)
        rows = [TokenRow(tokens[:1]), TokenRow(tokens[:2]), TokenRow(tokens)]
        with torch.no_grad():
            while True:
                front = _front(like, spans)
                try:
                    after = own.hidden([Batch(rows[2:], front)], [[(0, len(row.ids) - 1) for row in rows]])
                    return cls(own, front, rows, own.head.logits(after))
                except torch.OutOfMemoryError:
                    raise
                except Exception:
                    if not spans:
                        raise
                    spans.pop()

    def disagreement(self, base: Base) -> float:
        """Relative difference of a layout to the long row read alone: all rows in one pass, and by a step."""
        with torch.no_grad():
            read = _apart(base.next_logits(self.rows, self.front), self.expected)
            # A flat layout answers with the masks it reads with; one of single rows has nothing to step with.
            stepped = base.layout.company and not base.layout.flat
            return _worst([read, self._stepped(base)]) if stepped else read

    def check_order(self) -> None:
        """Of a row that differs: see that what followed its tokens is not why.

        Raises:
            _NotCausalError: it is.
        """
        with torch.no_grad():
            alone = self.own.next_logits(self.rows[1:2], self.front)[0]
        if not (error := _apart(self.expected[1], alone)) <= _tolerance(self.own):
            raise _NotCausalError(
                f"behind {self.front.length} positions a token reads what follows it, which moves its logits "
                f"by {error:.2g}"
            )

    def _stepped(self, base: Base) -> float:
        """Relative difference after a token behind the front and one behind a shorter one, in one step."""
        made: dict[int, Tensor] = {}

        def room(side: Tensor) -> Tensor:
            # A layer writes its own slots before it reads them, so those of one shape can share them.
            if id(side) not in made:
                made[id(side)] = torch.nn.functional.pad(side, (0, 0, 0, 1))[None].repeat(2, 1, 1, 1)
            return made[id(side)]

        one, length, shorter = self.rows[:1], self.front.length, self.front.length - 3
        keys, values = (
            {layer: room(sides[place]) for layer, place in self.front.places.items()}
            for sides in (self.front.keys, self.front.values)
        )
        at = torch.tensor([length, shorter], device=base.device)
        states = {key: t.repeat(2, *[1] * t.dim()) for key, t in self.front.states.items()}
        cache = DecodeCache(keys, values, states, at, length + 1)
        where = base.layout.decoding(at, length + 1, Windows.of(base.config), base.dtype)
        tokens = torch.tensor([one[0].ids] * 2, device=base.device)
        found = base.head.logits(base.run(input_ids=tokens, cache=cache, **where)[:, -1])
        expected = [self.expected[0], self.own.next_logits(one, _cut(self.front, shorter))[0]]
        return _apart(found, torch.stack(expected))


def _front(like: Prefix, spans: list[int]) -> Prefix:
    """A front longer than all these spans, of the shapes of ``like``; see ``_Far``."""
    length = max(spans, default=0) + SHORT
    around = {slot for n in spans for slot in range(length - n - 4, length - n + 4)} | set(range(4))
    loud = torch.tensor(sorted(slot for slot in around if 0 <= slot < length))
    drawn = torch.Generator().manual_seed(0)
    made: dict[Any, tuple[Tensor, Tensor]] = {}
    pairs = []
    for k, v in zip(like.keys, like.values, strict=True):
        shape = (k.shape, v.shape)
        if shape not in made:
            noise = torch.randn(v.shape[0], len(loud), v.shape[2], generator=drawn).to(v)
            # Each position gets 1 / length of the attention; float16 ends at 65,504.
            gain = min(length, torch.finfo(v.dtype).max / 2**6) * v.float().std()
            values = v.new_zeros(v.shape[0], length, v.shape[2])
            values[:, loud.to(v.device)] = noise * gain.to(v)
            made[shape] = k.new_zeros(k.shape[0], length, k.shape[2]), values
        pairs.append(made[shape])
    return replace(like.over((k for k, _ in pairs), (v for _, v in pairs)), read=length)


def _cut(prefix: Prefix, length: int) -> Prefix:
    keys, values = ([t[:, :length] for t in side] for side in (prefix.keys, prefix.values))
    return replace(prefix.over(keys, values), read=length)


def _check_order(base: Base, spans: set[int]) -> None:
    """See that a plain pass over words that repeat reads no word by what follows it, beyond these spans.

    A model that keeps a number of keys and drops the rest keeps any of equal ones, as their number has it.

    Raises:
        _NotCausalError: it does.
    """
    for span in spans:
        ids = (_tokens(base, 5) * (span + COMPANY))[: span + SHORT + COMPANY]
        tokens = torch.tensor([ids], device=base.device)
        with torch.no_grad():
            whole = base.model(input_ids=tokens, use_cache=False).logits[0, span + SHORT - 1].float()
        if not (error := _apart(whole, _plain(base, ids[: span + SHORT]))) <= _tolerance(base):
            raise _NotCausalError(
                f"in a text of more than {span} tokens a token reads what follows it, which moves its logits "
                f"by {error:.2g}"
            )


def _check_states(base: Base, prefix: Prefix) -> None:
    """See that several tokens, and more than a layer computes at once, go on from a state as one by one.

    Behind a state that is made, so loud that none is forgotten, the first tokens are compared; behind that
    of the prefix the last one of a long text, too.

    Raises:
        BaseModelError: they do not.
    """
    drawn = torch.Generator().manual_seed(0)
    loud = {key: torch.randn(t.shape, generator=drawn).to(t) for key, t in prefix.states.items()}
    front = replace(prefix, states=loud)
    named = {
        n for name, n in _numbers(base.config.to_dict()) if "chunk" in name and SHORT < n <= _LONGEST_CHUNK
    }
    ids = _tokens(base, max(named | {_USUAL_CHUNK}) + 2 * SHORT)
    pool = KVPool(base, like=front)
    slot = pool.open(front, front.length + SHORT)
    assert slot is not None
    with torch.no_grad():
        after = torch.cat([pool.read([Chunk(slot, (token,))])[0] for token in ids[:SHORT]])
        expected = base.head.logits(after)

        def at_once(length: int, front: Prefix) -> Tensor:
            places = [(0, token) for token in range(SHORT)]
            return base.head.logits(base.hidden([Batch([TokenRow(ids[:length])], front)], [places]))

        # Rounding may choose other experts behind a state that no text has, but forgetting it moves more.
        zeros = replace(front, states={key: torch.zeros_like(t) for key, t in loud.items()})
        forgetting = _apart(at_once(SHORT, zeros), expected) if base.dtype.itemsize < 4 else 0.0
        most = max(_tolerance(base), forgetting / 2)
        found = [(_apart(at_once(length, front), expected), most, length) for length in (SHORT, len(ids))]
        natural = base.next_logits([TokenRow(ids[3:])], base.prefill(base.embed(ids[:3])))[0]
        found.append((_apart(natural, _plain(base, ids)), _tolerance(base), len(ids) - 3))
    for error, most, length in found:
        if not error <= most:
            raise BaseModelError(
                f"{length} tokens read at once do not go on from a state as one by one, which moves its "
                f"logits by {error:.2g}"
            )


def _numbers(about: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration, however deep, but the ids and the number of its words."""
    if isinstance(about, dict):
        for own, value in about.items():
            if not any(word in str(own) for word in ("token", "vocab")):
                yield from _numbers(value, str(own))
    elif isinstance(about, list | tuple):
        for value in about:
            yield from _numbers(value, name)
    elif isinstance(about, int) and not isinstance(about, bool):
        yield name, about
