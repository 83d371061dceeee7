"""Well-known models as figures: what their config.json says of their size. It knows no file and no weight."""

from __future__ import annotations

from typing import Any

__all__ = ["PREFIX", "SHAPES"]

PREFIX = "shape:"
"""What stands before the name of a shape where a base is named."""


def _llama(width: int, mlp: int, layers: int, heads: int, kv_heads: int, words: int, **more: Any) -> Any:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": words,
        "tie_word_embeddings": False,
        **more,
    }


def _bloom(width: int, layers: int, heads: int) -> Any:
    return {
        "model_type": "bloom",
        "hidden_size": width,
        "n_layer": layers,
        "n_head": heads,
        "vocab_size": 250880,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": _llama(
        576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True, max_position_embeddings=8192
    ),
    "bloom-560m": _bloom(1024, 24, 16),
    "bloomz-560m": _bloom(1024, 24, 16),
    "bloom-1b1": _bloom(1536, 24, 16),
    "llama-7b": _llama(4096, 11008, 32, 32, 32, 32000, max_position_embeddings=4096),
    "bloom-7b1": _bloom(4096, 30, 32),
    "mistral-7b": _llama(
        4096, 14336, 32, 32, 8, 32000, model_type="mistral", max_position_embeddings=32768, head_dim=128,
        sliding_window=4096,
    ),
    "llama3-8b": _llama(4096, 14336, 32, 32, 8, 128256, max_position_embeddings=8192),
    "llama-13b": _llama(5120, 13824, 40, 40, 40, 32000, max_position_embeddings=4096),
    "llama-70b": _llama(8192, 28672, 80, 64, 8, 32000, max_position_embeddings=4096),
}  # fmt: skip
"""By name, the configuration that transformers makes the architecture of; smallest model first.

The Llama figures are those of Llama 2 (Touvron et al. 2023) and Llama 3, Mistral's of 7B v0.1, BLOOM's those
of the BigScience workshop (Le Scao et al. 2022) and SmolLM2's of the 135M model.
"""
