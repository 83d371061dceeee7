"""Any prompt as a model of lm-evaluation-harness; knows where its parts are and imports lm_eval late."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from softprompt.errors import ResourceError

if TYPE_CHECKING:
    from softprompt.harness.model import SoftpromptLM
    from softprompt.harness.run import evaluate, measures

__all__ = ["SoftpromptLM", "evaluate", "measures"]

_HOMES = {
    "SoftpromptLM": "softprompt.harness.model",
    "evaluate": "softprompt.harness.run",
    "measures": "softprompt.harness.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'softprompt.harness' has no attribute {name!r}")
    try:
        importlib.import_module("lm_eval")
    except ImportError:
        raise ResourceError(
            "The harness needs lm_eval, which is not installed; run pip install 'softprompt[harness]'."
        ) from None
    return getattr(importlib.import_module(_HOMES[name]), name)
