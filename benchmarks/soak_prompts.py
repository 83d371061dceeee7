"""The prompts of ``soak.py``: what lies in the library now, what lay there before, what each answers alone.

It knows the library and its own answers; it does not know the server or its clients.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import shelf
from softprompt.base.model import Batch
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import load_base
from softprompt.data.rows import InputTokens
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt, load_prompt
from softprompt.serving.engine import Engine

__all__ = ["BASE", "MARKS", "TEXTS", "Answer", "Shelves", "Shown"]

BASE = "base"
"""The folder of the base, and so its name."""

MARKS = [0, 1, 2, 3]
"""Tokens that are no letters. They are asked not to be written, so that a text tells its tokens."""

NEAR = 1e-3
"""Two logits so near each other are one to fp32: either letter is right."""

SHARE = 3
"""Beside the largest prompt the budget holds one in so many of the others' bytes."""

TEXTS = tuple(
    "".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz ,.", k=1 + 5 * seed))
    for seed in range(12)
)
"""From one letter to 56."""

_COPIES = {"soft": 6, "labels": 3, "pairs": 2, "lora": 3, "full": 1}


@dataclass(frozen=True)
class Answer:
    """What came back for a request.

    Attributes:
        name: whom it asked; ``text``: what.
        tokens: how many it asked for; 0 to classify.
        said: the text, or the probabilities.
        fingerprint: the version that answered; None where the reply names none.
        began, ended: when it was sent and over, in monotonic seconds.
    """

    name: str
    text: str
    tokens: int
    said: Any
    fingerprint: str | None
    began: float
    ended: float


@dataclass
class Shown:
    """A version as it lay on the disk, from when to when in monotonic seconds."""

    name: str
    fingerprint: str
    prompt: Prompt | None
    since: float
    until: float = float("inf")


class Shelves:
    """A library on a small base, and everything that was ever in it."""

    def __init__(self, folder: Path) -> None:
        shelf.small_base(folder / BASE)
        self.base = load_base(str(folder / BASE), dtype="float32", device="cpu")
        self.library = Library(folder / "prompts")
        self.names = [f"{kind}-{number}" for kind, count in _COPIES.items() for number in range(count)]
        self.versions = [Shown(BASE, "", None, 0.0)]
        self._known: dict[tuple[str, str, int, str], bool] = {}
        self._seed = 0
        for name in self.names:
            self.put(name)
        sizes = sorted(self._sizes())
        self.budget = sizes[-1] + sum(sizes[:-1]) // SHARE

    def _sizes(self) -> list[int]:
        """What each of them takes in memory."""
        with Engine(self.base, self.library, pack=False) as engine:
            for name in self.names:
                engine.registry.lease(name).close()
            return [held.nbytes for held in engine.registry.loaded()]

    def put(self, name: str) -> None:
        """Save something new under a name; what was there is replaced in one step."""
        self._seed += 1
        made = _made(self.base, name, self._seed)
        begun = time.monotonic()
        path = made.save(self.library, overwrite=True)
        now = time.monotonic()
        digest = hashlib.sha256((path / "softprompt.json").read_bytes()).hexdigest()
        for shown in self.versions:
            if shown.name == name and shown.until > now:
                shown.until = now
        prompt = load_prompt(name, self.base, self.library.path)
        self.versions.append(Shown(name, f"fp_{digest[:12]}", prompt, begun))

    def broken(self, name: str) -> Callable[[], None]:
        """Damage a prompt's weights; returns what puts them right, under a new content."""
        path = next(path for path in (self.library.path / name).iterdir() if path.suffix == ".safetensors")
        card = path.parent / "softprompt.json"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        card.write_bytes(card.read_bytes())  # as anything that was written anew
        for shown in self.versions:
            if shown.name == name:
                shown.until = min(shown.until, time.monotonic())
        return lambda: self.put(name)

    # -- what is right -------------------------------------------------------------------------

    def fault(self, answer: Answer) -> str | None:
        """What is wrong with an answer."""
        versions = [version for version in self.versions if version.name == answer.name]
        current = [v for v in versions if v.since <= answer.ended and answer.began <= v.until]
        if answer.fingerprint is not None and answer.name != BASE:
            current = [v for v in current if v.fingerprint == answer.fingerprint]
        if not current:
            return f"{answer.name}: answered by {answer.fingerprint}, which was not there then"
        if any(self._right(version, answer) for version in current):
            return None
        right = current[-1].fingerprint
        return f"{answer.name}, asked {answer.text!r}: {answer.said!r} is not what {right} gives"

    def _right(self, version: Shown, answer: Answer) -> bool:
        """Whether a version gives that answer to that text alone; reckoned once."""
        key = version.fingerprint, answer.text, answer.tokens, str(answer.said)
        if key not in self._known:
            with torch.no_grad():
                check = self._is_greedy if answer.tokens else _is_verdict
                self._known[key] = check(version.prompt, answer)
        return self._known[key]

    def _is_greedy(self, prompt: Prompt | None, answer: Answer) -> bool:
        """Whether each letter is the likeliest behind all that stands before it, by one plain pass."""
        base = prompt.base if prompt else self.base
        read = prompt.tokens(answer.text) if prompt else InputTokens(tuple(base.encode(answer.text)))
        ids, limit = read.ids, read.limit
        prefix = prompt.prefix if prompt else base.prefill_text("")
        tokens = limit or answer.tokens
        said = tuple(base.encode(answer.said))
        row = TokenRow((*ids, *said[:-1]))
        places = [(0, place) for place in range(len(ids) - 1, len(row.ids))]
        logits = base.head.logits(base.hidden([Batch([row], prefix)], [places]))  # [T, V]
        logits[:, MARKS] = -torch.inf
        chosen = logits.gather(1, torch.tensor(said)[:, None])[:, 0] if len(said) == len(logits) else None
        whole = len(said) == min(tokens, answer.tokens)
        return whole and chosen is not None and bool((logits.amax(1) - chosen <= NEAR).all())


def _is_verdict(prompt: Prompt | None, answer: Answer) -> bool:
    """Whether these are the probabilities of the labels, up to rounding."""
    wanted = prompt.classify(answer.text) if prompt else {}
    return answer.said.keys() == wanted.keys() and all(
        abs(answer.said[k] - v) < 1e-4 for k, v in wanted.items()
    )


def _made(base: Any, name: str, seed: int) -> Prompt:
    """Something new of the kind a name stands for."""
    kind, positions = name.split("-")[0], 2 + seed % 6
    if kind == "pairs":
        return shelf.prompt(base, name, shelf.pairs(base, seed, positions))
    if kind in ("lora", "full"):
        return shelf.changed(base, name, kind, seed, positions)
    template = shelf.LABELS if kind == "labels" else shelf.FREE
    return shelf.prompt(base, name, shelf.front(base, seed, positions), template)
