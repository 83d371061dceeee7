"""What a scheduler can be asked, and what it tells as it goes. Plain values: no name, card or file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from softprompt.base.lowrank import LowRank
from softprompt.base.model import Base
from softprompt.errors import BaseModelError, ConfigError, SoftpromptError
from softprompt.generation.sampler import Sampling
from softprompt.prefix import Prefix

if TYPE_CHECKING:
    from softprompt.generation.grammar import Grammar

__all__ = [
    "CandidateLogprobs",
    "Event",
    "FinishReason",
    "Finished",
    "GenerateRequest",
    "ModelRequest",
    "PromptLogprobs",
    "RequestFailed",
    "ScoreRequest",
    "TextDelta",
    "TokenScore",
    "sampling_of",
]

FinishReason = Literal["stop", "length"]
"""An answer came to an end of its own, or to its greatest length."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Request:
    """A text behind a prefix.

    Attributes:
        model: what reads it; scores and tokens are its own.
        prefix: the keys and values in front of the text.
        adapter: what the text's tokens carry into the model's pass, where the model heeds it.
        ids: the tokens of the text.
    """

    model: Base
    prefix: Prefix
    ids: tuple[int, ...]
    adapter: LowRank | None = None

    @property
    def longest(self) -> int:
        """The most tokens that are read behind the text."""
        raise NotImplementedError

    @property
    def positions(self) -> int:
        """The most positions it may fill, its prefix included."""
        return self.prefix.length + len(self.ids) + self.longest

    def check(self) -> None:
        """Refuse what cannot be read.

        Raises:
            BaseModelError: it is longer than the model's positions, or has nothing to go on from.
            WrongBaseError: the prefix is another base's.
        """
        self.model.accept(self.prefix)
        most = self.model.max_positions
        if most is not None and self.positions > most:
            raise BaseModelError(
                f"The request needs {self.positions} positions ({self.prefix.length} of the prompt, "
                f"{len(self.ids)} of the text, the rest for the answer), but {self.model.name} holds {most}; "
                "shorten the text or ask for fewer tokens."
            )
        if not self.ids and self.prefix.hidden is None:
            raise BaseModelError("There is no text to go on from; give at least one token.")


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerateRequest(_Request):
    """Write an answer.

    Attributes:
        sampling: how tokens are chosen; ``sampling.logprobs`` asks for the likeliest of every token.
        echo: whether to tell the likelihood of the text's own tokens, too.
        row: makes draws of equal seed differ; the number of the answer among those asked for together.
        room: the longest answer; 0 only reads the text, None is as long as ``sampling`` says.
        grammar: what the answer is held to, unless it is cut at its greatest length; it ends where the
            grammar does, whatever ``sampling`` says of end tokens and of shortest lengths.
    """

    sampling: Sampling = field(default_factory=Sampling)
    echo: bool = False
    row: int = 0
    room: int | None = None
    grammar: Grammar | None = None

    @property
    def longest(self) -> int:
        return self.sampling.max_new_tokens if self.room is None else self.room


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoreRequest(_Request):
    """Find the log-likelihood of every candidate behind a text.

    Attributes:
        candidates: token ids, none of them empty.
        whole: of whole candidates, or of their first tokens only, which takes one pass.
    """

    candidates: tuple[tuple[int, ...], ...]
    whole: bool

    @property
    def longest(self) -> int:
        return max(map(len, self.candidates), default=0) if self.whole else 0


ModelRequest = GenerateRequest | ScoreRequest


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """The sampling that keywords ask for.

    Raises:
        ConfigError: one of them is no field of ``Sampling``, or has a value of no use.
    """
    known = Sampling.__dataclass_fields__
    for name in options:
        if name not in known:
            raise ConfigError(f"{name!r} is no sampling option; there are {', '.join(known)}.")
    return replace(Sampling(), **options)


# -- events ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenScore:
    """One token: its id, its text by itself, its log-probability if asked for, and the likeliest ones."""

    id: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class PromptLogprobs:
    """The text's own tokens; the first has no likelihood where nothing before it expects one."""

    tokens: tuple[TokenScore, ...]


@dataclass(frozen=True)
class TextDelta:
    """Text that may be shown now, which may be none, and the tokens chosen since the last time."""

    text: str
    tokens: tuple[TokenScore, ...]


@dataclass(frozen=True)
class CandidateLogprobs:
    """Log-likelihoods in nats, one a candidate."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class Finished:
    """The last event of a request that went well."""

    reason: FinishReason
    prompt_tokens: int
    virtual_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class RequestFailed:
    """The last event of a request that did not."""

    error: SoftpromptError


Event = PromptLogprobs | TextDelta | CandidateLogprobs | Finished | RequestFailed
