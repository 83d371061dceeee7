"""Which linear layers a method changes, by the ends of their names; it knows names, not what is changed."""

from __future__ import annotations

from softprompt.base.copies import linear_layers
from softprompt.base.model import Base
from softprompt.errors import ConfigError

__all__ = ["targeted"]


def targeted(base: Base, targets: str | list[str]) -> list[str]:
    """Full names of the layers to change: the listed ones, or every linear layer but the head.

    Raises:
        ConfigError: the model has no linear layer of one of the names.
    """
    layers = linear_layers(base)
    if targets == "all-linear":
        return layers
    for target in targets:
        if not any(_ends(name, target) for name in layers):
            kinds = sorted({name.rsplit(".", 1)[-1] for name in layers})
            raise ConfigError(
                f"method.targets names {target!r}, but {base.name} has no such linear layer; "
                f"it has {', '.join(kinds)}."
            )
    return [name for name in layers if any(_ends(name, target) for target in targets)]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
