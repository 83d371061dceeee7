"""softprompt: teach one frozen language model many jobs through learnt prefixes.

    >>> import softprompt
    >>> base = softprompt.load_base("smollm2-135m")
    >>> prompt = softprompt.train(base, "bbc-topics")
    >>> prompt.generate("Rates cut as growth slows")
    ' business'

Importing the package imports no torch; names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from softprompt import errors
from softprompt.errors import SoftpromptError

if TYPE_CHECKING:
    from softprompt.api import compare, compare_all, distil, train
    from softprompt.base.model import Base
    from softprompt.checkpoints.freeze import freeze, load_base
    from softprompt.config import Config
    from softprompt.config import load as load_config
    from softprompt.config import parse as parse_config
    from softprompt.generation.sampler import Sampling
    from softprompt.library.ensemble import Ensemble
    from softprompt.library.folder import Library
    from softprompt.library.prompt import Prompt, answer_together, load_prompt
    from softprompt.listener import Listener
    from softprompt.prefix import Prefix
    from softprompt.serving.engine import Engine
    from softprompt.training.run import train_many

    __version__: str

__all__ = [
    "Base",
    "Config",
    "Engine",
    "Ensemble",
    "Library",
    "Listener",
    "Prefix",
    "Prompt",
    "Sampling",
    "SoftpromptError",
    "answer_together",
    "compare",
    "compare_all",
    "distil",
    "errors",
    "freeze",
    "load_base",
    "load_config",
    "load_prompt",
    "parse_config",
    "train",
    "train_many",
]

_HOMES = {
    "Base": ("softprompt.base.model", "Base"),
    "Config": ("softprompt.config", "Config"),
    "Engine": ("softprompt.serving.engine", "Engine"),
    "Ensemble": ("softprompt.library.ensemble", "Ensemble"),
    "Library": ("softprompt.library.folder", "Library"),
    "Listener": ("softprompt.listener", "Listener"),
    "Prefix": ("softprompt.prefix", "Prefix"),
    "Prompt": ("softprompt.library.prompt", "Prompt"),
    "Sampling": ("softprompt.generation.sampler", "Sampling"),
    "answer_together": ("softprompt.library.prompt", "answer_together"),
    "compare": ("softprompt.api", "compare"),
    "compare_all": ("softprompt.api", "compare_all"),
    "distil": ("softprompt.api", "distil"),
    "freeze": ("softprompt.checkpoints.freeze", "freeze"),
    "load_base": ("softprompt.checkpoints.freeze", "load_base"),
    "load_config": ("softprompt.config", "load"),
    "load_prompt": ("softprompt.library.prompt", "load_prompt"),
    "parse_config": ("softprompt.config", "parse"),
    "train": ("softprompt.api", "train"),
    "train_many": ("softprompt.training.run", "train_many"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # reading it takes as long as all else that the help of the command needs
        return importlib.import_module("importlib.metadata").version("softprompt")
    if name not in _HOMES:
        raise AttributeError(f"module 'softprompt' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
