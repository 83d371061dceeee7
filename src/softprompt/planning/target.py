"""The device a plan is for: how much it holds, what a process takes of it before any tensor; no model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from softprompt.checkpoints.placement import choose_device, choose_dtype
from softprompt.errors import BaseModelError, ConfigError
from softprompt.planning.cards import Card, card
from softprompt.training.memory import Peak

__all__ = ["Target", "aim"]

CUDA_RESERVE = 500_000_000
"""What CUDA's context, its kernels and the workspaces of matrix products take: an assumption, in bytes."""

_AMPERE = 8, 0
"""The compute capability that a GPU of unknown name is taken to have."""

_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Target:
    """Where a job is to run.

    Attributes:
        kind: cpu, cuda or mps.
        name: as a person would call it.
        capacity: bytes it holds.
        reserve: bytes a process takes before any tensor.
        device: it, if it is in this machine.
        capability: CUDA's compute capability of a card that is not in this machine.
        card: what is known of that card.
    """

    kind: str
    name: str
    capacity: int
    reserve: int
    device: torch.device | None
    capability: tuple[int, int] | None = None
    card: Card | None = None

    def dtype(self, name: str) -> torch.dtype:
        """The number format called ``name``, chosen as loading a model on this device would."""
        return choose_dtype(name, self.device or torch.device(self.kind), self.capability)

    def notes(self, name: str) -> tuple[str, ...]:
        """Plain sentences about the number format, where ``name`` leaves it to the device."""
        if name != "auto" or self.kind != "cuda" or self.device is not None:
            return ()
        if self.card is None:
            return (
                "A GPU without a name is taken to compute in bfloat16, as those made since 2020 (Ampere) do; "
                'older ones, such as a T4, take float32 under base.dtype = "auto": name yours with --gpu.',
            )
        if self.dtype(name) == torch.float32:
            return (
                f"A {self.card.name} does not compute in bfloat16, so float32 is taken there; float16 is not "
                'taken unasked (base.dtype = "float16"), because training here does not scale the loss.',
            )
        return ()


def aim(name: str, memory: int | None, gpu: str | None = None) -> Target:
    """The device called ``name`` (auto, cpu, cuda, cuda:N or mps).

    Args:
        name: as in ``base.device``.
        memory: bytes of a device to plan for. It is taken for a GPU, which need not be in this machine,
            unless ``name`` says otherwise.
        gpu: a card of ``planning.cards`` to plan for, which need not be in this machine; ``memory`` then
            says how much of it there is to use.

    Raises:
        BaseModelError: the name is not one of these.
        ConfigError: no such card is known, or ``name`` is no GPU of CUDA.
        ResourceError: this machine has no such device, and neither memory nor card is given.
    """
    if gpu is not None:
        found = card(gpu)
        if name != "auto" and name.partition(":")[0] != "cuda":
            raise ConfigError(f"A {found.name} is no {name}: leave base.device out, or the card.")
        holds = found.memory if memory is None else memory
        return Target("cuda", f"a {found.name}", holds, _reserve("cuda"), None, found.capability, found)
    if memory is None:
        device = choose_device(name)
        return Target(device.type, _called(device), _capacity(device), _reserve(device.type), device)
    kind = "cuda" if name == "auto" else name.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise BaseModelError(f"The device {name!r} is not known: write auto, cpu, cuda, cuda:0 or mps.")
    here = kind == "cpu" or (kind == "cuda" and torch.cuda.is_available())
    called = {"cpu": "this machine's CPU", "cuda": "a GPU", "mps": "an Apple GPU"}[kind]
    return Target(
        kind,
        called,
        memory,
        _reserve(kind),
        torch.device(kind if name == "auto" else name) if here else None,
        _AMPERE if kind == "cuda" and not here else None,
    )


def _called(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "this machine's CPU" if device.type == "cpu" else "this machine's GPU"


def _capacity(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(limit for path in _CGROUP if (limit := _limit(path)))])


def _limit(path: Path) -> int:
    """The memory this process's container may take; 0 where there is no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdecimal() else 0


def _reserve(kind: str) -> int:
    """On a CPU what this very process holds, with the same libraries that a run loads."""
    if kind == "cuda":
        return CUDA_RESERVE
    with Peak(torch.device("cpu")) as peak:
        pass
    return peak.bytes if kind == "cpu" else 0
