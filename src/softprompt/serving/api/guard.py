"""Keeps a client's text from giving orders: knows a tokenizer's control tokens, not what a request asks for.

A text that spells ``<|im_end|>`` must reach the model as these letters, while the marks of a template stay
control tokens. So whatever a client sends is set between two letters that occur nowhere (the *fence*), the
template or the chat is rendered around it, and at encoding every mark that no fence touches is the template's
own. Text without marks is encoded exactly as it always is.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from softprompt.base.model import Base
from softprompt.data.rows import Encoded, InputTokens
from softprompt.data.table import Row
from softprompt.errors import DataError
from softprompt.library.prompt import Prompt
from softprompt.prefix import Prefix

__all__ = ["Guard"]

_FENCES = "\ufdd0\ufdd1\ufdd2\ufdd3\ufdd4\ufdd5\ufdd6\ufdd7"
"""Codepoints that Unicode keeps free for ever; a text that uses all of them is refused."""


class _Encoding:
    """The tokenizer as ``Base.encode`` calls it, for the fenced texts of one request."""

    def __init__(self, guard: Guard, fence: str, tokenizer: Any) -> None:
        self._guard, self._fence, self._tokenizer = guard, fence, tokenizer

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": self._guard.encode(text, self._fence)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class Guard:
    """Encodes text of which a part is a stranger's."""

    def __init__(self, base: Base) -> None:
        self._base = base
        tokens = getattr(base.tokenizer, "added_tokens_decoder", {})
        unknown = base.tokenizer.unk_token_id  # says that a letter is unknown, and so may stand for any
        self._control = {i: t.content for i, t in tokens.items() if t.special and i != unknown}
        marks = sorted((re.escape(mark) for mark in self._control.values()), key=len, reverse=True)
        self._marks = re.compile("|".join(marks) or r"(?!)")
        self._letters: Any = None

    def tokens(self, prompt: Prompt, prefix: Prefix, text: str) -> InputTokens:
        """As ``prompt.tokens(text)``, with marks in the text read as letters; errors as there."""
        found = prompt.tokens(text)
        if self._controls(found.ids) == self._own_marks(prompt):
            return found
        fence = fence_for([text])
        return self._reading(prompt, prefix, fence).tokens(self._fenced(text, fence))

    def encoded(self, prompt: Prompt, prefix: Prefix, row: str | Row) -> Encoded:
        """As ``prompt.encode_request(row)``, with marks in the row read as letters; errors as there."""
        texts = list(texts_in(row))
        found = prompt.encode_request(row)
        clean = self._controls(found.examples[0].input_ids) == self._own_marks(prompt)
        if clean and not any(self._marks.search(text) for text in texts):
            return found
        fence = fence_for(texts)
        return self._reading(prompt, prefix, fence).encode_request(self._fenced(row, fence))

    def plain(self, text: str) -> list[int]:
        """Token ids of a text that stands in no template."""
        fence = fence_for([text])
        return self.encode(self._fenced_text(text, fence), fence)

    def encode(self, text: str, fence: str) -> list[int]:
        """Token ids of rendered text, in which marks next to a fence are letters.

        Raises:
            DataError: this tokenizer cannot read a mark as letters.
        """
        clean = text.replace(fence, "")
        ids = self._base.encode(clean)
        if self._controls(ids) == len(self._marks.findall(text)):
            return ids
        found: list[int] = []
        at = 0
        for mark in self._marks.finditer(text):
            found += self._as_letters(text[at : mark.start()].replace(fence, ""))
            found += self._base.encode(mark.group())
            at = mark.end()
        return found + self._as_letters(text[at:].replace(fence, ""))

    def chat(
        self, messages: Sequence[Mapping[str, Any]], opening: str = "", own: str = "", **how: Any
    ) -> list[int]:
        """Token ids of a chat in the base's own template; the ``opening`` of its text gives way to ``own``.

        ``how`` is as in ``Base.render_chat``.

        Raises:
            DataError: the template does not keep the messages as they are, and one spells a mark; or what is
                no message's content does.
            BaseModelError: the base has no chat template.
        """
        plain = [dict(message) for message in messages]
        others = [[value for key, value in message.items() if key != "content"] for message in plain]
        beside = json.dumps([others, how], ensure_ascii=False)
        if mark := self._marks.search(beside):
            raise _spelt(mark.group())
        fence = fence_for([beside, *(message["content"] for message in plain)])
        text = own + self._base.render_chat(plain, **how).removeprefix(opening)
        marked = [{**message, "content": self._fenced(message["content"], fence)} for message in plain]
        try:
            fenced = own + self._base.render_chat(marked, **how).removeprefix(opening)
        except Exception:  # a template is a program of its own, and may mind the fences
            fenced = ""
        if fenced.replace(fence, "") == text:
            return self._without_start(self.encode(fenced, fence))
        for message in plain:
            if mark := self._marks.search(message["content"]):
                raise _spelt(mark.group())
        return self._without_start(self._base.encode(text))

    def _fenced(self, values: Any, fence: str) -> Any:
        """A copy of a text, row or list whose texts stand between fences."""
        if isinstance(values, str):
            return self._fenced_text(values, fence)
        if isinstance(values, Mapping):
            return {key: self._fenced(value, fence) for key, value in values.items()}
        if isinstance(values, list | tuple):
            return [self._fenced(value, fence) for value in values]
        return values

    def _reading(self, prompt: Prompt, prefix: Prefix, fence: str) -> Prompt:
        """The prompt with an encoder for fenced text; its keys and values are not computed again."""
        base = replace(prompt.base, tokenizer=_Encoding(self, fence, prompt.base.tokenizer))
        return replace(prompt, base=base, front=prefix)

    def _controls(self, ids: Iterable[int]) -> int:
        return sum(i in self._control for i in ids)

    def _own_marks(self, prompt: Prompt) -> int:
        """How many marks the input template has itself."""
        template = prompt.template
        text = template.render_input(dict.fromkeys(template.input_fields, _FENCES[0]))
        return len(self._marks.findall(text))

    def _without_start(self, ids: list[int]) -> list[int]:
        """What stands in front begins the text already."""
        start = list(self._base.start_ids)
        return ids[len(start) :] if start and ids[: len(start)] == start else ids

    def _fenced_text(self, text: str, fence: str) -> str:
        """Fences at both ends, inside white space, which templates may trim, and within each mark."""
        core = text.strip()
        if not core:
            return text
        head = len(text) - len(text.lstrip())
        inner = self._marks.sub(lambda mark: f"{mark.group()[:1]}{fence}{mark.group()[1:]}", core)
        return f"{text[:head]}{fence}{inner}{fence}{text[head + len(core) :]}"

    def _as_letters(self, text: str) -> list[int]:
        if not text:
            return []
        mark = self._marks.search(text)
        if mark is None:
            return self._base.encode(text)
        ids = self._letter_encoder(mark.group()).encode(text, add_special_tokens=False).ids
        if any(i in self._control for i in ids):
            raise _spelt(mark.group())
        return list(ids)

    def _letter_encoder(self, mark: str) -> Any:
        """A copy of the tokenizer that has no marks; the base's own is in use by other threads."""
        if self._letters is None:
            backend = getattr(self._base.tokenizer, "backend_tokenizer", None)
            if backend is None:
                raise _spelt(mark)
            letters = copy.deepcopy(backend)
            letters.no_padding()
            letters.no_truncation()
            letters.encode_special_tokens = True
            self._letters = letters
        return self._letters


def fence_for(texts: Iterable[str]) -> str:
    """A letter that none of the texts holds.

    Raises:
        DataError: there is none left.
    """
    together = "".join(texts)
    for fence in _FENCES:
        if fence not in together:
            return fence
    raise DataError("The text holds codepoints that are no letters (U+FDD0 to U+FDD7); leave them out.")


def texts_in(values: Any) -> Iterable[str]:
    """Every text in a text, row or list."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from texts_in(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from texts_in(value)


def _spelt(mark: str) -> DataError:
    return DataError(
        f"The text spells the control token {mark}, which this model cannot read as letters; leave it out."
    )
