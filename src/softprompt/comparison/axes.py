"""Where things stand along an axis: a logarithmic scale with a place for nothing, and points kept apart.

Pure arithmetic in pixels; it draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Scale", "apart", "cost_scale"]

_MARGIN = 16.0
_ZERO = 34.0
_ROUNDS = 200


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis of a number of pixels.

    Attributes:
        ticks: round values to label; 0 among them if anything costs nothing.
        gap: where the axis is broken between 0 and the rest; None if it is not.
        low: the logarithm at ``start``.
        high: the logarithm at ``end``.
    """

    ticks: tuple[float, ...]
    gap: float | None
    low: float
    high: float
    start: float
    end: float
    zero: float

    def place(self, value: float) -> float:
        """The pixel of a value; 0 and below have a place of their own."""
        if value <= 0:
            return self.zero
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)


def cost_scale(values: Sequence[float], width: float) -> Scale:
    """A scale for costs, some of which may be nothing."""
    positive = [value for value in values if value > 0]
    nothing = len(positive) < len(values)
    if not positive:
        return Scale((0.0,), None, 0.0, 1.0, 0.0, width, width / 2)
    low, high = math.log10(min(positive)), math.log10(max(positive))
    low = math.floor(low) if low - math.floor(low) < 0.35 else low
    high = math.ceil(high) if math.ceil(high) - high < 0.35 else high
    if high - low < 0.5:
        low, high = (low + high) / 2 - 0.25, (low + high) / 2 + 0.25
    start = _ZERO + 2 * _MARGIN if nothing else _MARGIN
    ticks = ((0.0,) if nothing else ()) + _ticks(low, high)
    return Scale(ticks, _ZERO + 4 if nothing else None, low, high, start, width - _MARGIN, _ZERO / 2)


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """Up to five powers of ten, or where there are too few of them, 1, 2 and 5 times one."""
    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    if len(powers) >= 2:
        step = -(-len(powers) // 5)
        return tuple(10.0**power for power in powers[::step])
    exponents = range(math.floor(low), math.ceil(high) + 1)
    fine = [factor * 10.0**power for power in exponents for factor in (1, 2, 5)]
    return tuple(value for value in fine if low - 1e-9 <= math.log10(value) <= high + 1e-9)


def apart(points: Sequence[tuple[float, float]], least: float, width: float) -> list[float]:
    """New x for points, moved sideways so that no two are closer than ``least`` in both directions."""
    places = [x for x, _ in points]
    for _ in range(_ROUNDS):
        moved = False
        for i in range(len(points)):
            for j in range(i):
                lack = least - abs(places[i] - places[j])
                if lack > 0.01 and abs(points[i][1] - points[j][1]) < least:
                    sign = 1 if (places[i], i) > (places[j], j) else -1
                    places[i] += sign * lack / 2
                    places[j] -= sign * lack / 2
                    moved = True
        places = [min(max(place, least / 2), width - least / 2) for place in places]
        if not moved:
            break
    return places
