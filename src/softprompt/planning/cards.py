"""Well-known GPUs as figures: what a card holds, computes in and how fast, for cards that are not here."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import torch

from softprompt.errors import ConfigError

__all__ = ["CARDS", "Card", "card"]


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet.

    Attributes:
        name: as a person calls it.
        memory: bytes that a program is offered, which is less than the name says.
        capability: CUDA's compute capability.
        single: FLOP a second of products in float32, as torch computes them (no TF32).
        half: the same in float16, and in bfloat16 where the card has it: dense, summed in float32.
        bandwidth: bytes a second from its memory.
    """

    name: str
    memory: int
    capability: tuple[int, int]
    single: float
    half: float
    bandwidth: float

    def rate(self, dtype: torch.dtype) -> float | None:
        """FLOP a second of products in ``dtype``; None where the card only emulates it."""
        if dtype == torch.bfloat16 and self.capability[0] < 8:
            return None
        return self.single if dtype == torch.float32 else self.half


def _card(
    name: str, gib: float, capability: tuple[int, int], single: float, half: float, bandwidth: float
) -> Card:
    """gib: memory; single, half: 10**12 FLOP a second; bandwidth: 10**9 bytes a second."""
    return Card(name, int(gib * 2**30), capability, single * 1e12, half * 1e12, bandwidth * 1e9)


CARDS = {
    "t4": _card("T4", 14.56, (7, 5), 8.1, 65, 320),
    "v100-16": _card("V100 16 GB", 15.77, (7, 0), 15.7, 125, 900),
    "v100-32": _card("V100 32 GB", 31.73, (7, 0), 15.7, 125, 900),
    "rtx-2080-ti": _card("RTX 2080 Ti", 10.75, (7, 5), 13.4, 53.8, 616),
    "rtx-3090": _card("RTX 3090", 23.57, (8, 6), 35.6, 71, 936),
    "rtx-4090": _card("RTX 4090", 23.52, (8, 9), 82.6, 165.2, 1008),
    "rtx-5090": _card("RTX 5090", 31.36, (12, 0), 104.8, 209.5, 1792),
    "rtx-a6000": _card("RTX A6000", 47.4, (8, 6), 38.7, 154.8, 768),
    "l4": _card("L4", 21.95, (8, 9), 30.3, 121, 300),
    "l40s": _card("L40S", 44.39, (8, 9), 91.6, 362, 864),
    "a10g": _card("A10G", 21.98, (8, 6), 31.5, 70, 600),
    "a100-40": _card("A100 40 GB", 39.38, (8, 0), 19.5, 312, 1555),
    "a100-80": _card("A100 80 GB", 79.14, (8, 0), 19.5, 312, 2039),
    "h100": _card("H100 80 GB", 79.1, (9, 0), 67, 989, 3350),
    "h200": _card("H200", 139.7, (9, 0), 67, 989, 4800),
    "b200": _card("B200", 178.3, (10, 0), 75, 2250, 7700),
}
"""By the name one types. Rates and bandwidths are those of the makers' data sheets, of the SXM form where
there are several; memory is the least that torch has been seen to report of such a card, for ECC and firmware
keep some of what the name says: a T4 of 16 GB offers 14.56 GiB."""

_MAKERS = re.compile(r"nvidia|tesla|geforce|(?<=\d)gb$|[^a-z0-9]")


def card(name: str) -> Card:
    """The card called ``name``, with or without its maker: ``t4``, ``Tesla T4``, ``rtx 3090``, ``A100-40GB``.

    Raises:
        ConfigError: no such card is known.
    """
    known = {_plain(key): key for key in CARDS}
    wanted = _plain(name)
    if wanted in known:
        return CARDS[known[wanted]]
    near = [key for key in CARDS if wanted and wanted in _plain(key)]
    near += [known[key] for key in difflib.get_close_matches(wanted, known, n=2) if known[key] not in near]
    if near:
        raise ConfigError(f"There is no card {name!r} here; did you mean {' or '.join(near[:3])}?")
    raise ConfigError(
        f"There is no card {name!r} here: there are {', '.join(CARDS)}; of another say --device-memory."
    )


def _plain(name: str) -> str:
    return _MAKERS.sub("", name.strip().lower())
