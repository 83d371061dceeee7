"""A learnt prompt in use: it answers, classifies and is scored, on the base it was learnt on.

It knows a front, a card and a base; it does not know how the front was learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch

from softprompt.base.generate import Request, Sampling, generate
from softprompt.base.model import Base
from softprompt.data.rows import Encoded, Example, candidate_ids, encode, encode_input
from softprompt.data.table import Row, Table
from softprompt.data.template import Template
from softprompt.errors import ArtifactError, ConfigError
from softprompt.evaluation.score import Scores, likelihoods, score
from softprompt.library.card import Card
from softprompt.library.folder import Library, check_base
from softprompt.library.peft_format import from_front, to_front
from softprompt.prefix import Front, Prefix

__all__ = ["Prompt", "answer_together", "load_prompt"]

Text = str | Row


@dataclass(frozen=True, eq=False)
class Prompt:
    """One job a frozen base has learnt.

    Attributes:
        base: the model; it serves any number of prompts at once.
        front: what was learnt, embeddings ``[P, E]`` or a prefix.
        card: what is known about it: template, labels, scores, settings.
    """

    base: Base
    front: Front
    card: Card

    @property
    def name(self) -> str:
        return self.card.name

    @cached_property
    def prefix(self) -> Prefix:
        """Its keys and values, computed once."""
        with torch.no_grad():
            return self.base.prefill(self.front).detached()

    @cached_property
    def template(self) -> Template:
        """How a row becomes text for it."""
        about = self.card.template
        return Template(about.input, about.target, about.labels, about.label_column)

    @overload
    def generate(self, text: Text, **sampling: Any) -> str: ...
    @overload
    def generate(self, text: Sequence[Text], **sampling: Any) -> list[str]: ...
    def generate(self, text: Text | Sequence[Text], **sampling: Any) -> str | list[str]:
        """Answer one text, or a list of them in one batch.

        Args:
            text: plain text where the input template has one field, else a row with its columns.
            sampling: fields of ``Sampling``: max_new_tokens, temperature, top_k, top_p, seed, stop.

        Raises:
            DataError: a row that does not fit the template.
            BaseModelError: a text longer than the base's positions.
        """
        single = isinstance(text, str | Mapping)
        texts: Sequence[Text] = [text] if isinstance(text, str | Mapping) else text
        answers = answer_together([(self, t) for t in texts], self.base, **sampling)
        return answers[0] if single else answers

    def classify(self, text: Text) -> dict[str, float]:
        """Probability of every label, the likeliest first.

        Raises:
            ConfigError: a prompt without labels.
        """
        labels = list(self.template.labels or ())
        if not labels:
            raise ConfigError(f"{self.name} was learnt without labels; use generate.")
        row = Encoded(
            (Example(self.request(text).ids, (), 0, 0),), 0, self._candidates, self._whole_words, ()
        )
        with torch.no_grad():
            shares = likelihoods(self.base, self.prefix, row)[0].softmax(0).tolist()
        return dict(sorted(zip(labels, shares, strict=True), key=lambda pair: -pair[1]))

    def evaluate(self, table: Table) -> Scores:
        """Scores on labelled rows: accuracy where there are labels, loss per token anyway."""
        return score(self.base, self.prefix, self.encode(table))

    def encode(self, table: Table) -> Encoded:
        """Rows in tokens, exactly as in training."""
        about = self.card.template
        return encode(table, self.template, self.base.encode, max_tokens=about.max_tokens, end=self._end)

    def request(self, text: Text) -> Request:
        """One text as the engine takes it: its tokens, by the seam rule, behind this prompt.

        The answer of a job with labels is at most as long as the longest label.
        """
        if isinstance(text, str) and not self.template.input_fields:
            # Nothing in the input varies, so the text can only be how the answer begins.
            ids = (*self.base.encode(self.template.input_text({})), *self.base.encode(text))
            return Request(ids, self.prefix)
        longest = max(map(len, self._candidates or ((),)))
        room = self.card.template.max_tokens
        ids = encode_input(self.template, text, self.base.encode, room, reserve=longest)
        return Request(ids, self.prefix, limit=longest or None)

    def save(self, library: str | Path | Library = "prompts", *, overwrite: bool = False) -> Path:
        """Write the artifact, whole or not at all, as ``library/NAME``; its path."""
        shelf = library if isinstance(library, Library) else Library(library)
        return shelf.save(self.name, from_front(self.front, self.base), self.card, overwrite=overwrite)

    @property
    def _end(self) -> tuple[int, ...]:
        end = self.base.end_id
        return (end,) if self.card.template.end_of_text and end is not None else ()

    @cached_property
    def _candidates(self) -> tuple[tuple[int, ...], ...] | None:
        return candidate_ids(self.template, self.base.encode, self._end)

    @cached_property
    def _whole_words(self) -> bool:
        words = self._candidates or ()
        return len({word[0] for word in words}) < len(words)


def load_prompt(name: str | Path, base: Base, library: str | Path = "prompts") -> Prompt:
    """Load a saved prompt, by its name in a library or by its folder.

    Raises:
        ArtifactError: there is no such prompt, or it is damaged.
        WrongBaseError: it was learnt on another base.
    """
    artifact = Library(library).load(name)
    if artifact.card is None:
        raise ArtifactError(f"{name} has no card; bring it in with softprompt import first.")
    check_base(artifact, base)
    return Prompt(base, to_front(artifact.learnt, base), artifact.card)


def answer_together(requests: Sequence[tuple[Prompt | None, Text]], base: Base, **sampling: Any) -> list[str]:
    """Answer texts for different prompts, and the bare base (``None``), in one batch."""
    bare: Prefix | None = None
    rows = []
    for prompt, text in requests:
        if prompt is not None:
            rows.append(prompt.request(text))
            continue
        bare = bare or base.prefill_text("")
        rows.append(Request(tuple(base.encode(str(text))), bare))
    return generate(base, rows, _sampling(sampling))


def _sampling(options: Mapping[str, Any]) -> Sampling:
    known = Sampling.__dataclass_fields__
    for name in options:
        if name not in known:
            raise ConfigError(f"{name!r} is no sampling option; there are {', '.join(known)}.")
    return replace(Sampling(), **options)
