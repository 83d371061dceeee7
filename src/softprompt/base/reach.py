"""How far a model can be read, as its configuration says: it knows positions, not rows.

Two kinds of rotary positions take other frequencies for every row of a pass, and keep them on the model, as
soon as one row is longer than what they were trained for: LongRoPE (Ding et al. 2024) and dynamic NTK. What a
row reads would then depend on its neighbours, so there that length is a bound that nothing may cross.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Reach"]


@dataclass(frozen=True)
class Reach:
    """The longest sequence a model reads.

    Attributes:
        most: positions; None where the configuration does not say.
        firm: whether a longer row would change what its neighbours read.
    """

    most: int | None
    firm: bool = False

    @classmethod
    def of(cls, config: Any) -> Reach:
        """Read it from a transformers configuration, or the part of it about text."""
        about = config.get_text_config()
        most = getattr(about, "max_position_embeddings", None) or getattr(about, "max_seq_len", None)
        bounds = [bound for turns in _rotary(about) if (bound := _bound(turns, most)) is not None]
        return cls(min(bounds), firm=True) if bounds else cls(most)


def _rotary(about: Any) -> Iterator[dict[str, Any]]:
    """The rotary parameters of a model; some models have them for each kind of layer."""
    parameters = getattr(about, "rope_parameters", None) or {}
    kinds = [value for value in parameters.values() if isinstance(value, dict)]
    yield from kinds or [parameters]


def _bound(turns: dict[str, Any], most: int | None) -> int | None:
    """The length beyond which the frequencies are others for a whole pass; None where they never change."""
    kind = str(turns.get("rope_type"))
    if kind == "longrope":
        return turns.get("original_max_position_embeddings") or most
    return most if "dynamic" in kind else None
