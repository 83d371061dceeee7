"""Sizes of memory as people write them: ``16GB``, ``24 GiB``. It knows units and nothing else."""

from __future__ import annotations

import re

from softprompt.errors import ConfigError

__all__ = ["parse_size"]

_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})\s*")


def parse_size(text: str) -> int:
    """The bytes that ``text`` stands for; GB are 10**9 bytes, GiB 2**30.

    Raises:
        ConfigError: it is no size.
    """
    found = _SIZE.fullmatch(text)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None or (size := int(float(found[1]) * unit)) <= 0:
        raise ConfigError(f"{text!r} is no size of memory; write a number and a unit, such as 16GB or 24GiB.")
    return size
