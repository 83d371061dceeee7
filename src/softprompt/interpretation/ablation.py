"""What each position of a prompt does: the score on rows when it is hidden, beside the score when it is not.

It knows fronts, masks and the scorer; it does not know how a prompt was learnt. Notation: P positions, B
rows, N bins of W slots, S fronts.

Hiding is exact and moves nothing: whatever stands behind a hidden position, later positions of the front and
rows alike, gives its keys no weight at all, and every place stays what it was. The later positions of a soft
prompt are read anew without it; those of a KV prefix are values that were learnt, so there only rows miss it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from softprompt.base.cache import Recorder
from softprompt.base.layout import Layout, Mask, Windows
from softprompt.base.model import Base
from softprompt.base.packing import Pack
from softprompt.data.rows import Encoded
from softprompt.errors import BaseModelError
from softprompt.evaluation.score import Scores, score
from softprompt.interpretation.finding import Finding
from softprompt.interpretation.scored import PairedDifference, ScoreDifference
from softprompt.prefix import Front, Prefix

__all__ = ["Ablation", "Hidden", "ablate", "quarters", "score_without"]

_AT_ONCE = 64
"""Fronts read in one pass."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Hidden:
    """What hiding some positions does.

    Attributes:
        positions: which, counted from 0.
        loss: change of the loss per token in nats, with its 95% interval over rows; above 0 it got worse.
        accuracy: change of the accuracy; below 0 it got worse. None for free text.
    """

    positions: tuple[int, ...]
    loss: PairedDifference
    accuracy: PairedDifference | None

    @property
    def matters(self) -> bool:
        """Whether the interval of the loss leaves 0 out."""
        return self.loss.low > 0 or self.loss.high < 0


@dataclass(frozen=True)
class Ablation(Finding):
    """What each position and each group of positions does.

    Attributes:
        rows: B, how many rows were read each time.
        loss: per token with nothing hidden.
        accuracy: with nothing hidden; None for free text.
        each: every position hidden alone, in order.
        groups: neighbouring positions hidden together.
        clusters: given groups hidden together.
        of_prefix: whether later positions are values that were learnt and so do not notice.
    """

    rows: int
    loss: float
    accuracy: float | None
    each: tuple[Hidden, ...]
    groups: tuple[Hidden, ...]
    clusters: tuple[Hidden, ...]
    of_prefix: bool

    @property
    def order(self) -> tuple[int, ...]:
        """Positions, the one that matters most first."""
        return tuple(sorted(range(len(self.each)), key=lambda p: -self.each[p].loss.difference))


def ablate(
    base: Base,
    front: Front,
    encoded: Encoded,
    *,
    clusters: Sequence[Sequence[int]] = (),
    progress: Progress | None = None,
) -> Ablation:
    """Hide every position alone, quarters of the front and given clusters, and score what is left.

    Args:
        base: the model the rows are read with.
        front: embeddings ``[P, E]`` or a prefix.
        encoded: labelled rows that the front was not trained on.
        clusters: groups of positions, counted from 0.
        progress: told (passes over the rows done, all).

    Raises:
        BaseModelError: a model that takes no masks of ours.
    """
    count = front.length if isinstance(front, Prefix) else len(front)
    each = [(p,) for p in range(count)]
    groups = quarters(count) if count > 1 else []
    given = [tuple(sorted(set(cluster))) for cluster in clusters]
    wanted = [(), *each, *groups, *given]
    whole, *less = score_without(base, front, encoded, wanted, progress)
    changes = [ScoreDifference.of(scores, whole, encoded) for scores in less]
    found = [Hidden(where, c.nll, c.accuracy) for where, c in zip(wanted[1:], changes, strict=True)]
    edges = (count, count + len(groups))
    return Ablation(
        rows=len(encoded.examples),
        loss=whole.nll,
        accuracy=whole.accuracy,
        each=tuple(found[: edges[0]]),
        groups=tuple(found[edges[0] : edges[1]]),
        clusters=tuple(found[edges[1] :]),
        of_prefix=isinstance(front, Prefix),
    )


