"""Names and objects into a base and a prefix for lm_eval; knows no requests and no tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.config_io import nearest
from softprompt.errors import ArtifactError, ConfigError
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt, load_prompt
from softprompt.packages import require
from softprompt.prefix import Prefix

__all__ = ["Subject", "opened", "parts"]

Subject = Prompt | Base | tuple[Base, Prefix]
"""What can be evaluated."""


def parts(subject: Subject) -> tuple[Base, Prefix, str]:
    """The base, what stands in front of every text, and a word for the results.

    Raises:
        ConfigError: it is none of the three.
        WrongBaseError: a prefix of another base.
    """
    match subject:
        case Prompt():
            return subject.base, subject.base.accept(subject.prefix), subject.name
        case Base():
            return subject, subject.prefill_text("").detached(), "the bare base"
        case (Base() as base, Prefix() as prefix):
            return base, base.accept(prefix), "a prefix"
        case _:
            kind = type(subject).__name__
            raise ConfigError(f"The model must be a Prompt, a Base or (Base, Prefix), got {kind}.")


def opened(arguments: Mapping[str, Any]) -> tuple[Prompt | Base, dict[str, Any]]:
    """Load what ``prompt``, ``base`` and their kin name; the other arguments, in their types.

    Raises:
        SoftpromptError: an argument is unknown or wrong, or something cannot be loaded.
    """
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in _KINDS:
            near = nearest(name, _KINDS)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(_KINDS)}."
            raise ConfigError(f"There is no model argument {name!r}; {hint}")
        values[name] = _typed(name, value)
    how = {name: values.pop(name) for name in _LOADING if name in values}
    prompt, model = values.pop("prompt", None), values.pop("base", None)
    library = values.pop("library", "prompts")
    if prompt is not None:
        return _open_prompt(prompt, library, model, how), values
    if model is None:
        raise ConfigError("Say what to evaluate: prompt=NAME, or base=MODEL for the bare base.")
    return load_base(model, **how), values


def _open_prompt(name: str, library: str, model: str | None, how: dict[str, Any]) -> Prompt:
    """A saved prompt on its base, or on the one given; faults of the prompt show before a base is loaded."""
    artifact = Library(library).load(name)
    card = artifact.card
    if card is None:
        raise ArtifactError(f"{name} has no card; bring it in with softprompt import first.")
    require(*artifact.payload.needs)
    how = {"quantisation": card.base.quantisation, **how}
    if model is None:
        model = card.base.name
        how = {"revision": card.base.revision, **how}
    return load_prompt(name, load_base(model, **how), library)


def _typed(name: str, value: Any) -> Any:
    kind = _KINDS[name]
    try:
        return kind(value)
    except ValueError:
        wanted = "true or false" if kind is _truth else "a whole number"
        raise ConfigError(f"The model argument {name} must be {wanted}, got {value!r}.") from None


def _truth(value: Any) -> bool:
    word = str(value).lower()
    if word not in ("true", "false"):
        raise ValueError
    return word == "true"


_LOADING = ("revision", "dtype", "device", "quantisation", "trust_remote_code")
_KINDS: dict[str, Callable[[Any], Any]] = {
    "prompt": str,
    "library": str,
    "base": str,
    "revision": str,
    "dtype": str,
    "device": str,
    "quantisation": str,
    "trust_remote_code": _truth,
    "seam": str,
    "max_length": int,
    "batch_size": str,
    "max_batch_size": int,
    "seed": int,
}
