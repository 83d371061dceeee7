"""What the engine can be asked to do, and what it tells as it does it. Plain values; knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from softprompt.base.sampling import Sampling
from softprompt.errors import SoftpromptError
from softprompt.serving.version import Version

__all__ = [
    "Compared",
    "Comparison",
    "Ended",
    "Event",
    "Failed",
    "Generation",
    "Heard",
    "Job",
    "Said",
    "Wrote",
]


@dataclass(frozen=True, eq=False)
class Generation:
    """Write an answer.

    Attributes:
        version: what it is written behind.
        ids: the tokens of the text.
        sampling: how tokens are chosen; ``sampling.logprobs`` asks for the likeliest of every token.
        echo: whether to tell the likelihood of the text's own tokens, too.
        row: makes draws of equal seed differ; the number of the answer in its request.
        room: the longest answer; 0 only reads the text.
    """

    version: Version
    ids: tuple[int, ...]
    sampling: Sampling
    echo: bool = False
    row: int = 0
    room: int | None = None

    @property
    def positions(self) -> int:
        """The most positions it may fill, its prefix included."""
        return self.version.prefix.length + len(self.ids) + self.longest

    @property
    def longest(self) -> int:
        """The longest answer, in tokens."""
        return self.sampling.max_new_tokens if self.room is None else self.room


@dataclass(frozen=True, eq=False)
class Comparison:
    """Find the likelihood of every candidate behind a text.

    Attributes:
        whole: of whole candidates, or of their first tokens only, which takes one pass.
    """

    version: Version
    ids: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    whole: bool

    @property
    def positions(self) -> int:
        """The most positions it may fill, its prefix included."""
        longest = max(map(len, self.candidates), default=0) if self.whole else 0
        return self.version.prefix.length + len(self.ids) + longest


Job = Generation | Comparison


@dataclass(frozen=True)
class Said:
    """One token: its id, its text by itself, its log-probability if asked for, and the likeliest ones."""

    id: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Heard:
    """The text's own tokens; the first has no likelihood where nothing before it expects one."""

    tokens: tuple[Said, ...]


@dataclass(frozen=True)
class Wrote:
    """Text that may be shown now, which may be none, and the tokens chosen since the last time."""

    text: str
    tokens: tuple[Said, ...]


@dataclass(frozen=True)
class Compared:
    """Log-likelihoods in nats, one a candidate."""

    likelihoods: tuple[float, ...]


@dataclass(frozen=True)
class Ended:
    """The last event of a job that went well."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    virtual_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Failed:
    """The last event of a job that did not."""

    error: SoftpromptError


Event = Heard | Wrote | Compared | Ended | Failed
