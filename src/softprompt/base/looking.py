"""Where rows look in a prefix: the attention weights of transformers' own eager attention.

It knows a model, a prefix and rows; it does not know what is made of the weights. Notation: P positions, T
tokens of a row, N bins of W slots, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.base.cache import BehindFronts, cache_argument
from softprompt.base.copies import twin
from softprompt.base.head import backbone
from softprompt.base.layout import PADDED, Windows
from softprompt.base.model import Base
from softprompt.base.packing import Group, TokenRow, pack
from softprompt.errors import BaseModelError
from softprompt.prefix import Prefix

__all__ = ["Looking"]


class Looking:
    """Reads rows with a second model over the base's weights, whose attention can be asked for."""

    def __init__(self, base: Base) -> None:
        self._base = base
        model = twin(base)
        model.set_attn_implementation("eager")
        self._backbone = backbone(model)

    @torch.no_grad()
    def weights(self, prefix: Prefix, rows: Sequence[TokenRow]) -> list[Tensor]:
        """For each row its tokens' attention to the prefix, mean over heads: [L, T, P], fp64 on the CPU.

        Raises:
            BaseModelError: a model whose layers do not hand out their attention.
        """
        base = self._base
        # Where the columns of a front would lie elsewhere for every row, each row stands in a bin of its own.
        layout = PADDED if base.layout.repeats else base.layout
        packed = pack([Group(rows, prefix.length)], slot_cost=2 * base.width if layout.inline else 0)
        packed = packed.to(base.device)
        where = layout.reading(packed, Windows.of(base.config), base.dtype)
        out = self._backbone(
            input_ids=packed.ids,
            **cache_argument(self._backbone, BehindFronts(packed, [prefix])),
            use_cache=True,
            output_attentions=True,
            **where,
        )
        layers = [layer for layer in getattr(out, "attentions", None) or () if layer is not None]
        if not layers:
            raise BaseModelError(f"{base.name} does not hand out its attention.")
        means = [layer[..., : prefix.length].double().mean(1).cpu() for layer in layers]
        seen = torch.stack(means)  # [L, N, W, P]
        found = []
        for row, start in zip(rows, packed.starts[0], strict=True):
            number, offset = divmod(start, packed.width)  # its bin, and the slot of its first token there
            found.append(seen[:, number, offset : offset + len(row.ids)])
        return found
