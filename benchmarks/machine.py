"""What this machine can do and how much memory a process takes: clocks, matrix products, peaks."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["PeakMemory", "describe", "gemm_rate", "layer_linears", "resident", "seconds"]

SQUARE = 2048
"""Side of the large matrix product."""


def describe() -> dict[str, Any]:
    """Versions, processor and threads: what a number is worth nothing without."""
    names = ("softprompt", "torch", "transformers", "peft")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long ``work`` takes, the device's queue included."""
    _synchronize(device)
    begun = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - begun


def layer_linears(model: Any) -> list[Tensor]:
    """The weights [out, in] of the linear maps of a model's layers, in order; not the head's."""
    head = model.get_output_embeddings()
    return [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]


def gemm_rate(weights: Sequence[Tensor], rows: int, repeats: int = 5) -> float:
    """The machine's own FLOP a second in matrix products, the better of two medians.

    One is over the model's own weights, one after the other as a step meets them, with as many
    rows as the step has tokens; the other over one large square product.
    """
    like = weights[0]
    inputs = {w.shape[1]: _noise(rows, w.shape[1], like) for w in weights}
    square = _noise(SQUARE, SQUARE, like)

    def through_the_layers() -> None:
        for weight in weights:
            functional.linear(inputs[weight.shape[1]], weight)

    of_layers = 2 * rows * sum(w.numel() for w in weights)
    with torch.no_grad():
        return max(
            of_layers / _median(through_the_layers, like.device, repeats),
            2 * SQUARE**3 / _median(lambda: functional.linear(square, square), like.device, repeats),
        )


class PeakMemory:
    """Peak memory of this process beyond what it held when this was made.

    On CUDA it is torch's own count of allocated bytes. Elsewhere it is resident memory: freed
    memory is first handed back to the system, then the kernel's high-water mark is reset and
    read (``VmHWM`` of ``/proc/self/status``, reset through ``/proc/self/clear_refs``). Where
    there is no such file, the mark cannot be reset, and a peak while loading hides a lower one
    of the steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        _trim()
        _reset_peak()
        self._before = resident()

    def beyond(self) -> int:
        """Bytes between the start and the peak since."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return _peak() - self._before


def _noise(rows: int, columns: int, like: Tensor) -> Tensor:
    return torch.randn(rows, columns, device=like.device).to(like.dtype)


def _median(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    work()
    return statistics.median(seconds(work, device) for _ in range(repeats))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _trim() -> None:
    """Give freed memory back, where the C library can (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _reset_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def resident(process: int | None = None) -> int:
    """Resident memory of a process in bytes; of another one only on Linux."""
    if sys.platform == "linux":
        return _status("VmRSS", "self" if process is None else str(process))
    assert process is None, "only Linux tells of other processes"
    return _most_resident()


def _peak() -> int:
    return _status("VmHWM") if sys.platform == "linux" else _most_resident()


def _most_resident() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _status(field: str, process: str = "self") -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{process}/status has no {field}.")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {os.cpu_count()}" if names else platform.processor()
