"""How fine the numbers of positions may differ from pass to pass: knows formats, not rows."""

from __future__ import annotations

import torch

__all__ = ["multiple"]

COARSE = 16


def multiple(dtype: torch.dtype) -> int:
    """What the positions of a pass are filled up to a multiple of.

    For half precision oneDNN keeps code, up to half a megabyte, for every number of positions that has met a
    weight of some shape: memory that grows as long as batches are new. GPUs multiply by eights anyway.
    """
    return COARSE if dtype.itemsize < 4 else 1
