"""Several prompts of one job that vote (Lester et al. 2021, section 6), every row read behind all at once.

It knows prompts and how votes are counted; it does not know how the prompts were learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from softprompt.config_io import shown
from softprompt.data.memory import Rows, as_texts
from softprompt.data.rows import Encoded
from softprompt.errors import ConfigError
from softprompt.evaluation.score import judge_many
from softprompt.library.prompt import Prompt, Text

__all__ = ["Ensemble", "majority"]

_READ_BY = ("normalise", "calibrate", "end_of_text", "max_tokens")
"""What a card says of how rows are read and compared, beside the template."""


def majority(probabilities: Tensor) -> Tensor:
    """Shares of the votes ``[B, C]`` from each voter's probabilities ``[S, B, C]``.

    Every voter has one vote for its likeliest answer. A tie goes to the answer the voters together hold
    likelier: its share is ahead by less than any vote could be.
    """
    voters = probabilities.shape[0]
    votes = torch.nn.functional.one_hot(probabilities.argmax(2), probabilities.shape[2]).double().mean(0)
    return votes + probabilities.double().mean(0) / (4 * voters)


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Prompts on the same base that read rows and compare answers alike: one reading serves them all.

    Raises:
        ConfigError: none are given, they differ in base, template or how answers are compared, or they have
            no answers to vote on.
    """

    prompts: Sequence[Prompt]

    def __repr__(self) -> str:
        return f"<Ensemble of {', '.join(prompt.name for prompt in self.prompts)}>"

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("An ensemble needs at least one prompt.")
        first = self.prompts[0]
        for other in self.prompts:
            if other.base is not first.base:
                raise ConfigError(f"{other.name} and {first.name} do not stand before the same model.")
            if other.template != first.template:
                raise ConfigError(
                    f"{other.name} and {first.name} have different templates, so they cannot vote."
                )
            for name in _READ_BY:
                ours, theirs = getattr(first.card.template, name), getattr(other.card.template, name)
                if ours != theirs:
                    raise ConfigError(
                        f"{other.name} has {name} {shown(theirs)} and {first.name} {shown(ours)}, so they "
                        f"cannot vote; learn both with the same data.{name}."
                    )
        if not first.template.compares:
            raise ConfigError(f"{first.name} was learnt without labels; only prompts with labels can vote.")

    @overload
    def classify(self, text: Text) -> dict[str, float]: ...
    @overload
    def classify(self, text: Rows) -> list[dict[str, float]]: ...
    def classify(self, text: Text | Rows) -> dict[str, float] | list[dict[str, float]]:
        """Share of the votes of every label, or of every choice of the row, the winner first."""
        if not isinstance(text, str | Mapping):
            return [self.classify(one) for one in as_texts(text)]
        first = self.prompts[0]
        (shares,) = self._votes(first.encode_request(text))
        total = shares.sum()
        answers = first.template.answers({} if isinstance(text, str) else text)
        named = zip(answers, (shares / total).tolist(), strict=True)
        return dict(sorted(named, key=lambda pair: -pair[1]))

    def predict(self, rows: Rows) -> list[int]:
        """The number of the label, or choice, that wins each row."""
        votes: list[int] = self._votes(self.prompts[0].encode(self.prompts[0].rows(rows))).argmax(1).tolist()
        return votes

    def _votes(self, encoded: Encoded) -> Tensor:
        base = self.prompts[0].base
        with torch.no_grad():
            judged = judge_many(base, [p.prefix for p in self.prompts], replace(encoded, scaling=None))
        scaled = [one.scaled(prompt.scaling) for one, prompt in zip(judged, self.prompts, strict=True)]
        return majority(torch.stack([one.probabilities for one in scaled]))
