"""The smallest valid settings, and what a refusal says, for tests of configurations."""

from __future__ import annotations

from typing import Any

import pytest

from softprompt.config import parse
from softprompt.errors import ConfigError

JARGON = ("Input should", "pydantic", "Value error", "validation error", "extra_forbidden", "type=", "https:")

DATA: dict[str, Any] = {"input": "Headline: {text}\nTopic:", "target": " {label}"}


def settings(**sections: Any) -> dict[str, Any]:
    """Return the smallest valid settings with these sections; ``data`` is added to the required ones."""
    return {**sections, "data": DATA | sections.get("data", {})}


def faults(given: Any, overrides: tuple[str, ...] = ()) -> list[str]:
    """Return the lines of the refusal, free of jargon."""
    with pytest.raises(ConfigError) as caught:
        parse(given, overrides)
    message = str(caught.value)
    assert not [word for word in JARGON if word in message]
    return message.splitlines()
