"""95% intervals: Wilson's for shares, the bootstrap over rows for ratios. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["Interval", "bootstrap_ratio", "wilson"]

Interval = tuple[float, float]

_Z = 1.959963984540054  # of a normal distribution, 95% lies within so many deviations
_DRAWS = 1000
_AT_ONCE = 100  # draws held in memory together


def wilson(hits: int, total: int) -> Interval:
    """Wilson's score interval of ``hits`` out of ``total`` (Wilson 1927); (0, 1) for no rows."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = hits / total, _Z * _Z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = _Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return 0.0 if hits == 0 else centre - spread, 1.0 if hits == total else centre + spread


def bootstrap_ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """Percentile bootstrap over rows of sum(numerators) / sum(denominators), such as nats per token."""
    rows = len(numerators)
    if rows == 0:
        return -math.inf, math.inf
    pairs = torch.tensor([list(numerators), list(denominators)], dtype=torch.float64)  # [2, B]
    generator = torch.Generator().manual_seed(seed)
    sums = [
        pairs[:, torch.randint(rows, (min(_AT_ONCE, _DRAWS - start), rows), generator=generator)].sum(2)
        for start in range(0, _DRAWS, _AT_ONCE)
    ]
    above, below = torch.cat(sums, dim=1)  # [draws] each
    ratios = (above / below.clamp(min=1e-12)).sort().values
    return float(ratios[int(0.025 * _DRAWS)]), float(ratios[int(0.975 * _DRAWS)])
