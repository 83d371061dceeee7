"""Learnt tensors, cards and PEFT checkpoints to save and load."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

import tiny
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.library.card import Card
from softprompt.library.peft_format import Learnt, from_front
from softprompt.library.prompt import Prompt
from softprompt.methods.full import Full
from softprompt.methods.ia3 import Ia3
from softprompt.methods.lora import Lora
from softprompt.prefix import Prefix

NASTY = (
    "``` `x` --- \n---\nlicense: evil\n# T\n| a | b |\n</code><script>alert(1)</script> [a](javascript:b) "
    '\' " \\ \\" \'\'\' """ {x}\u2028\u202e\x1b[31m😀 ${y} #'
)
"""Text that tries to break out of wherever it is quoted."""

P = 4
ROWS = [TokenRow(ids) for ids in ((5, 9, 33), (7, 7, 80, 21, 4, 60, 11), (90,))]


def soft(base: Base, seed: int = 3, positions: int = P) -> Tensor:
    """Random embeddings [P, E]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, base.width, generator=generator).mul_(0.3)


def prefix(base: Base, seed: int = 3) -> Prefix:
    """A random KV prefix that no text has."""
    made = base.prefill(soft(base, seed))
    generator = torch.Generator().manual_seed(seed)
    keys, values = (
        tuple(torch.randn(t.shape, generator=generator) for t in side) for side in (made.keys, made.values)
    )
    return Prefix(keys, values, None, base.fingerprint)


def learnt() -> Learnt:
    """A soft prompt for a tiny llama, ready to save."""
    base = tiny.base()
    return from_front(soft(base), base)


LORA: dict[str, Any] = {"rank": 2, "alpha": 6.0, "targets": "all-linear", "rslora": False, "dora": False}
VARIANTS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}


def bound(base: Base, kind: str, positions: int, **changes: Any) -> Card:
    """A card of something learnt on ``base``."""
    about = card_values()["base"] | {"name": base.name, "fingerprint": base.fingerprint}
    about["model_type"] = base.config.model_type
    return card(kind=kind, positions=positions, base=about, **changes)


def lora(base: Base, name: str = "tuned", positions: int = 0, seed: int = 5, **settings: Any) -> Prompt:
    """A prompt with adapters that matter, behind ``positions`` random vectors."""
    method = Lora(base, soft(base, seed, positions), LORA | settings, seed)
    shaken(method.trainable_parameters(), seed)
    made = bound(base, "lora", positions, name=name)
    return Prompt(method.base, method.front(), made, method.change())


def ia3(base: Base, name: str = "vectors", positions: int = 0, seed: int = 7) -> Prompt:
    """A prompt whose model's layers are rescaled, behind ``positions`` random vectors."""
    method = Ia3(base, soft(base, seed, positions), "all-linear")
    shaken(method.trainable_parameters(), seed)
    made = bound(base, "ia3", positions, name=name)
    return Prompt(method.base, method.front(), made, method.change())


def full(base: Base, name: str = "whole", positions: int = 0, seed: int = 6) -> Prompt:
    """A prompt with every weight of its model changed, behind ``positions`` random vectors."""
    method = Full(base, soft(base, seed, positions))
    shaken(method.trainable_parameters(), seed)
    made = bound(base, "full", positions, name=name)
    return Prompt(method.base, method.front(), made, method.change())


def shaken(parameters: Iterable[Tensor], seed: int) -> None:
    """Move every number a little, so that what was learnt shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator).mul_(0.1))


def logits(prompt: Prompt) -> Tensor:
    """Logits [B, V] after each of ``ROWS`` behind a prompt."""
    with torch.no_grad():
        return prompt.base.next_logits(ROWS, prompt.prefix)


def bytes_of(base: Base) -> dict[str, bytes]:
    """Every byte of a model's weights."""
    state = base.model.state_dict()
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    return {name: t.reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in tensors.items()}


def card_values(**changes: Any) -> dict[str, Any]:
    """What a card says, as plain values."""
    base = tiny.base()
    return {
        "format": 1,
        "name": "topics",
        "created": "2026-05-01T12:00:00Z",
        "kind": "prompt-tuning",
        "base": {
            "name": base.name,
            "revision": None,
            "fingerprint": base.fingerprint,
            "model_type": base.config.model_type,
            "dtype": "float32",
        },
        "positions": P,
        "trained_parameters": P * base.width,
        "template": {
            "front": "{soft:4}",
            "input": "Headline: {text}\nTopic:",
            "target": " {label}",
            "labels": {"sport": "sport", "business": "money"},
            "label_column": "label",
            "end_of_text": False,
            "max_tokens": 64,
        },
        "data": {"train": {"origin": "bundled:bbc/train", "rows": 500, "digest": "ab" * 32}},
        "scores": {
            "validation": {"rows": 100, "nll": 0.5, "nll_interval": [0.4, 0.6], "accuracy": 0.823},
            "test": {"rows": 400, "nll": 0.52, "accuracy": 0.8, "accuracy_interval": [0.758, 0.836]},
        },
        "training": {"steps": 96, "best_step": 64, "ended": "done", "seconds": 83.0},
        "settings": {"seed": 0, "train": {"learning_rate": 0.01, "clip": None}},
        "versions": {"softprompt": "0.1.0", "torch": "2.13.0"},
        **changes,
    }


def card(**changes: Any) -> Card:
    """A card that fits ``learnt()``."""
    return Card.model_validate(card_values(**changes))


def peft_model(architecture: str, config: Any) -> Any:
    """PEFT around a fresh tiny model, its prompt drawn anew so that it matters."""
    torch.manual_seed(11)
    model = tiny.model(architecture)
    model.name_or_path = config.base_model_name_or_path or ""
    wrapped: Any = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in wrapped.prompt_encoder.parameters():
            parameter.normal_(std=0.5)
    return wrapped


def peft_folder(folder: Path, architecture: str = "llama", config: Any = None) -> Path:
    """A checkpoint PEFT wrote."""
    config = config or peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    peft_model(architecture, config).save_pretrained(folder)
    return folder


def peft_logits(wrapped: Any) -> Tensor:
    """PEFT's logits [B, V] after each of ``ROWS``, one row at a time."""
    found = []
    with torch.no_grad():
        for row in ROWS:
            ids = torch.tensor([row.ids])
            found.append(wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1])
    return torch.stack(found)
