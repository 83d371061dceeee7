"""What each kind of artifact is called in sentences: knows words, not files."""

from __future__ import annotations

__all__ = ["noun"]

_NOUNS = {
    "prompt-tuning": "soft prompt",
    "prefix-tuning": "prefix of keys and values",
    "text": "text kept as embeddings",
    "lora": "LoRA adapter",
    "ia3": "set of IA3 vectors",
    "full": "fine-tuned copy",
}


def noun(kind: str) -> str:
    """What an artifact of a kind is; "prompt" where the kind is not known."""
    return _NOUNS.get(kind, "prompt")
