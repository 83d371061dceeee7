"""The helper threads of a thread that multiplies: who is done lets them go.

GNU's OpenMP gives every thread that multiplies helpers of its own, and while there are more of all of them
than cores, none waits actively for the next product: a second thread's products take a quarter longer
although the first one sleeps. It knows that library's one call for it; without that library nothing happens.
"""

from __future__ import annotations

import ctypes
from functools import cache

__all__ = ["let_workers_go"]

_SOFT = 1
"""OpenMP's ``omp_pause_soft``: what the program has set stays."""


@cache
def _runtime() -> ctypes.CDLL | None:
    """GNU's OpenMP if it is what torch loaded; others end more than the caller's helpers at this call."""
    try:
        loaded = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such thing as all that is loaded
        return None
    return loaded if hasattr(loaded, "GOMP_parallel") and hasattr(loaded, "omp_pause_resource_all") else None


def let_workers_go() -> None:
    """End the helpers of the calling thread; its next product starts new ones. Safe from every thread."""
    runtime = _runtime()
    if runtime is not None:
        runtime.omp_pause_resource_all(_SOFT)
