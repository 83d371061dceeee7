"""What an answer may be: a grammar made ready for a base's tokens, and followed token by token.

It knows llguidance (Moskal et al., "guidance-ai/llguidance") and which tokens may come next; it does not know
who asks, which of them is chosen, or text already written. It needs the package ``llguidance``.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy
import torch
from torch import Tensor

from softprompt.base.model import Base
from softprompt.errors import ConfigError
from softprompt.generation.detokenizer import Detokenizer

__all__ = ["Grammar", "GrammarState", "json_rule"]

_KEPT = 64
"""Compiled grammars kept for the next request that brings the same one."""

_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # about 20 ms
    "step_lexer_fuel": 200_000,  # about 15 ms
    "step_max_items": 50_000,  # about 3 ms
    "max_items_in_row": 5_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
}
"""What compiling a grammar and a step along it may take: strangers write them, and a step is everybody's."""

_SPACING: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
}
"""JSON on one line: where any white space may stand, a model may write it for ever."""


class Grammar:
    """A grammar ready for one base's tokens; shared by all rows that follow it.

    Made by ``of_schema``, ``of_regex``, ``of_choices`` and ``of_lark``, which raise ``ConfigError`` where it
    cannot be compiled, is too large, or the base's tokenizer cannot be read token by token.
    """

    def __init__(self, source: str, matcher: Any, ends: frozenset[int]) -> None:
        self.source = source
        """As llguidance takes it."""
        self._matcher, self._ends = matcher, ends
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Grammar of {len(self.source)} letters>"

    @classmethod
    def of_schema(cls, base: Base, schema: Mapping[str, Any] | Literal[True]) -> Grammar:
        """JSON that fits a JSON schema, on one line; keys come in the schema's order, and no others.

        An object whose schema names its properties has only these, also where others would be allowed: a
        model that may add some seldom comes to an end.
        """
        from llguidance import LLMatcher

        try:
            text = json.dumps(_closed(schema) if not isinstance(schema, bool) else {})
            return cls._compiled(base, LLMatcher.grammar_from_json_schema(text, overrides=_SPACING))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"The schema cannot be followed: {_reason(str(error))}.") from None

    @classmethod
    def of_regex(cls, base: Base, regex: str) -> Grammar:
        """A text that a regular expression matches as a whole (syntax of Rust's regex crate)."""
        from llguidance import LLMatcher

        return cls._compiled(base, LLMatcher.grammar_from_regex(regex))

    @classmethod
    def of_choices(cls, base: Base, choices: Sequence[str]) -> Grammar:
        """One of these texts."""
        return cls.of_lark(base, "start: " + " | ".join(map(json.dumps, choices)))

    @classmethod
    def of_lark(cls, base: Base, lark: str) -> Grammar:
        """A grammar in llguidance's dialect of Lark."""
        from llguidance import LLMatcher

        return cls._compiled(base, LLMatcher.grammar_from_lark(lark))

    @classmethod
    def _compiled(cls, base: Base, source: str) -> Grammar:
        kept = _known(base)
        with kept.lock:
            found = kept.grammars.get(source)
            if found is not None:
                kept.grammars.move_to_end(source)
                return found
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(**_LIMITS, verbose_errors=False)
        matcher = LLMatcher(kept.tokenizer, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise ConfigError(f"The grammar cannot be followed: {_reason(matcher.get_error())}.")
        made = cls(source, matcher, base.end_ids)
        made.state().allowed(kept.tokenizer.vocab_size)  # what no token fits is told before the work, too
        with kept.lock:
            kept.grammars[source] = made
            while len(kept.grammars) > _KEPT:
                kept.grammars.popitem(last=False)
        return made

    def state(self) -> GrammarState:
        """Nothing written yet."""
        with self._lock:
            return GrammarState(self._matcher.deep_copy(), self._ends)


class GrammarState:
    """Where in a grammar one answer is."""

    def __init__(self, matcher: Any, ends: frozenset[int]) -> None:
        self._matcher, self._ends = matcher, torch.tensor(sorted(ends), dtype=torch.long)

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self, words: int) -> Tensor:
        """Which of so many tokens may come next, bool [V]; end tokens where the answer may end.

        Raises:
            ConfigError: the grammar is too costly to follow, or no token of the vocabulary fits it.
        """
        found = self._matcher.compute_bitmask()
        self._check()
        bits = numpy.unpackbits(numpy.frombuffer(found, numpy.uint8), bitorder="little")
        mask = torch.from_numpy(bits).view(torch.bool)
        if len(mask) < words:
            mask = torch.cat([mask, torch.zeros(words - len(mask), dtype=torch.bool)])
        mask = mask[:words]
        ends = self._ends[self._ends < words]
        mask[ends] = self._matcher.is_accepting()
        if not mask.numpy().any():  # fifteen times as fast as torch's
            raise ConfigError("No token of this model's vocabulary goes on as the grammar asks.")
        return mask

    def take(self, token: int) -> None:
        """Go on by a token that was allowed.

        Raises:
            ConfigError: the grammar is too costly to follow.
        """
        if not self._matcher.consume_token(token):
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConfigError(f"The grammar cannot be followed: {_reason(self._matcher.get_error())}.")


