"""What the training loop, the scorer and the library know of a method: a front, and what trains in it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from softprompt.base.copies import Change
from softprompt.base.model import Base
from softprompt.prefix import Front

__all__ = ["Method"]


class Method(Protocol):
    """One way to teach a job.

    ``front()`` is differentiable in ``trainable_parameters()``; detached, it is what an artifact
    keeps. ``state()`` and ``load_state()`` carry everything a resumed run needs.
    """

    @property
    def base(self) -> Base:
        """The model the rows are read with."""
        ...

    def front(self) -> Front:
        """What stands in front of every row: embeddings ``[P, E]`` or a prefix."""
        ...

    def change(self) -> Change | None:
        """What turns the frozen base into the model the rows are read with; None if that is the base."""
        ...

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The fp32 master tensors an optimizer may change."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All tensors of the method by name, detached."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what ``state()`` gave."""
        ...
