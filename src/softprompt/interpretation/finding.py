"""What every analysis gives; it knows no analysis."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """Numbers and texts that were found."""

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return asdict(self)
