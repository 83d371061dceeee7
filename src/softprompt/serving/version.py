"""A version: an artifact loaded once and never changed, with its keys and values computed.

It makes requests of texts; it does not know how it was loaded (``builder``), who keeps it or who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from softprompt.base.lowrank import LowRank
from softprompt.base.model import Base
from softprompt.data.rows import Encoded, InputTokens
from softprompt.data.table import Text
from softprompt.evaluation.choices import texts_to_score
from softprompt.generation.request import GenerateRequest, ScoreRequest
from softprompt.generation.sampler import Sampling
from softprompt.prefix import Prefix

if TYPE_CHECKING:
    from softprompt.library.card import Card
    from softprompt.library.prompt import Prompt

__all__ = ["Build", "Version", "bare"]


@dataclass(frozen=True, eq=False)
class Version:
    """What a name meant when it was loaded.

    Attributes:
        name: of the artifact, or of the base for the bare base.
        digest: hash of its content in hex; name and digest say exactly what answered.
        card: what is known about it; None for the bare base.
        prefix: keys and values of what stands in front of every text.
        adapter: what its tokens carry into the base's own pass, or None.
        model: what it is read with: the served base, or a changed copy of its own.
        nbytes: memory it takes beyond the base.
        prompt: the template and labels at work; None for the bare base.
    """

    name: str
    digest: str
    card: Card | None
    prefix: Prefix
    adapter: LowRank | None
    model: Base
    nbytes: int
    prompt: Prompt | None = None

    def tokens(self, text: Text) -> InputTokens:
        """A text as its tokens, through the template it was learnt with.

        Raises:
            DataError: a row that does not fit the template.
        """
        if self.prompt is not None:
            return self.prompt.tokens(text)
        return InputTokens(tuple(self.model.encode(str(text))))

    def generate(self, ids: Sequence[int], sampling: Sampling, **how: Any) -> GenerateRequest:
        """What to ask a scheduler for to go on from these tokens; ``how``: further fields of the request."""
        return GenerateRequest(**self._behind(ids), sampling=sampling, **how)

    def score(self, ids: Sequence[int], candidates: Sequence[Sequence[int]], *, whole: bool) -> ScoreRequest:
        """What to ask a scheduler for to find how likely these candidates are behind these tokens."""
        return ScoreRequest(**self._behind(ids), candidates=tuple(map(tuple, candidates)), whole=whole)

    def score_row(self, encoded: Encoded) -> list[ScoreRequest]:
        """What to ask a scheduler for to choose among a row's candidates (``evaluation.choices``)."""
        candidates, whole = encoded.candidates(encoded.examples[0]), encoded.needs_whole_words
        return [self.score(ids, candidates, whole=whole) for ids in texts_to_score(encoded)]

    def _behind(self, ids: Sequence[int]) -> dict[str, Any]:
        return {"model": self.model, "prefix": self.prefix, "adapter": self.adapter, "ids": tuple(ids)}


class Build(Protocol):
    """Makes the version that a name means now; slow, and says in a ``SoftpromptError`` why it cannot."""

    def __call__(self, name: str) -> Version: ...


def bare(base: Base, name: str | None = None) -> Version:
    """The base itself, behind what its tokenizer sets first."""
    return Version(name or base.name, base.fingerprint, None, base.prefill_text(""), None, base, 0)
