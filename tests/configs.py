"""The smallest valid settings, for tests of configurations."""

from __future__ import annotations

from typing import Any

DATA: dict[str, Any] = {"input": "Headline: {text}\nTopic:", "target": " {label}"}


def settings(**sections: Any) -> dict[str, Any]:
    """Return the smallest valid settings with these sections; ``data`` is added to the required ones."""
    return {**sections, "data": DATA | sections.get("data", {})}
