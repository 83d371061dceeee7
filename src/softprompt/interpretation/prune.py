"""Shorter prompts: positions are taken out, those that matter least first, and what is left is scored.

It knows a saved prompt, rows and the scorer; it does not know files. Notation: P positions.

Every length is scored as it will be used. Of a soft prompt whole vectors are taken out, and what follows
moves up. Of a KV prefix keys and values are taken out; the keys that stay keep the rotation of the place they
had, while rows begin earlier than before.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import torch

import softprompt
from softprompt.config import NAME_RULE
from softprompt.data.rows import Encoded
from softprompt.errors import ConfigError
from softprompt.evaluation.score import Scores, score
from softprompt.interpretation.inspected import PRUNED, InspectedPrompt, Rows, kept_positions, part_of
from softprompt.interpretation.scored import Scored, ScoreDifference
from softprompt.library.card import Card, DataCard
from softprompt.library.prompt import Prompt
from softprompt.prefix import Front, Prefix

__all__ = ["Length", "Pruned", "prune"]

Progress = Callable[[int, int], None]

_SOFT = re.compile(r"\{\{|\}\}|\{soft:(\d+)\}")
"""A run of learnt vectors in a front; doubled braces are plain ones."""


@dataclass(frozen=True)
class Length:
    """A prompt brought to some length.

    Attributes:
        kept: positions of the whole prompt that are left, in order, counted from 0.
        removed: the last one taken out; None of the whole prompt.
        scores: on the rows.
        lost: these scores less the whole prompt's, on the same rows; None of the whole prompt.
    """

    kept: tuple[int, ...]
    removed: int | None
    scores: Scored
    lost: ScoreDifference | None

    @property
    def positions(self) -> int:
        return len(self.kept)

    @property
    def given_away(self) -> float:
        """Accuracy, or nats per token of free text."""
        if self.lost is None:
            return 0.0
        return self.lost.nll.difference if self.lost.accuracy is None else -self.lost.accuracy.difference


@dataclass(frozen=True, eq=False)
class Pruned:
    """A shortened prompt, and what every length scores.

    Attributes:
        prompt: the prompt at the chosen length, under its new name, not saved yet.
        chosen: that length.
        curve: every length that was tried, the whole prompt first.
        rows: what the scores are over; positions were chosen on these rows, so they flatter it a little.
        anew: whether positions were ranked again after each one taken out.
    """

    prompt: Prompt
    chosen: Length
    curve: tuple[Length, ...]
    rows: str
    anew: bool

    def to_json(self) -> dict[str, Any]:
        """Everything but the prompt, as JSON values."""
        return {
            "name": self.prompt.name,
            "rows": self.rows,
            "anew": self.anew,
            "chosen": asdict(self.chosen),
            "curve": [asdict(length) for length in self.curve],
        }


def prune(
    inspected: InspectedPrompt,
    rows: Rows,
    name: str,
    *,
    keep: int | None = None,
    tolerance: float | None = None,
    anew: bool = False,
    progress: Progress | None = None,
) -> Pruned:
    """Shorten a prompt to ``keep`` positions, or as far as its score allows.

    Positions are ranked by the score that is left without each one alone. They are then taken out in that
    order, or with ``anew`` ranked again each time, which takes P / 2 times as long and sees that of two
    positions that say the same one is needed. Words among the learnt vectors stay.

    Args:
        inspected: the prompt.
        rows: to rank and to score on.
        name: of the shorter prompt.
        keep: how many positions to keep; or else
        tolerance: the shortest length that gives away no more accuracy than this, or for free text no more
            nats per token.
        anew: whether to rank again after each position taken out.
        progress: told (passes over the rows done, at most how many).

    Raises:
        ConfigError: the name is no name, or the length is out of range.
    """
    assert (keep is None) != (tolerance is None)
    fixed = inspected.positions - len(inspected.learnt)
    shortest = max(1, fixed) if keep is None else keep
    if not NAME_RULE.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a prompt: use 1 to 100 of the letters a-z and A-Z, digits, '.', '_' "
            "and '-', not starting with '.'."
        )
    least = max(1, fixed)
    if not least <= shortest <= inspected.positions:
        words = f", of which {fixed} were not learnt and stay" if fixed else ""
        raise ConfigError(
            f"{inspected.name} has {inspected.positions} positions{words}, so --keep must be from {least} to "
            f"{inspected.positions}, not {shortest}."
        )
    ladder = _Ladder(inspected, rows.encoded, anew, progress, shortest)
    curve = tuple(ladder.climb_down(shortest))
    allowed = [length for length in curve if length.given_away <= (tolerance or 0.0) + 1e-9]
    chosen = curve[-1] if keep is not None else allowed[-1]  # the whole prompt is always among them
    prompt = _shorter(inspected, chosen, rows, name, ladder.scores[chosen.kept])
    return Pruned(prompt, chosen, curve, rows.told, anew)


class _Ladder:
    """Scores a prompt at one length after another; no length is read twice."""

    def __init__(
        self, prompt: InspectedPrompt, encoded: Encoded, anew: bool, progress: Progress | None, shortest: int
    ) -> None:
        self._prompt, self._encoded, self._anew, self._progress = prompt, encoded, anew, progress
        self.scores: dict[tuple[int, ...], Scores] = {}
        steps, learnt = prompt.positions - shortest, len(prompt.learnt)
        ranked = sum(learnt - n for n in range(steps)) if anew else learnt + max(0, steps - 1)
        self._most = 1 + (ranked if steps else 0)

    def climb_down(self, shortest: int) -> list[Length]:
        """The whole prompt, and every shorter one down to ``shortest`` positions."""
        kept = tuple(range(self._prompt.positions))
        whole = self._score(kept)
        curve = [Length(kept, None, Scored.of(whole), None)]
        order: list[int] = []
        while len(kept) > shortest:
            if self._anew or not order:
                order = [p for p in self._prompt.learnt if p in kept]
                if len(kept) > 1:  # that one first without which the loss is least
                    left = {p: self._score(tuple(q for q in kept if q != p)).nll for p in order}
                    order.sort(key=lambda p: (left[p], p))
            removed = order.pop(0)
            kept = tuple(p for p in kept if p != removed)
            scores = self._score(kept)
            lost = ScoreDifference.of(scores, whole, self._encoded)
            curve.append(Length(kept, removed, Scored.of(scores), lost))
        return curve

    def _score(self, kept: tuple[int, ...]) -> Scores:
        if kept not in self.scores:
            if self._progress is not None:
                self._progress(len(self.scores), self._most)
            front = self._prompt.front
            whole = len(kept) == self._prompt.positions
            self.scores[kept] = score(
                self._prompt.base, front if whole else part_of(front, kept), self._encoded
            )
        return self.scores[kept]


# The artifact ------------------------------------------------------------------------------------


def _shorter(inspected: InspectedPrompt, length: Length, rows: Rows, name: str, scores: Scores) -> Prompt:
    """The prompt at a length; its card tells what was kept, and scores on the rows it was chosen on."""
    old = inspected.prompt.card
    whole = length.positions == inspected.positions
    front: Front = inspected.front if whole else part_of(inspected.front, length.kept)
    learnt = len([p for p in length.kept if p not in inspected.words])
    sides = (
        (*front.keys, *front.values) if isinstance(front, Prefix) else (front[None],)
    )  # [K, P, D] or [1, P, E]
    numbers = sum(side.numel() // side.shape[1] for side in sides) * learnt
    before = kept_positions(old) or range(inspected.positions)
    about = old.settings.get(PRUNED)
    source = about.get("from", old.name) if isinstance(about, dict) else old.name
    pruned = {"from": source, "kept": [before[p] for p in length.kept], "rows": rows.told}
    split = "validation" if rows.split == "validation" else "pruning"
    data = {split: DataCard(origin=rows.table.origin, rows=len(rows), digest=rows.table.digest)}
    values = old.model_dump() | {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "positions": length.positions,
        "trained_parameters": numbers,
        "template": old.template.model_dump() | {"front": _front_template(inspected, length)},
        "data": {k: v.model_dump() for k, v in (old.data | data).items()},
        "scores": {split: scores.summary()},
        "search": None,
        "settings": old.settings | {PRUNED: pruned},
        "versions": old.versions | {"softprompt": softprompt.__version__, "torch": torch.__version__},
        "weights_sha256": "",
    }
    return replace(inspected.prompt, front=front, card=Card.model_validate(values))


def _front_template(inspected: InspectedPrompt, length: Length) -> str:
    """The front as it would be written now; that of a KV prefix names its start and stays."""
    old = inspected.prompt.card.template.front
    if isinstance(inspected.front, Prefix) or length.positions == inspected.positions:
        return old
    learnt, counts = iter(inspected.learnt), [int(n) for n in _SOFT.findall(old) if n]
    if sum(counts) != len(inspected.learnt):
        return f"{{soft:{length.positions}}}"
    left = iter([sum(p in length.kept for p in islice(learnt, count)) for count in counts])

    def renewed(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0]
        count = next(left)
        return f"{{soft:{count}}}" if count else ""

    return _SOFT.sub(renewed, old)
