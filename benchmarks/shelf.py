"""Libraries of random prompts, each made by its seed alone, and a small random base to learn them on.

It knows how to make prompts of every kind and save them; it does not know who serves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from softprompt.base.model import Base
from softprompt.library.card import Card
from softprompt.library.prompt import Prompt
from softprompt.methods.full import Full
from softprompt.methods.lora import Lora
from softprompt.prefix import Prefix

__all__ = ["FREE", "LABELS", "changed", "front", "pairs", "prompt", "small_base"]

FREE: dict[str, Any] = {
    "front": "{soft:4}",
    "input": "Say: {text} =",
    "target": " {answer}",
    "labels": None,
    "label_column": None,
    "end_of_text": False,
    "max_tokens": 128,
}
"""A job that writes."""

LABELS = FREE | {
    "target": " {label}",
    "labels": {"business": "money", "sports": "sport", "tech": "bits"},
    "label_column": "label",
}
"""A job that classifies."""

NOISE = 0.1
"""How far a virtual token lies from the word it was taken from, in standard deviations of the embeddings."""


def front(base: Base, seed: int, positions: int) -> Tensor:
    """Embeddings [P, E] near those of random words, as learnt ones are at first."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(len(base.embedding.weight), (positions,), generator=draw)
    vectors = base.embed(words.tolist()).float().cpu()
    noise = torch.randn(vectors.shape, generator=draw) * base.embedding.weight.std().float().cpu()
    found: Tensor = vectors + NOISE * noise
    return found


def pairs(base: Base, seed: int, positions: int) -> Prefix:
    """Keys and values that no text has."""
    with torch.no_grad():
        made = base.prefill(front(base, seed, positions).to(base.device))
    draw = torch.Generator().manual_seed(seed)

    def shaken(layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(t + 0.3 * t.std() * torch.randn(t.shape, generator=draw) for t in layers)

    return Prefix(shaken(made.keys), shaken(made.values), None, base.fingerprint)


def prompt(base: Base, name: str, stands: Tensor | Prefix, template: dict[str, Any] = FREE) -> Prompt:
    """What stands in front of every text, as a prompt that can be saved."""
    soft = isinstance(stands, Tensor)
    positions = len(stands) if isinstance(stands, Tensor) else stands.length
    return Prompt(
        base, stands, card(base, name, "prompt-tuning" if soft else "prefix-tuning", positions, template)
    )


def changed(base: Base, name: str, kind: str, seed: int, positions: int) -> Prompt:
    """A prompt that changes the model: ``lora`` of rank 4 on every linear layer, or ``full``."""
    stands = front(base, seed, positions)
    settings = {"rank": 4, "alpha": 8.0, "targets": "all-linear", "rslora": False, "dora": False}
    method = Lora(base, stands, settings, seed) if kind == "lora" else Full(base, stands)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.trainable_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw).mul_(0.05))
    return Prompt(method.base, method.front(), card(base, name, kind, positions), method.change())


def card(base: Base, name: str, kind: str, positions: int, template: dict[str, Any] = FREE) -> Card:
    """A card that says what must be said and no more."""
    about = {
        "name": base.name,
        "revision": None,
        "fingerprint": base.fingerprint,
        "model_type": base.config.model_type,
        "dtype": str(base.dtype).removeprefix("torch."),
    }
    return Card.model_validate(
        {
            "name": name,
            "created": "2026-01-01T00:00:00Z",
            "kind": kind,
            "base": about,
            "positions": positions,
            "trained_parameters": positions * base.width,
            "template": template | {"front": f"{{soft:{positions}}}"},
            "data": {},
            "scores": {},
            "settings": {},
            "versions": {},
        }
    )


def small_base(folder: Path) -> None:
    """Write a random Llama of 100,000 weights, and a tokenizer with a token for every letter."""
    letters = [chr(code) for code in range(32, 127)]
    words = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *letters])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **marks).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # so large that answers differ from prompt to prompt
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(0.2 / weight.std())
    model.save_pretrained(folder)
