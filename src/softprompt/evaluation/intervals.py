"""95% intervals: Wilson's for shares, the bootstrap over rows for ratios. Pure arithmetic."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

__all__ = ["Interval", "bootstrap_ratio", "wilson"]

Interval = tuple[float, float]

_Z = 1.959963984540054  # of a normal distribution, 95% lies within so many deviations
_DRAWS = 1000


def wilson(hits: int, total: int) -> Interval:
    """Wilson's score interval of ``hits`` out of ``total`` (Wilson 1927); (0, 1) for no rows."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = hits / total, _Z * _Z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = _Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return max(0.0, centre - spread), min(1.0, centre + spread)


def bootstrap_ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """Percentile bootstrap over rows of sum(numerators) / sum(denominators), such as nats per token."""
    rows, draw = len(numerators), random.Random(seed)
    if rows == 0:
        return -math.inf, math.inf
    ratios = []
    for _ in range(_DRAWS):
        picked = draw.choices(range(rows), k=rows)
        ratios.append(sum(numerators[i] for i in picked) / max(1e-12, sum(denominators[i] for i in picked)))
    ratios.sort()
    return ratios[int(0.025 * _DRAWS)], ratios[int(0.975 * _DRAWS)]
