"""A learnt prompt in use: it answers, classifies and is scored, on the base it was learnt on.

It knows a front, a card and a base; it does not know how the front was learnt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch

from softprompt.base.copies import Change
from softprompt.base.model import Base
from softprompt.data.chat import chat_opening, conversation_rows
from softprompt.data.memory import Rows, as_table, as_texts
from softprompt.data.rows import (
    Encoded,
    InputTokens,
    Scaling,
    candidate_ids,
    encode,
    encode_input,
    encode_request,
)
from softprompt.data.table import Table, Text
from softprompt.data.template import Template
from softprompt.errors import ArtifactError, ConfigError
from softprompt.evaluation.score import Scores, judge, score
from softprompt.evaluation.words import SCORE_HEADS, score_rows
from softprompt.evaluation.writing import Written, references, write
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest, sampling_of
from softprompt.generation.sampler import Sampling
from softprompt.library.card import Card, read_card
from softprompt.library.folder import Library, check_base
from softprompt.library.formats import payload
from softprompt.library.share import push
from softprompt.prefix import Front, Prefix
from softprompt.report.notebook import grid_html

__all__ = ["Prompt", "Text", "answer_together", "load_prompt"]


@dataclass(frozen=True, eq=False)
class Prompt:
    """One job a frozen base has learnt.

    Attributes:
        base: the model it is read with: the frozen base, which serves any number of prompts at once, or a
            changed copy over its weights.
        front: what stands in front, embeddings ``[P, E]`` or a prefix.
        card: what is known about it: template, labels, scores, settings.
        change: what turns the frozen base into ``base``; None where that is the base itself.
        frozen: the base it was learnt on; None where that is ``base``.
    """

    base: Base
    front: Front
    card: Card
    change: Change | None = None
    frozen: Base | None = None

    def __repr__(self) -> str:
        return f"<Prompt {self.name}: {self.card.kind}, {self.card.positions} positions, on {self.base.name}>"

    def _repr_html_(self) -> str:
        card = self.card
        about = f"{card.kind}, {card.positions} positions, {card.trained_parameters:,} learnt numbers"
        rows = score_rows(card.scores)
        note = f"{about}, on {self.base.name}."
        return grid_html(card.name, SCORE_HEADS[: len(rows[0]) if rows else 4], rows, note)

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
        return self.card.template.template

    @overload
    def generate(self, text: Text, **sampling: Any) -> str: ...
    @overload
    def generate(self, text: Rows, **sampling: Any) -> list[str]: ...
    def generate(self, text: Text | Rows, **sampling: Any) -> str | list[str]:
        """Answer one text, or a list, data frame or data set of them in one batch.

        Args:
            text: plain text where the input template has one field, else a row with its columns.
            sampling: fields of ``Sampling``: max_new_tokens, temperature, top_k, top_p, seed, stop.

        Raises:
            DataError: a row that does not fit the template.
            BaseModelError: a text longer than the base's positions.
        """
        single = isinstance(text, str | Mapping)
        texts: list[Text] = [text] if isinstance(text, str | Mapping) else as_texts(text)
        answers = answer_together([(self, t) for t in texts], self.base, **sampling)
        return answers[0] if single else answers

    @overload
    def classify(self, text: Text) -> dict[str, float]: ...
    @overload
    def classify(self, text: Rows) -> list[dict[str, float]]: ...
    def classify(self, text: Text | Rows) -> dict[str, float] | list[dict[str, float]]:
        """Probability of every label, or of every choice the row offers, the likeliest first.

        Of a list, data frame or data set, those of each.

        Raises:
            ConfigError: a prompt without labels or choices.
            DataError: a row that does not fit the template, or offers no choices where it should.
        """
        if not self.template.compares:
            raise ConfigError(f"{self.name} was learnt without labels; use generate.")
        if not isinstance(text, str | Mapping):
            return [self.classify(one) for one in as_texts(text)]
        encoded = self.encode_request(text)
        answers = self.template.answers({} if isinstance(text, str) else text)
        with torch.no_grad():
            shares = judge(self.base, self.prefix, encoded).probabilities[0].tolist()
        return dict(sorted(zip(answers, shares, strict=True), key=lambda pair: -pair[1]))

    def evaluate(self, rows: Rows) -> Scores:
        """Scores on labelled rows: accuracy where there are labels, loss per token anyway.

        Args:
            rows: a list of dicts, a data frame, a data set, a table or a source such as a path.

        Raises:
            DataError: they are no rows, or do not fit the template.
        """
        return score(self.base, self.prefix, self.encode(self.rows(rows)))

    def write(self, rows: Rows, *, max_new_tokens: int = 64) -> Written:
        """Answer every row, greedily, and hold the answers against the targets: ROUGE, BLEU and more.

        Raises:
            DataError: as in ``evaluate``.
            ResourceError: rouge-score or sacrebleu is not installed.
        """
        table = self.rows(rows)
        right = references(self.template, table)
        return write(self.base, self.prefix, self.encode(table), right, max_new_tokens=max_new_tokens)

    def bare(self) -> Prompt:
        """The same job on the base as it was, nothing learnt in front."""
        base = self.frozen or self.base
        in_chat = self.card.settings.get("data", {}).get("chat", False)
        opening = base.opening(chat_opening(base.render_chat) if in_chat else "")
        template = self.card.template.model_copy(update={"scaling": None})
        card = self.card.model_copy(update={"template": template})
        return replace(self, base=base, front=base.embed(opening), card=card, change=None, frozen=None)

    def rows(self, rows: Rows) -> Table:
        """Rows as the job has them: files with its separator, one row for every answer in conversations.

        Raises:
            DataError: they are no rows, or a conversation is none.
        """
        table = as_table(rows, separator=self.card.separator)
        return conversation_rows(table, *self.card.conversations(table.columns), self.base.render_chat)

    def encode(self, table: Table) -> Encoded:
        """Rows in tokens, exactly as in training."""
        return encode(table, self.template, self.base.encode, **self._options, cut_targets=self._cuts_targets)

    def request(self, text: Text, sampling: Sampling | None = None, row: int = 0) -> GenerateRequest:
        """To answer one text behind this prompt, no longer than its job's longest answer; see ``tokens``."""
        return _answering(self.base, self.prefix, self.tokens(text), sampling or Sampling(), row)

    def tokens(self, text: Text) -> InputTokens:
        """One text as its tokens, by the seam rule.

        The answer of a job with labels is at most as long as the longest label, and so with choices, where
        the row offers them.
        """
        if isinstance(text, str) and not self.template.input_fields:
            # Nothing in the input varies, so the text can only be how the answer begins.
            ids = (*self.base.encode(self.template.input_text({})), *self.base.encode(text))
            return InputTokens(ids)
        if self.template.choices is not None and not _offers(text, self.template.choice_columns):
            room = self.card.template.max_tokens
            return encode_input(self.template, text, self.base.encode, room)
        encoded = self.encode_request(text)
        (example,) = encoded.examples
        longest = max(map(len, encoded.candidates(example)), default=0)
        return InputTokens(example.input_ids, longest or None, bool(encoded.truncated))

    def save(self, library: str | Path | Library = "prompts", *, overwrite: bool = False) -> Path:
        """Write the artifact, whole or not at all, as ``library/NAME``; its path."""
        learnt = payload(self.base, self.front, self.change)
        return _opened(library).save(self.name, learnt, self.card, overwrite=overwrite)

    def push_to_hub(self, repo: str, *, private: bool = False) -> str:
        """Put the artifact on the model hub as ``repo``, OWNER/NAME, and return its address.

        ``load_prompt("hub:OWNER/NAME", base)`` brings it back. Paths of this machine are left out.

        Raises:
            ArtifactError: ``repo`` is no OWNER/NAME.
            ResourceError: nobody is logged in, the hub refuses, or it cannot be reached.
        """
        with tempfile.TemporaryDirectory() as made:
            folder = self.save(made)
            return push(folder, read_card(folder), repo, private=private)

    @property
    def scaling(self) -> Scaling | None:
        """What was fitted to the scores of its labels, if anything."""
        card = self.card.template.scaling
        return None if card is None else card.scaling

    @property
    def _end(self) -> tuple[int, ...]:
        end = self.base.end_id
        return (end,) if self.card.template.end_of_text and end is not None else ()

    @property
    def _options(self) -> dict[str, Any]:
        """How rows are encoded, apart from the template."""
        about = self.card.template
        return {
            "max_tokens": about.max_tokens,
            "end": self._end,
            "normalise": about.normalise,
            "calibrate": about.calibrate,
            "scaling": self.scaling,
        }

    @property
    def _cuts_targets(self) -> bool:
        """Whether targets that are too long were cut while it was learnt."""
        return bool(self.card.settings.get("data", {}).get("long_targets") == "cut")

    def encode_request(self, text: Text) -> Encoded:
        known = self._candidates
        return encode_request(self.template, text, self.base.encode, labels=known, **self._options)

    @cached_property
    def _candidates(self) -> tuple[tuple[int, ...], ...] | None:
        return candidate_ids(self.template, self.base.encode, self._end)


