"""The most memory that was held while something ran: of the device on a GPU, else of this process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
import threading
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["Peak", "largest"]

_EVERY = 0.02  # seconds between looks
_STATM = Path("/proc/self/statm")


class Peak:
    """``with Peak(device) as peak: ...; peak.bytes``: everything held counts, the base included.

    Before it starts, memory that was freed earlier is given back to the system, so that a run is not
    charged for the one before it. Where the system tells no current size (outside Linux), the
    process's largest size ever stands in.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def __enter__(self) -> Peak:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            return self
        if sys.platform.startswith("linux"):  # only glibc can be asked to return what was freed
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.bytes = largest(self._device)
            return
        self._stop.set()
        self._watcher.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, _held())
            if self._stop.wait(_EVERY):
                return


def largest(device: torch.device) -> int:
    """The most bytes this process (on a GPU: the device) has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _held() -> int:
    """Bytes this process holds now."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return largest(torch.device("cpu"))
