"""What a comparison ran on and with: facts for the record, nothing that changes a result."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import softprompt
from softprompt.base.model import Base

__all__ = ["hardware", "versions"]

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "rouge-score", "sacrebleu")


def versions() -> dict[str, str]:
    """softprompt, Python and the packages that numbers may depend on, where they are installed."""
    found = {"softprompt": softprompt.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(base: Base) -> dict[str, Any]:
    """The processor, its cores and threads used, memory, and the device and number format of the base."""
    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": str(base.device),
        "dtype": str(base.dtype).removeprefix("torch."),
    }
    if base.device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(base.device)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