def _reason(said: str, most: int = 200) -> str:
    """The line of llguidance's message that says what is wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no reason given"]
    line = next((line[7:] for line in lines if line.startswith("error: ")), lines[0]).rstrip(".")
    if line.startswith("NoExtension"):
        return "no text fits it, or none that this model's tokens can spell"
    return line if len(line) <= most else f"{line[:most]}..."


def json_rule(schema: Mapping[str, Any]) -> str:
    """A schema as the right side of a rule of ``Grammar.of_lark``; its references stay its own."""
    return f"%json {json.dumps({**_closed(schema), 'x-guidance': _SPACING})}"


_NAMED = ("properties", "$defs", "definitions")
_VALUES = ("enum", "const", "default", "examples")
_OPEN = {"additionalProperties", "patternProperties", "anyOf", "oneOf", "$ref"}


def _closed(schema: Any) -> Any:
    """The schema, its objects closed to what it does not name; as it is where parts are put together."""
    return schema if '"allOf"' in json.dumps(schema) else _close(schema)


def _close(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_close(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = dict(schema)
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            found[key] = {name: _close(part) for name, part in value.items()}
        elif key not in _VALUES:
            found[key] = _close(value)
    if isinstance(found.get("properties"), dict) and not found.keys() & _OPEN:
        found["additionalProperties"] = False
    return found


# -- a tokenizer as llguidance reads it ---------------------------------------------------------------------


class _Known:
    """Of one tokenizer: how llguidance reads it, and grammars compiled for it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.grammars: OrderedDict[str, Grammar] = OrderedDict()
        self.lock = threading.Lock()


_all: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()
_making = threading.Lock()


def _known(base: Base) -> _Known:
    with _making:
        found = _all.get(base.tokenizer)
        if found is None:
            found = _all[base.tokenizer] = _Known(_read(base))
        return found


def _read(base: Base) -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper
    from llguidance.hf import from_tokenizer

    if not base.end_ids:
        raise ConfigError(f"{base.name} names no end token, so no answer of it can be held to a grammar.")
    ends, words = sorted(base.end_ids), int(base.embedding.weight.shape[0])
    try:
        return from_tokenizer(base.tokenizer, n_vocab=words, eos_token=ends)
    except ValueError:  # its bytes are not told by its decoder
        return LLTokenizer(TokenizerWrapper(_Spelt(base)), n_vocab=words, eos_token=ends)


class _Spelt:
    """A vocabulary spelt out token by token, in the shape that llguidance asks for."""

    def __init__(self, base: Base) -> None:
        detokenizer, words = Detokenizer(base), len(base.tokenizer)
        self.eos_token_id, self.bos_token_id = min(base.end_ids), base.tokenizer.bos_token_id
        self.special_token_ids = sorted({*base.tokenizer.all_special_ids, *base.end_ids})
        self.tokens = [detokenizer.piece(token).encode() for token in range(words)]
        self._base = base

    def __call__(self, text: str) -> list[int]:
        unknown = self._base.tokenizer.unk_token_id  # which may stand for any letter
        return [token for token in self._base.encode(text) if token != unknown]
