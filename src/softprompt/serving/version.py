"""A version: an artifact loaded once and never changed, with its keys and values computed.

It knows how a folder becomes what rows stand behind; it does not know who keeps it or who asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from softprompt.base.lowrank import LowRank, Riders
from softprompt.base.model import Base
from softprompt.base.workers import let_workers_go
from softprompt.data.rows import Encoded
from softprompt.errors import ArtifactError
from softprompt.evaluation.choices import texts_to_score
from softprompt.generation.request import GenerateRequest, ScoreRequest
from softprompt.generation.sampler import Sampling
from softprompt.library.card import CARD_FILE, Card
from softprompt.library.folder import Library, check_base
from softprompt.library.prompt import InputTokens, Prompt, Text
from softprompt.prefix import Prefix

__all__ = ["Build", "Builder", "Version", "bare"]


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


class Builder:
    """Loads versions from a library, for one served base.

    Args:
        library: where the artifacts lie.
        frozen: the base they were learnt on.
        served: the same base as it is served: a copy that heeds what rows carry.
    """

    def __init__(self, library: Library, frozen: Base, served: Base) -> None:
        self._library, self._frozen, self._served = library, frozen, served

    def __call__(self, name: str) -> Version:
        """Read, check and prefill an artifact.

        Raises:
            ArtifactError: there is none of that name, or it is damaged, or its numbers are of no use.
            WrongBaseError: it was learnt on another base.
        """
        try:
            return self._built(name)
        finally:
            let_workers_go()

    def _built(self, name: str) -> Version:
        artifact = self._library.load_named(name)
        card = artifact.card
        assert card is not None  # load_named refuses a folder without one
        check_base(artifact, self._frozen)
        with torch.no_grad():
            ride = artifact.payload.ride(self._frozen)
            if ride is not None:
                model, front, adapter, nbytes = self._served, ride.front, ride.change, 0
            else:
                met = artifact.payload.meet(self._frozen)
                model, front, adapter = met.base, met.front, None
                nbytes = _own_bytes(model, self._frozen)
            length = front.length if isinstance(front, Prefix) else len(front)
            with Riders().seated([adapter] * length):
                prefix = model.prefill(front).detached()
        _refuse_useless(name, prefix, adapter)
        nbytes += prefix.nbytes + (adapter.nbytes if adapter is not None else 0)
        prompt = Prompt(model, prefix, card, None, self._frozen)
        return Version(name, self._digest(artifact.path), card, prefix, adapter, model, nbytes, prompt)

    def _digest(self, path: Path) -> str:
        """The card holds the hash of the weights, which were held against it."""
        return hashlib.sha256((path / CARD_FILE).read_bytes()).hexdigest()


def _own_bytes(model: Base, frozen: Base) -> int:
    shared = {p.data_ptr() for p in frozen.model.parameters()}
    return sum(p.numel() * p.element_size() for p in model.model.parameters() if p.data_ptr() not in shared)


def _refuse_useless(name: str, prefix: Prefix, adapter: LowRank | None) -> None:
    layers: Mapping[str, Any] = adapter.layers if adapter is not None else {}
    carried: list[Tensor] = [t for c in layers.values() for t in (c.down, c.up, c.scale) if t is not None]
    if not all(bool(torch.isfinite(t).all()) for t in (*prefix.keys, *prefix.values, *carried)):
        raise ArtifactError(f"{name} gives numbers that are not finite on this base; train it again.")
