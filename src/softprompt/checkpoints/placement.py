"""Where a model computes and in which number format: knows this machine, nothing of any model."""

from __future__ import annotations

from pathlib import Path

import torch

from softprompt.errors import BaseModelError, ResourceError
from softprompt.team import local_rank, started_together

__all__ = ["choose_device", "choose_dtype"]

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``name``: auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps.

    Raises:
        BaseModelError: the name is not one of these.
        ResourceError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if _has_cuda() else "mps" if _has_mps() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in name and not (kind == "cuda" and number.isdecimal())):
        raise BaseModelError(f"The device {name!r} is not known: write auto, cpu, cuda, cuda:0 or mps.")
    if kind == "mps" and not _has_mps():
        raise ResourceError("This machine has no MPS device: write device auto or cpu.")
    if kind == "cuda":
        count = torch.cuda.device_count() if _has_cuda() else 0
        if count == 0:
            raise ResourceError(
                "This machine has no CUDA device that torch can use: write device auto or cpu."
            )
        if not number and started_together():  # each process has a card of its own
            name = f"cuda:{local_rank()}"
        if int(name.partition(":")[2] or 0) >= count:
            raise ResourceError(f"This machine has no device {name}: its last one is cuda:{count - 1}.")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device, capability: tuple[int, int] | None = None) -> torch.dtype:
    """The number format called ``name``: auto, float32 (fp32), bfloat16 (bf16) or float16 (fp16).

    "auto" is bfloat16 where ``device`` computes it in hardware, else float32. float16 is never chosen alone:
    its narrow range needs a scaled loss, which training here does not have.

    Args:
        name: as above.
        device: where it is computed.
        capability: the compute capability of a CUDA card, which then need not be in this machine; None to
            ask ``device``.

    Raises:
        BaseModelError: the name is not one of these.
    """
    if name == "auto":
        return torch.bfloat16 if _fast_bfloat16(device, capability) else torch.float32
    try:
        return _DTYPES[name]
    except KeyError:
        raise BaseModelError(
            f"The dtype {name!r} is not known: write auto, float32, bfloat16 or float16."
        ) from None


def _has_cuda() -> bool:
    return torch.cuda.is_available()


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _fast_bfloat16(device: torch.device, capability: tuple[int, int] | None) -> bool:
    if device.type == "cuda":
        # From Ampere on; torch's own question also says yes where it only emulates.
        if capability is None:
            return torch.cuda.get_device_capability(device)[0] >= 8 or torch.version.hip is not None
        return capability[0] >= 8
    return device.type == "cpu" and bool({"avx512_bf16", "amx_bf16"} & _cpu_features())


def _cpu_features() -> set[str]:
    """The names of this CPU's instruction sets, as far as torch or Linux tells them."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        return {name for name, present in ask().items() if present is True}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
