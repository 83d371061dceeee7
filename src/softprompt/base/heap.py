"""Memory that was freed, back to the operating system: glibc keeps it for later, however long that may be."""

from __future__ import annotations

import ctypes

__all__ = ["release_heap"]


def release_heap() -> None:
    """Give back what the C library holds of freed memory; without glibc nothing happens."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return
    trim(0)
