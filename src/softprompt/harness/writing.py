"""lm_eval's generation options as ours; knows options, not requests or tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from softprompt.errors import ConfigError
from softprompt.generation.sampler import Sampling

__all__ = ["MAX_NEW_TOKENS", "sampling_of"]

MAX_NEW_TOKENS = 256
"""Longest answer where a task does not say; lm_eval's own default."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = ("until", *_LENGTHS, "do_sample", "temperature", "top_k", "top_p")


def sampling_of(options: Mapping[str, Any], seed: int) -> Sampling:
    """lm_eval's generation options as ours, with its meaning of each: ``do_sample: false`` is greedy.

    Raises:
        ConfigError: an option there is not, or one with a wrong value.
    """
    for name in options:
        if name not in _KNOWN:
            raise ConfigError(
                f"The task sets the generation option {name!r}, which softprompt does not have; it has "
                f"{', '.join(_KNOWN)}."
            )
    given = {name: value for name, value in options.items() if value is not None}
    try:
        plain = normalize_gen_kwargs(given, MAX_NEW_TOKENS)
        until = [stop for stop in plain["until"] if stop != ""]
        if not all(isinstance(stop, str) for stop in until):
            raise ConfigError(f"The generation option 'until' must hold texts, got {plain['until']!r}.")
        return Sampling(
            max_new_tokens=plain["max_gen_toks"],
            temperature=float(plain.get("temperature", 0.0)),
            top_k=int(plain.get("top_k", 0)),
            top_p=float(plain.get("top_p", 1.0)),
            seed=seed,
            stop=tuple(until),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"A generation option of the task has a wrong value: {error}.") from None
