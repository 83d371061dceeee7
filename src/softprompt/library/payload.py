"""What an artifact's folder holds beside its card, whatever the kind: a protocol, no format."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from softprompt.base.copies import Change
from softprompt.base.lowrank import LowRank
from softprompt.base.model import Base
from softprompt.packages import Need
from softprompt.prefix import Front

__all__ = ["Met", "Payload", "Ride"]


class Met(NamedTuple):
    """A payload met with its base.

    Attributes:
        base: the model to read with: the base itself, or a changed copy over its weights.
        front: what stands in front of every text: embeddings ``[P, E]`` or a prefix.
        change: what turns the frozen base into that copy; None where nothing does.
    """

    base: Base
    front: Front
    change: Change | None


class Ride(NamedTuple):
    """A payload as rows bring it into the base's own pass, beside rows of others.

    Attributes:
        front: what stands in front of every text, read with the change where there is one.
        change: what every token carries; None for what only stands in front.
    """

    front: Front
    change: LowRank | None


class Payload(Protocol):
    """Something learnt, in the form it is kept in."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """Packages it takes to read a text with it in a model of its own, by ``meet``."""
        ...

    @property
    def kind(self) -> str:
        """The format, named by the method that it was made for, such as "prefix-tuning" or "lora"."""
        ...

    @property
    def opened_by(self) -> str:
        """Which library reads its files beside softprompt: peft, transformers or, if none, softprompt."""
        ...

    @property
    def positions(self) -> int:
        """P, the positions it takes in front of every text."""
        ...

    @property
    def numbers(self) -> int:
        """How many numbers it holds, those in front of a changed model left out."""
        ...

    @property
    def front_template(self) -> str:
        """What stands in front, as a configuration would write it, where only the files are known."""
        ...

    def write(self, folder: Path, base_name: str, revision: str | None) -> str:
        """Write its files into ``folder``; returns the SHA-256 of the weights in hex.

        Raises:
            ArtifactError: some numbers are not finite, or it cannot be read any more.
            ResourceError: the disk refuses.
        """
        ...

    def meet(self, base: Base) -> Met:
        """The model to read with and what stands in front of every text; ``base`` is not changed.

        Raises:
            ArtifactError: it is for a model of another shape, or it is damaged.
        """
        ...

    def ride(self, base: Base) -> Ride | None:
        """What rows bring into the base's own pass; None if it needs its own model. Errors as in ``meet``."""
        ...

    def merged(self, base: Base) -> Base:
        """A copy of ``base`` with it in the weights, a model like any other; ``base`` is not changed.

        Raises:
            ArtifactError: it changes no weights, or the base's cannot take it in; or as in ``meet``.
        """
        ...

    def adopted(self, base: Base) -> Payload:
        """What a folder without a card is taken for: a model's changes stand behind the start token."""
        ...
