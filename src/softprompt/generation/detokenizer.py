"""Text out of tokens, as they come: what may be shown now, what must wait, and when an answer ends.

It knows a tokenizer and stop rules. It does not know how a token was chosen, or who reads the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from softprompt.base.model import Base
from softprompt.generation.request import FinishReason
from softprompt.generation.sampler import Sampling

__all__ = ["Detokenizer", "StopRules"]

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no character, or not yet."""

_CONTEXT = 8
"""Tokens kept in front of the next one: more than a character has bytes, and enough to join words rightly."""


class Detokenizer:
    """Writes one answer: tokens in, pieces of text out.

    All pieces together are ``base.decode`` of all tokens, up to the first stop string. Held back is what
    could still become a stop string, and the bytes of an unfinished character (with a byte-fallback
    vocabulary, a whole run of bytes). A token costs the same however long the answer is.

    The first stop string is the one that is complete first; of those that become complete with the same
    character, the one that begins first. So it does not matter how a text falls into tokens.

    Attributes:
        stopped: whether a stop string has come. What follows it is not written.
    """

    def __init__(self, base: Base, stop: str | Sequence[str] = ()) -> None:
        self._tokenizer = base.tokenizer
        self._facts = _facts(base.tokenizer)
        self._stops = _StopMatcher((stop,) if isinstance(stop, str) else stop)
        self._shown: list[str] = []
        self._ids: list[int] = []
        """The last tokens, those whose text is still held back among them."""
        self._read = 0
        """How many characters of their text are settled, and read."""

    @property
    def stopped(self) -> bool:
        return self._stops.found

    @property
    def text(self) -> str:
        """All that was shown."""
        return "".join(self._shown)

    def push(self, token: int, *, search: bool = True) -> str:
        """The text that may be shown after one more token; often one piece, sometimes none.

        With ``search`` off, which it may be for the first tokens only, no stop string is looked for in it.
        """
        if self.stopped or token in self._facts.silent:
            return ""
        word = self._tokenizer.convert_ids_to_tokens(token)
        if word is None:  # a head may hold more words than its tokenizer
            return ""
        self._ids.append(token)
        if _BYTE.fullmatch(word):  # one wrong byte turns its neighbours to U+FFFD too, so a run of them waits
            return ""
        text = self._decode(self._ids)
        settled = self._settled(text)
        fresh, self._read = text[self._read : settled], settled
        self._forget(len(text) - settled)
        fresh = self._clean(fresh)
        return self._show(self._stops.read(fresh) if search else fresh)

    def finish(self) -> str:
        """What was held back and turned out to be text. To be called once, after the last token."""
        if self.stopped:
            return ""
        text = self._decode(self._ids)
        fresh, self._read = text[self._read :], len(text)
        return self._show(self._stops.read(self._clean(fresh)) + self._stops.rest())

    def piece(self, token: int) -> str:
        """The text of one token amid others, to name it by; special tokens are written out.

        Bytes of a character that takes several tokens are U+FFFD.
        """
        pieces = self._facts.pieces
        if token not in pieces:
            pieces[token] = self._piece(token)
        return pieces[token]

    def _piece(self, token: int) -> str:
        alone = self._decode([token], special=True)
        if token in self._facts.silent or _UNFINISHED in alone:
            return alone
        # At the beginning of a text some tokenizers drop a token's leading space, so it is set behind itself.
        return self._decode([token, token], special=True)[len(alone) :]

    def _show(self, piece: str) -> str:
        if piece:
            self._shown.append(piece)
        return piece

    def _decode(self, ids: list[int], special: bool = False) -> str:
        return str(
            self._tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        )

    def _settled(self, text: str) -> int:
        """How many characters of a text no further token can change."""
        # Of several U+FFFD only the last can be an unfinished character: after the others, another began.
        end = len(text) - text.endswith(_UNFINISHED)
        return _tidy_end(text, self._read, end) if self._facts.tidies else end

    def _clean(self, text: str) -> str:
        return str(self._tokenizer.clean_up_tokenization(text)) if self._facts.tidies else text

    def _forget(self, held: int) -> None:
        """Drop old tokens when there are many; ``held`` characters at the end were not read yet."""
        if len(self._ids) > 2 * _CONTEXT and held <= 1:
            # Counted from the end, as the beginning may read otherwise without what stood before it.
            self._ids = self._ids[-_CONTEXT:]
            self._read = len(self._decode(self._ids)) - held


# -- what there is to know of a tokenizer ----------------------------------------------------------------

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A token of a byte-fallback vocabulary, as Llama's."""


