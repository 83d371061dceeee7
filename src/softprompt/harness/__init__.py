"""Any prompt as a model of lm-evaluation-harness; knows where its parts are and imports lm_eval late."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from softprompt.packages import require

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
    require("the harness")
    return getattr(importlib.import_module(_HOMES[name]), name)
