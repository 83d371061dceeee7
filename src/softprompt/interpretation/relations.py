"""How prompts are alike: as vectors, and in what they do to the same rows.

It knows fronts, starts, rows and a base; it does not know methods or files. Notation: S prompts, P
positions, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.base.model import Base
from softprompt.data.rows import Encoded
from softprompt.errors import ConfigError
from softprompt.evaluation.metrics import average
from softprompt.evaluation.score import judge_many
from softprompt.interpretation.finding import Finding
from softprompt.interpretation.says import distributions
from softprompt.interpretation.vocabulary import Vocabulary
from softprompt.packages import require
from softprompt.prefix import Front

__all__ = ["Matrix", "cka", "effects", "likeness", "match"]


@dataclass(frozen=True)
class Matrix(Finding):
    """One kind of likeness of every two of S prompts.

    Attributes:
        kind: a short name.
        about: what a cell says, and its range, in one sentence.
        names: the prompts.
        values: ``S x S``; None where the two cannot be compared.
        low, high: 95% bootstrap intervals over rows, ``S x S``; None where no rows were read.
        rows: how many rows; None for vectors alone.
        seed: of the resamplings; None without.
    """

    kind: str
    about: str
    names: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    low: tuple[tuple[float, ...], ...] | None = None
    high: tuple[tuple[float, ...], ...] | None = None
    rows: int | None = None
    seed: int | None = None


def likeness(
    fronts: Mapping[str, Tensor], vocabulary: Vocabulary, starts: Mapping[str, Tensor] | None = None
) -> list[Matrix]:
    """Likeness of soft prompts ``[P, E]`` as vectors: ``positions``, ``matched``, ``cka``, ``travel``.

    Args:
        fronts: the prompts by name; lengths may differ.
        vocabulary: the words of their base.
        starts: what some began from, by the same names. Prompts that began from one text are alike already,
            so ``travel`` compares how they moved.
    """
    names = tuple(fronts)
    vectors = [vocabulary.centred(front).double().cpu() for front in fronts.values()]
    found = [
        Matrix("positions", "Mean cosine of equal positions, -1 to 1.", names, _table(vectors, _by_position)),
        Matrix(
            "matched",
            "Mean cosine of positions paired as well as they can be, -1 to 1; "
            "the pairing alone lifts it above 0 for unrelated prompts.",
            names,
            _table(vectors, _matched),
        ),
        Matrix(
            "cka",
            "Linear CKA over embedding dimensions (Kornblith et al. 2019): whether the prompts span the same "
            "directions, whatever their order and length; 0 to 1.",
            names,
            _table(vectors, cka),
        ),
    ]
    if starts:
        steps = [
            fronts[name].double().cpu() - starts[name].double().cpu() if name in starts else None
            for name in names
        ]
        about = "Mean cosine of how equal positions moved from their starts, -1 to 1."
        found.append(Matrix("travel", about, names, _table(steps, _travelled)))
    return found


def effects(base: Base, fronts: Mapping[str, Front], encoded: Encoded, *, seed: int = 0) -> list[Matrix]:
    """Likeness of prompts of any kind in what they do to the same rows.

    Always ``next word``: the mean Jensen-Shannon divergence of the next word's distribution. For rows with
    labels or choices also ``agreement``, the share of rows given the same answer, and ``probabilities``, the
    correlation of the answers' probabilities over all rows.

    Raises:
        BaseModelError: a row has no input and a front nothing to go on from.
    """
    names, count = tuple(fronts), len(fronts)
    divergence = torch.zeros(count, count, len(encoded.examples), dtype=torch.float64)
    for numbers, logs in distributions(base, list(fronts.values()), encoded):
        for i in range(count):
            for j in range(i):
                divergence[i, j, numbers] = divergence[j, i, numbers] = _jensen_shannon(logs[i], logs[j])
    about = (
        "Mean Jensen-Shannon divergence of the next word's distribution, in nats: 0 for equal, ln 2 at most."
    )
    found = [_over_rows("next word", about, names, divergence, seed)]
    if not any(map(encoded.candidates, encoded.examples)):
        return found
    with torch.no_grad():
        judged = judge_many(base, list(fronts.values()), encoded)
    picked = torch.stack([one.weights.argmax(1) for one in judged])  # [S, B]
    same = (picked[:, None] == picked[None]).double()  # [S, S, B]
    offered = judged[0].likelihoods != -torch.inf  # [B, C]
    shares = [one.probabilities.double()[offered] for one in judged]
    about = "Correlation of the answers' probabilities over all rows and answers, -1 to 1."
    return [
        *found,
        _over_rows("agreement", "Share of rows given the same answer, 0 to 1.", names, same, seed),
        Matrix("probabilities", about, names, _table(shares, _correlation), rows=len(encoded.examples)),
    ]


def _over_rows(kind: str, about: str, names: tuple[str, ...], each: Tensor, seed: int) -> Matrix:
    """A matrix of means over rows, from [S, S, B]."""
    cells = [[average(cell.tolist(), seed=seed) for cell in row] for row in each]
    values, low, high = (tuple(tuple(cell[side] for cell in row) for row in cells) for side in range(3))
    return Matrix(kind, about, names, values, low, high, each.shape[2], seed)


def _jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Of log-probabilities [b, V] each, in nats, [b]."""
    middle = torch.logaddexp(first, second) - torch.log(first.new_tensor(2.0))
    parts = [(logs.exp() * (logs - middle)).where(logs > -torch.inf, 0.0).sum(1) for logs in (first, second)]
    return ((parts[0] + parts[1]) / 2).clamp(min=0).cpu()