def load_prompt(name: str | Path, base: Base, library: str | Path | Library = "prompts") -> Prompt:
    """Load a saved prompt, by its name in a library, by its folder, or from the hub (``hub:OWNER/NAME``).

    One that changes the model (LoRA, full fine-tuning) is read with a changed copy; ``base`` stays as it is.

    Raises:
        ArtifactError: there is no such prompt, or it is damaged.
        WrongBaseError: it was learnt on another base.
    """
    artifact = _opened(library).load(name)
    if artifact.card is None:
        raise ArtifactError(f"{name} has no card; bring it in with softprompt import first.")
    check_base(artifact, base)
    met = artifact.payload.meet(base)
    return Prompt(met.base, met.front, artifact.card, met.change, base)


def _opened(library: str | Path | Library) -> Library:
    return library if isinstance(library, Library) else Library(library)


def answer_together(requests: Sequence[tuple[Prompt | None, Text]], base: Base, **sampling: Any) -> list[str]:
    """Answer texts for different prompts, and the bare base (``None``), together.

    Prompts that were learnt on ``base`` may come with changed copies of it (LoRA, full fine-tuning); where
    answers are drawn, rows count from 0 in each model.

    Raises:
        WrongBaseError: a prompt of another base.
    """
    wanted = sampling_of(sampling)
    bare: Prefix | None = None
    rows: dict[str, int] = {}
    asked = []
    for prompt, text in requests:
        model = base if prompt is None else prompt.base
        row = rows[model.fingerprint] = rows.get(model.fingerprint, -1) + 1
        if prompt is None:
            bare = bare or base.prefill_text("")
            tokens = InputTokens(tuple(base.encode(str(text))))
            asked.append(_answering(base, bare, tokens, wanted, row))
        else:
            if prompt.card.base.fingerprint != base.fingerprint:
                base.accept(prompt.prefix)
            asked.append(prompt.request(text, wanted, row))
    return generate(asked)


def _answering(
    model: Base, prefix: Prefix, tokens: InputTokens, sampling: Sampling, row: int
) -> GenerateRequest:
    room = min(sampling.max_new_tokens, tokens.limit or sampling.max_new_tokens)
    return GenerateRequest(model=model, prefix=prefix, ids=tokens.ids, sampling=sampling, row=row, room=room)


def _offers(text: Text, columns: Sequence[str]) -> bool:
    """Whether a request says what may be answered."""
    return not isinstance(text, str) and all(column in text for column in columns)