def quarters(count: int) -> list[tuple[int, ...]]:
    """Positions 0, 1, ... in four runs of about one length; fewer where there are fewer positions."""
    parts = min(4, count)
    edges = [number * count // parts for number in range(parts + 1)]
    return [tuple(range(*edge)) for edge in pairwise(edges)]


def score_without(
    base: Base,
    front: Front,
    encoded: Encoded,
    hidden: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> list[Scores]:
    """Scores of a front with each of several sets of positions hidden; errors as in ``ablate``."""
    if not (base.layout.inline and base.layout.told):
        raise BaseModelError(
            f"{base.name} takes no masks but its own, or keeps states that no mask reaches, so no position "
            "in front of it can be hidden in place; leave ablation out."
        )
    found = []
    with torch.no_grad():
        prefixes = _prefixes(base, front, hidden)
        for number, (prefix, places) in enumerate(zip(prefixes, hidden, strict=True)):
            if progress is not None:
                progress(number, len(hidden))
            layout = cast(Layout, _Hiding(base.layout, tuple(places)))  # all that scoring asks of a layout
            found.append(score(replace(base, layout=layout), prefix, encoded))
    return found


# Hiding ------------------------------------------------------------------------------------------


def _prefixes(base: Base, front: Front, hidden: Sequence[Sequence[int]]) -> list[Prefix]:
    """The front with each set of positions hidden, read once: keys and values of all P positions."""
    if isinstance(front, Prefix) or not len(front):
        return [base.prefill(front)] * len(hidden)
    found: list[Prefix] = []
    for first in range(0, len(hidden), _AT_ONCE):
        found += _read_hiding(base, front, hidden[first : first + _AT_ONCE])
    return found


def _read_hiding(base: Base, front: Tensor, hidden: Sequence[Sequence[int]]) -> list[Prefix]:
    """S prefixes from one pass over embeddings [P, E], a row for each set of hidden positions."""
    count = len(front)
    seen = torch.ones(len(hidden), count, dtype=torch.bool, device=base.device)  # [S, P]
    for row, places in enumerate(hidden):
        seen[row, list(places)] = False
    # A hidden position still sees itself, so that its own pass stays finite; nobody else looks at it.
    visible = (seen[:, None] | torch.eye(count, dtype=torch.bool, device=base.device)).tril()  # [S, P, P]
    positions = torch.arange(count, device=base.device)
    distance = (positions[:, None] - positions).expand_as(visible)
    recorder = Recorder()
    out = base.run(
        inputs_embeds=front.to(base.dtype).expand(len(hidden), -1, -1),
        position_ids=positions.expand(len(hidden), -1),
        attention_mask=Windows.of(base.config).masks(visible, distance, base.dtype),
        cache=recorder,
    )  # [S, P, E]
    pairs = [recorder.pairs[layer] for layer in sorted(recorder.pairs)]
    found = []
    for row, seen_here in enumerate(seen):
        keys, values = (tuple(pair[side][row] for pair in pairs) for side in (0, 1))
        left = seen_here.nonzero()[:, 0]
        # What a row without text goes on from is the last position that is left.
        end = out[row, left[-1]] if len(left) else None
        found.append(Prefix(keys, values, end, base.fingerprint))
    return found


@dataclass(frozen=True)
class _Hiding:
    """A layout in which rows do not see some positions of the front before them."""

    layout: Layout
    positions: tuple[int, ...]
    inline: bool = True
    repeats: bool = False

    def reading(self, pack: Pack, windows: Windows, dtype: torch.dtype) -> dict[str, Any]:
        """Positions and masks for a pack, as the layout gives them, the hidden positions masked."""
        where = self.layout.reading(pack, windows, dtype)
        masks: Mask = where["attention_mask"]
        for mask in masks.values() if isinstance(masks, dict) else [masks]:
            assert mask is not None
            mask[..., list(self.positions)] = torch.finfo(dtype).min  # [N, 1, W, P + W]
        return where