_Compare = Callable[[Tensor, Tensor], float | None]


def _table(things: Sequence[Tensor | None], compare: _Compare) -> tuple[tuple[float | None, ...], ...]:
    """Every two compared, each pair once."""
    cells: dict[tuple[int, int], float | None] = {}
    for i, first in enumerate(things):
        for j, second in enumerate(things[: i + 1]):
            value = None if first is None or second is None else compare(first, second)
            cells[i, j] = cells[j, i] = value
    return tuple(tuple(cells[i, j] for j in range(len(things))) for i in range(len(things)))


def _by_position(first: Tensor, second: Tensor) -> float | None:
    """Mean cosine of positions [P, E]; None for lengths that differ."""
    if len(first) != len(second):
        return None
    return float(functional.cosine_similarity(first, second, dim=1).mean())


def _travelled(first: Tensor, second: Tensor) -> float | None:
    """The same over positions that both moved; words that stand in a front never do."""
    if len(first) != len(second):
        return None
    both = (first.norm(dim=1) > 0) & (second.norm(dim=1) > 0)
    return _by_position(first[both], second[both]) if bool(both.any()) else None


def _matched(first: Tensor, second: Tensor) -> float:
    """Mean cosine of the best pairing; every position of the shorter prompt is paired."""
    cosines = functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T
    return float(torch.stack([cosines[i, j] for i, j in match(cosines)]).mean())


def _correlation(first: Tensor, second: Tensor) -> float | None:
    """Pearson's, of [n] each; None where one does not vary."""
    a, b = first - first.mean(), second - second.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 1e-12 else None


def cka(first: Tensor, second: Tensor) -> float | None:
    """Linear CKA of prompts ``[P, E]`` and ``[Q, E]``, already centred; None for one of zeros.

    The embedding's dimensions are the examples and positions the features, so lengths may differ and an
    orthogonal mixture of positions changes nothing (Kornblith et al. 2019).
    """
    size = float((first @ first.T).norm() * (second @ second.T).norm())
    return float((first @ second.T).square().sum()) / size if size > 0 else None


def match(worth: Tensor) -> list[tuple[int, int]]:
    """Pairs (row, column) of greatest total worth ``[P, Q]``, every one of the shorter side paired once.

    Raises:
        ConfigError: a worth that is no number.
        ResourceError: scipy is not installed.
    """
    if not bool(worth.isfinite().all()):
        raise ConfigError("A prompt holds values that are no numbers, so it cannot be compared with others.")
    require("relating prompts")
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(worth.cpu().numpy(), maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
