"""What a prompt says by itself, and how it moves what the base expects next.

It knows fronts, encoded rows and a base; it does not know labels, scores or how a front was learnt. Notation:
B rows, V words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from softprompt.base.model import Base, Batch
from softprompt.base.packing import TokenRow, batches, split
from softprompt.data.rows import Encoded
from softprompt.evaluation.metrics import average
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling
from softprompt.interpretation.finding import Finding
from softprompt.interpretation.vocabulary import Vocabulary, Word
from softprompt.prefix import Front

__all__ = ["Shift", "Speech", "TokenShift", "distributions", "shift", "speak"]

_TOKENS = 2048  # text tokens read in one pass
_CELLS = 8_000_000  # the most (front, row, word) log-probabilities held at once: 64 MB


@dataclass(frozen=True)
class Speech(Finding):
    """Free texts from a prompt alone.

    Attributes:
        greedy: the likeliest word each time.
        samples: drawn texts.
        opening: what stood behind the prompt to begin from. Nothing, but for a KV prefix, which by itself
            expects no first word.
        max_new_tokens, temperature, seed: how they were drawn.
    """

    greedy: str
    samples: tuple[str, ...]
    opening: str
    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class TokenShift:
    """A word whose probability moved: means over the rows."""

    word: Word
    change: float
    bare: float
    prompted: float


@dataclass(frozen=True)
class Shift(Finding):
    """How the next word's distribution moves when the prompt is put in front of rows.

    Attributes:
        kl: mean over rows of KL(prompted || bare), in nats.
        low, high: its 95% bootstrap interval over rows.
        changed: share of rows whose likeliest next word is another than the bare base's.
        gained: words of greatest rise in mean probability, greatest first; none that fell.
        lost: words of greatest fall; none that rose.
        rows: how many rows.
        seed: of the resamplings.
        per_row: the divergence of every row.
    """

    kl: float
    low: float
    high: float
    changed: float
    gained: tuple[TokenShift, ...]
    lost: tuple[TokenShift, ...]
    rows: int
    seed: int
    per_row: tuple[float, ...]


class NextWords(NamedTuple):
    """Some rows: their numbers, and log-probabilities ``[S, b, V]`` of the next word, fp64."""

    numbers: list[int]
    logs: Tensor


def speak(
    base: Base,
    front: Front,
    *,
    samples: int = 3,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
    opening: str = "",
) -> Speech:
    """Write freely from the prompt alone: once greedily, and ``samples`` times drawn.

    Args:
        base: the model.
        front: ``[P, E]`` or a prefix.
        samples: how many drawn texts.
        max_new_tokens: of each.
        temperature: of the drawn ones.
        seed: of the draws.
        opening: a text to begin from; a KV prefix, which needs one, gets a line break unless it is given.

    Raises:
        BaseModelError: prompt and text are longer than the base's positions.
    """
    with torch.no_grad():
        prefix = base.prefill(front).detached()
    ids = tuple(base.encode(opening))
    if not ids and prefix.hidden is None:
        opening = "\n"
        ids = tuple(base.encode(opening)) or (base.end_id or 0,)  # not every tokenizer has a line break
    drawing = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    ways = [(replace(drawing, temperature=0.0), 0), *((drawing, row) for row in range(samples))]
    greedy, *drawn = generate(
        [
            GenerateRequest(model=base, prefix=prefix, ids=ids, sampling=sampling, row=row)
            for sampling, row in ways
        ]
    )
    return Speech(greedy, tuple(drawn), opening, max_new_tokens, temperature, seed)


def distributions(base: Base, fronts: Sequence[Front], encoded: Encoded) -> Iterator[NextWords]:
    """What is expected behind each row's input, behind every front, some rows at a time.

    Raises:
        BaseModelError: a row has no input and a front nothing to go on from.
    """
    rows = [TokenRow(example.input_ids) for example in encoded.examples]
    most = max(1, _CELLS // (len(fronts) * base.embedding.weight.shape[0]))
    with torch.no_grad():
        prefixes = [base.prefill(front) for front in fronts]
        for together in batches(rows, max(1, _TOKENS // len(fronts))):
            for places in split([1] * len(together), most):
                numbers = [together[place] for place in places]
                part = [rows[number] for number in numbers]
                logits = base.next_logits_many([Batch(part, prefix) for prefix in prefixes])
                yield NextWords(numbers, torch.stack(logits).double().log_softmax(-1))


def shift(
    front: Front,
    encoded: Encoded,
    vocabulary: Vocabulary,
    *,
    bare: Front | None = None,
    top: int = 15,
    seed: int = 0,
) -> Shift:
    """How a prompt moves the next word's distribution over rows, against the base without it.

    Args:
        front: ``[P, E]`` or a prefix.
        encoded: rows; what follows each one's input is looked at.
        vocabulary: the words of the base.
        bare: what stands in front instead; by default what the tokenizer sets before any text.
        top: how many gained and lost words to name.
        seed: of the resamplings.

    Raises:
        BaseModelError: a row has no input and the bare base nothing to go on from.
    """
    base = vocabulary.base
    without: Front = base.embed(base.start_ids) if bare is None else bare
    kl, changed = torch.zeros(len(encoded.examples), dtype=torch.float64), 0
    sums = torch.zeros(2, base.embedding.weight.shape[0], dtype=torch.float64)  # prompted, bare
    for numbers, logs in distributions(base, [front, without], encoded):
        shares = logs.exp()
        # A word neither expects adds nothing, though its logarithms have no difference.
        gaps = (shares[0] * (logs[0] - logs[1])).where(shares[0] > 0, 0.0)
        kl[numbers] = gaps.sum(1).clamp(min=0).cpu()
        changed += int((logs[0].argmax(1) != logs[1].argmax(1)).sum())
        sums += shares.sum(1).cpu()
    means = sums[:, : len(vocabulary)] / len(kl)
    value, low, high = average(kl.tolist(), seed=seed)
    prompted, without_it = means
    change = prompted - without_it

    def moved(sign: int) -> tuple[TokenShift, ...]:
        """The words that rose (1) or fell (-1) most."""
        ids = (sign * change).topk(min(top, len(change))).indices.tolist()
        return tuple(
            TokenShift(vocabulary.word(i), float(change[i]), float(without_it[i]), float(prompted[i]))
            for i in ids
            if sign * float(change[i]) > 0
        )

    ends = (moved(1), moved(-1))
    return Shift(value, low, high, changed / len(kl), *ends, len(kl), seed, tuple(kl.tolist()))
