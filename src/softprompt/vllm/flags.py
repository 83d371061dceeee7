"""How vLLM must be started for prompts of ours: fields of its ``EngineArgs``, and the same as flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softprompt.base.model import Base
from softprompt.errors import BaseModelError

__all__ = ["MIDDLEWARE", "engine_fields", "flags", "refuse_base"]

MIDDLEWARE = "softprompt.vllm.middleware.NamedPrompts"


def refuse_base(base: Base) -> None:
    """Refuse by name a base whose prompts vLLM's interface for keys and values cannot hold.

    Raises:
        BaseModelError: it is stored in few bits, keeps states beside keys and values, or has no folder.
    """
    reason = None
    if getattr(base.model, "is_quantized", False):
        reason = "it is stored in few bits, and vLLM would load it otherwise"
    elif not Path(base.model.name_or_path).is_dir():
        reason = "it is in no folder that vLLM could load"
    elif _keeps_states(base):
        reason = "some of its layers keep a state, which vLLM takes from nobody, instead of keys and values"
    if reason is not None:
        raise BaseModelError(f"{base.name} cannot be served by vLLM: {reason}. Use --engine own.")


def engine_fields(base: Base, store: str, **more: Any) -> dict[str, Any]:
    """What prompts need; ``store``: the folder they are put in, ``more``: what else vLLM is to remember."""
    return {
        "model": base.model.name_or_path,
        "served_model_name": base.name,
        "dtype": str(base.dtype).removeprefix("torch."),
        "generation_config": "vllm",
        "disable_hybrid_kv_cache_manager": True,
        "enable_prefix_caching": True,
        "speculative_config": None,
        "kv_transfer_config": {
            "kv_connector": "SoftPromptConnector",
            "kv_connector_module_path": "softprompt.vllm.connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"store": store, **more},
        },
    }


def flags(fields: dict[str, Any]) -> list[str]:
    """The fields as words of a command line, none with a space that we wrote in it, and the middleware."""
    words: list[str] = []
    for name, value in fields.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            words += [flag, json.dumps(value, separators=(",", ":")).replace(" ", "\\u0020")]
        elif value is not None:
            words += [flag, str(value)]
    return [*words, "--middleware", MIDDLEWARE]


def _keeps_states(base: Base) -> bool:
    kinds = getattr(base.config, "layer_types", None) or ()
    return any("attention" not in kind or "linear" in kind for kind in kinds)