@dataclass(frozen=True)
class _Facts:
    """Of one tokenizer: tokens that are no text, whether it tidies spaces, texts of tokens seen so far."""

    silent: frozenset[int]
    tidies: bool
    pieces: dict[int, str] = field(default_factory=dict)


_known: WeakKeyDictionary[Any, _Facts] = WeakKeyDictionary()


def _facts(tokenizer: Any) -> _Facts:
    found = _known.get(tokenizer)
    if found is None:
        marks = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        silent = frozenset(i for i in marks if tokenizer.decode([i], skip_special_tokens=True) == "")
        ids = tokenizer("x . y", add_special_tokens=False, verbose=False)["input_ids"]
        plain = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        found = _known[tokenizer] = _Facts(silent, tidies=tokenizer.decode(ids) != plain)
    return found


_WORD = 4
"""Tidying takes spaces out before marks of up to three characters: it never reaches across so many others."""


def _tidy_end(text: str, start: int, end: int) -> int:
    """The last place up to ``end`` with no space shortly before: both sides can be tidied by themselves."""
    while end > start and " " in text[max(end - _WORD, 0) : end]:
        end -= 1
    return end


# -- when an answer ends -----------------------------------------------------------------------------------


class StopRules:
    """When an answer ends: at the end token, a stop token, a stop string, or its greatest length.

    A stop string that is a special token, such as ``<|im_end|>``, is a stop token: decoded text never
    shows it.

    Attributes:
        ends: tokens at which the answer ends, and which are no part of it.
    """

    def __init__(self, base: Base, sampling: Sampling, longest: int) -> None:
        named = {stop: base.tokenizer.convert_tokens_to_ids(stop) for stop in sampling.stop}
        silent = _facts(base.tokenizer).silent
        special = {i for stop, i in named.items() if i in silent and _word(base, i) == stop}
        self.ends = {*sampling.stop_tokens, *special}
        if not sampling.ignore_end:
            self.ends |= base.end_ids
        self._shortest, self._longest = sampling.min_new_tokens, longest

    def barred(self, tokens: int) -> Collection[int]:
        """What may not come next while the answer has only so many tokens."""
        return self.ends if tokens < self._shortest else ()

    def searches(self, tokens: int) -> bool:
        """Whether stop strings are looked for in the text of the token with this number, counted from 1."""
        return tokens > self._shortest

    def ends_before(self, token: int) -> bool:
        """Whether the answer ends at this token, which is then no part of it."""
        return token in self.ends

    def ends_after(self, tokens: int, detokenizer: Detokenizer) -> FinishReason | None:
        """Why the answer ends now that it has so many tokens, or None."""
        if detokenizer.stopped:
            return "stop"
        return "length" if tokens >= self._longest else None


def _word(base: Base, token: int) -> str | None:
    """The token as the vocabulary spells it; a text that is none of it is given the unknown token's id."""
    return base.tokenizer.convert_ids_to_tokens(token)  # type: ignore[no-any-return]


# -- stop strings ----------------------------------------------------------------------------------------


class _StopMatcher:
    """Looks for stop strings in a text in pieces, reading each character once (Knuth, Morris, Pratt 1977)."""

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string"
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._matched = [0] * len(self._stops)
        """How much of each stop string the text so far ends with."""
        self._held = ""
        """The longest of those beginnings."""
        self.found = False

    def read(self, text: str) -> str:
        """What may be shown of the text held back and this one."""
        if not self._stops:
            return text
        whole = self._held + text
        for place, char in enumerate(text, len(self._held) + 1):
            complete = self._advance(char)
            if complete:
                self.found, self._held = True, ""
                return whole[: place - complete]
        kept = len(whole) - max(self._matched)
        self._held = whole[kept:]
        return whole[:kept]

    def rest(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> int:
        """Read one character; the length of the longest stop string it completes, or 0."""
        complete = 0
        for number, (stop, borders) in enumerate(self._stops):
            matched = self._matched[number]
            while matched and stop[matched] != char:
                matched = borders[matched - 1]
            matched += stop[matched] == char
            self._matched[number] = matched
            if matched == len(stop):
                complete = max(complete, matched)
        return complete


def _borders(text: str) -> list[int]:
    """For every beginning of a text, the length of its longest proper beginning that is also its end."""
    borders, matched = [0] * len(text), 0
    for place in range(1, len(text)):
        while matched and text[matched] != text[place]:
            matched = borders[matched - 1]
        matched += text[matched] == text[place]
        borders[place] = matched
    return borders
