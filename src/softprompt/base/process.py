"""What the C libraries of a process keep for later, given back: freed memory and helper threads.

It knows two calls of GNU's libraries; without these nothing happens.
"""

from __future__ import annotations

import ctypes
from functools import cache

__all__ = ["let_workers_go", "release_heap"]

_GNU_OPENMP = ("GOMP_parallel", "omp_pause_resource_all")

_SOFT = 1
"""OpenMP's ``omp_pause_soft``: what the program has set stays."""


@cache
def _libraries(*calls: str) -> ctypes.CDLL | None:
    """All that is loaded, if it has these calls; Windows has no such thing."""
    try:
        loaded = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return loaded if all(hasattr(loaded, call) for call in calls) else None


def release_heap() -> None:
    """Give back what glibc holds of freed memory, which it else keeps for later, however long that may be."""
    if (libraries := _libraries("malloc_trim")) is not None:
        libraries.malloc_trim(0)


def let_workers_go() -> None:
    """End the helpers of the calling thread; its next product starts new ones. Safe from every thread.

    GNU's OpenMP gives every thread that multiplies helpers of its own, and while there are more of all of
    them than cores, none waits actively for the next product: a second thread's products take a quarter
    longer although the first one sleeps. Other OpenMPs end more than the caller's helpers at this call.
    """
    if (libraries := _libraries(*_GNU_OPENMP)) is not None:
        libraries.omp_pause_resource_all(_SOFT)
