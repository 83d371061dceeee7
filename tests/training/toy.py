"""A job that tiny prompts learn in seconds, and methods to learn it with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import tiny
from softprompt.base.model import Base
from softprompt.config import PromptTuningConfig
from softprompt.data.rows import Encoded, Example
from softprompt.methods.build import Material, build_method
from softprompt.methods.method import Method
from softprompt.prefix import Prefix

WORDS = ((10,), (11,), (12,))


def examples(count: int, first: int, shift: int = 0) -> Encoded:
    """A job a prompt can learn: the label is named by the last token; ``shift`` makes another job of it."""
    made = []
    for i in range(first, first + count):
        label = i % 3
        ids = (20 + i % 7, *((33,) * (i % 5)), 30 + i % 11, 40 + (label + shift) % 3)
        made.append(Example(ids, WORDS[label], label, i))
    return Encoded(tuple(made), 0, WORDS, False, ())


def soft_prompt(seed: int = 0, *, length: int = 5, base: Base | None = None, **options: Any) -> Method:
    """A soft prompt that starts from random vectors."""
    config = PromptTuningConfig(front=f"{{soft:{length}}}", init="random", **options)
    material = Material(lambda k: "", lambda name: torch.empty(0), seed=seed)
    return build_method(config, base or tiny.base(), material)


def front(method: Method) -> Tensor:
    """What a soft prompt has learnt."""
    found = method.front()
    assert isinstance(found, Tensor)
    return found


class KeysAndValues:
    """The plainest method whose front is a finished prefix: the keys and values themselves are learnt."""

    def __init__(self, base: Base, ids: list[int]) -> None:
        start = base.prefill(base.embed(ids)).detached()
        self._base = base
        self._sides = [nn.Parameter(t.clone()) for t in (*start.keys, *start.values)]

    @property
    def base(self) -> Base:
        return self._base

    def front(self) -> Prefix:
        half = len(self._sides) // 2
        return Prefix(tuple(self._sides[:half]), tuple(self._sides[half:]), None, self._base.fingerprint)

    def change(self) -> None:
        return None

    def trainable_parameters(self) -> list[nn.Parameter]:
        return self._sides

    def state(self) -> dict[str, Tensor]:
        return {str(number): side.detach() for number, side in enumerate(self._sides)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for number, side in enumerate(self._sides):
                side.copy_(state[str(number)])
