"""Three who answer in this process: PEFT one by one, transformers in padded batches, and softprompt's engine.

They know models, prompts and tokens; they do not know clients or clocks.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from serve_loads import Answer, Ask, Material
from softprompt.base.model import Base
from softprompt.generation.request import CandidateLogprobs, Event, Finished, RequestFailed, TextDelta
from softprompt.generation.sampler import Sampling
from softprompt.library.card import Card
from softprompt.library.prompt import Prompt
from softprompt.serving.engine import Engine

__all__ = ["OneByOne", "Ours", "Padded"]


class OneByOne:
    """PEFT's ``generate`` behind ``set_adapter``, request by request, as two prompts cannot share a batch."""

    name, most = "peft", 1

    def __init__(self, model: Any, material: Material) -> None:
        self._material = material
        count, width = material.prompts[0].shape
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count, token_dim=width)
        self._model: Any = peft.get_peft_model(model, config, adapter_name="prompt-0").eval()
        for number, prompt in enumerate(material.prompts):
            if number:
                self._model.add_adapter(f"prompt-{number}", config)
            with torch.no_grad():
                self._model.prompt_encoder[f"prompt-{number}"].embedding.weight.copy_(prompt)

    @torch.inference_mode()
    def answer(self, asks: Sequence[Ask], new_tokens: int) -> list[Answer]:
        (ask,) = asks
        self._model.set_adapter(f"prompt-{ask.prompt}")
        ids = torch.tensor([ask.ids], device=self._model.device)
        return _generate(self._model, self._material, new_tokens, input_ids=ids)


class Padded:
    """transformers' ``generate`` over the embeddings of prompts and texts, whoever waits in one batch."""

    name = "transformers"

    def __init__(self, model: Any, material: Material, most: int) -> None:
        self._model, self._material, self.most = model, material, most
        self._prompts = [prompt.to(model.dtype) for prompt in material.prompts]

    @torch.inference_mode()
    def answer(self, asks: Sequence[Ask], new_tokens: int) -> list[Answer]:
        device, embedding = self._model.device, self._model.get_input_embeddings()
        texts = [embedding(torch.tensor(ask.ids, device=device)) for ask in asks]  # [T, E] each
        rows = [torch.cat([self._prompts[ask.prompt], text]) for ask, text in zip(asks, texts, strict=True)]
        longest = max(map(len, rows))
        embedded = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
        mask = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
        for number, row in enumerate(rows):
            embedded[number, longest - len(row) :], mask[number, longest - len(row) :] = row, 1
        return _generate(self._model, self._material, new_tokens, inputs_embeds=embedded, attention_mask=mask)


class Ours:
    """softprompt's engine in this process, the prompts read from a library on disk."""

    name, most = "softprompt", None

    def __init__(self, base: Base, material: Material, folder: Path, **options: Any) -> None:
        self._material = material
        save_prompts(base, material, folder)
        self.engine = Engine(base, folder, **options)
        self._candidates = tuple((label,) for label in material.labels)

    def answer(self, asks: Sequence[Ask], new_tokens: int) -> list[Answer]:
        (ask,) = asks
        events, done = list[Event](), threading.Event()

        def hear(event: Event) -> None:
            events.append(event)
            if isinstance(event, Finished | RequestFailed):
                done.set()

        with self.engine.registry.lease(f"prompt-{ask.prompt}") as version:
            job = (
                version.score(ask.ids, self._candidates, whole=False)
                if self._material.load.classifies
                else version.generate(ask.ids, Sampling(max_new_tokens=new_tokens, ignore_end=True))
            )
            self.engine.submit(job, hear)
            done.wait()
        return [self._answer(events)]

    def _answer(self, events: Sequence[Event]) -> Answer:
        for event in events:
            if isinstance(event, RequestFailed):
                raise event.error
            if isinstance(event, CandidateLogprobs):
                return self._material.likeliest_label(event.values)
        return tuple(said.id for event in events if isinstance(event, TextDelta) for said in event.tokens)


def _generate(model: Any, material: Material, new_tokens: int, **inputs: Tensor) -> list[Answer]:
    """Greedy tokens, or the likeliest label of each row, by transformers' own loop."""
    inputs.setdefault("attention_mask", torch.ones_like(next(iter(inputs.values()))))
    found = model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=material.load.classifies,
    )
    if material.load.classifies:
        return [material.likeliest_label(row) for row in found.logits[0]]
    return [tuple(row) for row in found.sequences[:, -new_tokens:].tolist()]


def save_prompts(base: Base, material: Material, library: Path, name: str = "prompt") -> None:
    """Put the prompts of a load into a library, as ``NAME-NUMBER``."""
    for number, prompt in enumerate(material.prompts):
        Prompt(base, prompt, _card(base, f"{name}-{number}", prompt)).save(library)


def _card(base: Base, name: str, prompt: Tensor) -> Card:
    """What an artifact must say of itself."""
    return Card.model_validate(
        {
            "name": name,
            "created": datetime.now(UTC).isoformat(),
            "kind": "prompt-tuning",
            "base": {
                "name": base.name,
                "fingerprint": base.fingerprint,
                "model_type": base.config.model_type,
                "dtype": str(base.dtype).removeprefix("torch."),
            },
            "positions": len(prompt),
            "trained_parameters": prompt.numel(),
            "template": {
                "front": f"{{soft:{len(prompt)}}}",
                "input": "{text}",
                "target": " {target}",
                "end_of_text": False,
                "max_tokens": 512,
            },
            "data": {},
            "scores": {},
            "settings": {},
            "versions": {},
        }
    )
