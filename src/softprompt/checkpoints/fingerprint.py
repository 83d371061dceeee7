"""A short name for one base: knows which bytes make a model itself, not where they came from.

The same checkpoint has the same fingerprint in float32 and bfloat16, on every device, and whatever its folder
is called. It changes with the architecture, any retraining or merge, another quantisation, and a tokenizer
that has other words or splits text otherwise.

What it does not see: a change confined to elements between the samples of a large tensor, changes below the
precision of bfloat16, generation settings, the chat template. It guards against mistakes, not against someone
who builds a model to deceive it. A float16 load of a float32 checkpoint rounds twice and may differ, and
wrapping the model (PEFT) renames its parameters, so fingerprint the bare one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

import torch

from softprompt.checkpoints.spread import kept_elsewhere

__all__ = ["fingerprint"]

_SAMPLES = (
    32_768  # elements of one tensor at most; torch uses one thread for so few, so a busy machine is no slower
)

_SIZES = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "sliding_window",
)
_ROTARY = ("rope_type", "rope_theta", "factor", "partial_rotary_factor")

# Digits, spaces, case, accents both composed and not, contractions, several scripts, an emoji, code, a URL:
# where tokenizers with one vocabulary part ways.
_PROBE = (
    "The quick brown fox, aged 12345, isn't jumping;  it  costs $3.50 (or 1,234,567).\n\n\tdef f(x):\n"
    "        return x**2 != 0x1F  # naïve café vs cafe\u0301 ﬁne ½ ²\r\n"
    " Straße ΟΔΟΣ Привет мир 你好，世界 こんにちは 안녕 مرحبا नमस्ते 👩\u200d🚀 \u00a0\u2003 "
    "https://example.org/a_b?c=d&e=%20 HTTPServer don't DON'T we'LL 2024-01-31T23:59 ...!?—“x” "
)


def fingerprint(model: Any, tokenizer: Any) -> str:
    """The name "sha256:..." of ``model`` together with ``tokenizer``.

    Reads at most 32,768 elements of each tensor, so it takes a fraction of a second for small models and a
    few seconds for large ones. Neither argument is changed.

    Args:
        model: a transformers model, not wrapped by PEFT.
        tokenizer: its tokenizer, fast or slow.
    """
    digest = hashlib.sha256()
    _add(digest, "config", _config_facts(model.config.get_text_config()))
    with torch.no_grad():
        for name, tensor in _tensors(model):
            _add(digest, "tensor", [name, list(tensor.shape)])
            digest.update(_sample(tensor))
    _add(digest, "tokenizer", _tokenizer_facts(tokenizer))
    return f"sha256:{digest.hexdigest()}"


def _add(digest: Any, kind: str, facts: Any) -> None:
    # Length first, so that no two lists of facts can run together into the same bytes.
    text = json.dumps([kind, facts], sort_keys=True, ensure_ascii=True, default=str).encode()
    digest.update(len(text).to_bytes(8, "big"))
    digest.update(text)


def _config_facts(config: Any) -> dict[str, Any]:
    """What shapes alone do not tell: how many heads share a width, and how positions turn."""
    facts = {key: _setting(config, key) for key in _SIZES}
    facts["rotary"] = _rotary_facts(getattr(config, "rope_parameters", None))
    return facts


def _setting(config: Any, key: str) -> Any:
    try:
        return getattr(config, key, None)
    except Exception:  # raised for what differs from layer to layer
        return config.to_dict().get(key)


def _rotary_facts(parameters: Any) -> Any:
    if not isinstance(parameters, dict):
        return None
    # Some models keep one table for each kind of layer.
    kinds = {key: _rotary_facts(value) for key, value in parameters.items() if isinstance(value, dict)}
    return kinds or {key: parameters[key] for key in _ROTARY if parameters.get(key) is not None}


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and persistent buffer by name, sorted; tied ones once."""
    saved = model.state_dict().keys()  # leaves out buffers that are computed anew, such as rotary tables
    tensors = dict(model.named_parameters())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
    for name, tensor in sorted(tensors.items()):
        yield name, kept_elsewhere(model, name) if tensor.is_meta else tensor


def _sample(tensor: torch.Tensor) -> bytes:
    """Evenly spaced elements of ``tensor`` as bytes, in bfloat16 unless they are integers."""
    flat = tensor.detach().reshape(-1)
    stride = math.ceil(flat.numel() / _SAMPLES) or 1
    # A step that divides the width would visit the same few columns of every row.
    while stride > 1 and math.gcd(stride, tensor.shape[-1]) > 1:
        stride += 1
    picked = flat[::stride]
    if picked.is_floating_point():
        picked = picked.to(torch.bfloat16)
    raw: bytes = picked.contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return raw


def _tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """Words, special tokens and what becomes of a probe text.

    How a backend writes itself down changes between releases of its library, so that an upgrade would disown
    every saved prompt; what it does to a text is the same in all of them.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return {
        "vocabulary": vocabulary,
        "special": special,
        "plain": tokenizer.encode(_PROBE, add_special_tokens=False, verbose=False),
        "wrapped": tokenizer.encode(_PROBE, add_special_tokens=True, verbose=False),
    }
