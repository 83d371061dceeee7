"""Memory by part when most is held: weights as stored, tensors as counted, what a device takes itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from softprompt.planning.blueprint import Blueprint
from softprompt.planning.ledger import BACKWARD
from softprompt.planning.rehearsal import PURPOSES, Rehearsal
from softprompt.planning.target import Target

__all__ = ["GAPS", "Needs", "Part", "needs"]

GAPS = 0.6
"""What the C library's heap holds beyond the tensors that come and go, as a share of them: 0.25 to 0.9 was
measured with glibc on jobs of all methods, and with MALLOC_MMAP_THRESHOLD_=65536 nothing."""

_KEPT = ("trained", "best", "optimizer")
"""What a checkpoint holds."""
_PASSING = ("activations", "logits", BACKWARD, "scoring")
"""What comes and goes with every step."""
_RESERVES = {"cpu": "Python and its libraries", "cuda": "CUDA itself (assumed)", "mps": "Metal itself"}


@dataclass(frozen=True)
class Part:
    """One line of a plan; bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Needs:
    """Memory by part."""

    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        return sum(part.bytes for part in self.parts)


def needs(sketch: Blueprint, found: Rehearsal, target: Target) -> Needs:
    """Put together what a base and a rehearsed job take on a device."""
    stored = {
        f"base: linear layers ({sketch.storage})": sketch.linear_bytes,
        "base: embeddings, norms and head": sketch.other_bytes,
    }
    held = _on_cpu(found) if target.kind == "cpu" else _named(found.most)
    every = stored | held | {_RESERVES[target.kind]: target.reserve}
    return Needs(tuple(Part(name, size) for name, size in every.items() if size))


def _on_cpu(found: Rehearsal) -> dict[str, int]:
    """A step, or the checkpoint behind it, made in memory while the heap keeps what it had."""
    passing = sum(found.most.get(purpose, 0) for purpose in _PASSING)
    step = _named(found.most) | {"gaps in the heap (about)": int(GAPS * passing)}
    file = sum(found.lasting.get(purpose, 0) for purpose in _KEPT)
    checkpoint = _named(found.lasting)
    checkpoint |= {"heap that is not given back (about)": passing, "checkpoint on its way to the disk": file}
    return max(step, checkpoint, key=lambda parts: sum(parts.values()))


def _named(sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes by what a reader calls them, in the order of ``PURPOSES``."""
    return {name: sizes[purpose] for purpose, name in PURPOSES.items() if sizes.get(purpose)}
