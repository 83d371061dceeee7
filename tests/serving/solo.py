"""One request alone, as transformers and PEFT answer it: plain models, no batch, nothing of ours between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

import tiny
from library import samples
from softprompt.base.cache import cache_argument
from softprompt.base.model import Base
from softprompt.generation.sampler import Sampler, Sampling
from softprompt.library.prompt import Prompt
from softprompt.prefix import Prefix

__all__ = ["Solo", "fill", "plain", "prompt"]


class Solo:
    """A plain model, what stands in front of every text, and one text at a time."""

    def __init__(self, model: Any, front: Tensor | None = None, pairs: Prefix | None = None) -> None:
        """front: embeddings [P, E]; pairs: keys and values of a trained prefix."""
        self.model, self.front, self.pairs = model.eval(), front, pairs

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits [T, V] after each token of a text, behind what stands in front."""
        tokens = torch.tensor([list(ids)], dtype=torch.long)
        if self.pairs is not None:
            pairs = zip(self.pairs.keys, self.pairs.values, strict=True)
            cache = DynamicCache([(k[None], v[None]) for k, v in pairs])
            seen = torch.ones(1, self.pairs.length + len(ids), dtype=torch.long)
            found: Tensor = self.model(
                input_ids=tokens, attention_mask=seen, **cache_argument(self.model, cache)
            ).logits
            return found[0]
        front = torch.empty(0, self.model.config.hidden_size) if self.front is None else self.front
        embedded = torch.cat([front[None], self.model.get_input_embeddings()(tokens)], dim=1)
        seen = torch.ones(embedded.shape[:2], dtype=torch.long)
        found = self.model(inputs_embeds=embedded, attention_mask=seen, use_cache=False).logits
        return found[0, len(front) :]

    def greedy(self, ids: Sequence[int], said: Sequence[int]) -> list[int]:
        """The likeliest token at every place of an answer to a text, behind all that it said before.

        That is the answer itself exactly where it is the one that greedy decoding gives; one pass tells.
        """
        logits = self._behind(ids, said)
        best = logits.topk(2).values
        assert bool((best[:, 0] - best[:, 1] > 1e-4).all()), "rounding would decide here; draw other texts"
        return logits.argmax(1).tolist()

    def drawn(self, ids: Sequence[int], said: Sequence[int], sampling: Sampling, row: int) -> list[int]:
        """The same for the draws of that row's own seed."""
        chooser = Sampler(sampling, ids, row)
        return [chooser.sample(logits).id for logits in self._behind(ids, said)]

    def _behind(self, ids: Sequence[int], said: Sequence[int]) -> Tensor:
        """Logits [T, V] of what comes at every place of an answer."""
        return self.logits([*ids, *said])[len(ids) - 1 : -1]


def plain(architecture: str) -> Any:
    """A model of its own with the same weights as ``tiny.base``, untouched by softprompt."""
    return tiny.model(architecture)


def fill(library: Path, architecture: str) -> dict[str, Solo]:
    """Save a prompt of every kind; what answers for each alone, the bare base among them.

    Adapters are loaded by PEFT, the fine-tuned model by transformers, both from the saved files.
    """
    base = tiny.base(architecture)
    untouched = plain(architecture)
    solos = {base.name: Solo(untouched)}
    for name, positions in (("soft", 4), ("long-soft", 11)):
        front = samples.soft(base, positions, positions)
        prompt(base, name, front).save(library)
        solos[name] = Solo(untouched, front)
    pairs = samples.prefix(base, 7)
    prompt(base, "pairs", pairs).save(library)
    solos["pairs"] = Solo(untouched, pairs=pairs)
    for seed, (name, settings) in enumerate(samples.VARIANTS.items(), 20):
        positions = seed - 20  # none, one and two vectors in front of an adapter
        tuned = samples.lora(base, name, positions, seed, rank=seed - 18, **settings)
        tuned.save(library)
        wrapped = peft.PeftModel.from_pretrained(plain(architecture), library / name)
        solos[name] = Solo(wrapped, samples.soft(base, seed, positions))
    samples.full(base, "whole", 2).save(library)
    learnt = transformers.AutoModelForCausalLM.from_pretrained(library / "whole", dtype=torch.float32)
    solos["whole"] = Solo(learnt, samples.soft(base, 6, 2))
    return solos


def prompt(base: Base, name: str, front: Tensor | Prefix) -> Prompt:
    """A learnt front as a prompt that can be saved."""
    kind, positions = (
        ("prefix-tuning", front.length) if isinstance(front, Prefix) else ("prompt-tuning", len(front))
    )
    return Prompt(base, front, samples.bound(base, kind, positions, name=name))
