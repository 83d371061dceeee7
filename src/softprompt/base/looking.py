"""Where rows look in a prefix: the attention weights of transformers' own eager attention.

It knows a model, a prefix and rows; it does not know what is made of the weights. Notation: P positions, T
tokens of a row, N bins of W slots, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt.base.cache import BehindFronts, cache_argument
from softprompt.base.copies import twin
from softprompt.base.head import backbone
from softprompt.base.layout import PADDED, Windows
from softprompt.base.model import Base
from softprompt.base.packing import Group, Pack, TokenRow, pack
from softprompt.errors import BaseModelError, DataError
from softprompt.prefix import Prefix

__all__ = ["Looking", "most_attended", "with_tokens"]


def with_tokens(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The rows from which one can look.

    Raises:
        DataError: there are none.
    """
    found = [row for row in rows if row.ids]
    if not found:
        raise DataError(
            "There are no rows to see where they look; give some, or set method.keep to first or last."
        )
    return found


def most_attended(looks: Tensor, count: int) -> Tensor:
    """[N, C] of each line of ``looks`` [N, P] the first position and those that get most of it, in order."""
    wanted = looks.clone()
    wanted[:, 0] = torch.inf
    return wanted.topk(count, dim=1).indices.sort(1).values


class Looking:
    """Reads rows with a second model over the base's weights, whose attention can be asked for.

    Args:
        base: whose weights they are.
        attention: how the second model attends, by a name that transformers knows.
    """

    def __init__(self, base: Base, attention: str = "eager") -> None:
        self._base = base
        model = twin(base)
        model.set_attn_implementation(attention)
        self._backbone = backbone(model)
        # Where the columns of a front would lie elsewhere for every row, each row stands in a bin of its own.
        self._layout = PADDED if base.layout.repeats else base.layout

    def pack(self, prefix: Prefix, rows: Sequence[TokenRow]) -> Pack:
        """Rows laid out behind a prefix, whose P positions are the first that each sees."""
        slot_cost = 2 * self._base.width if self._layout.inline else 0
        return pack([Group(rows, prefix.length)], slot_cost=slot_cost).to(self._base.device)

    @torch.no_grad()
    def read(self, packed: Pack, prefix: Prefix, **asked: Any) -> Any:
        """What the model without its head hands out, of which one may ask for more."""
        where = self._layout.reading(packed, Windows.of(self._base.config), self._base.dtype)
        before = cache_argument(self._backbone, BehindFronts(packed, [prefix]))
        return self._backbone(input_ids=packed.ids, **before, use_cache=True, **asked, **where)

    def weights(self, prefix: Prefix, rows: Sequence[TokenRow]) -> list[Tensor]:
        """For each row its tokens' attention to the prefix, mean over heads: [L, T, P], fp64 on the CPU.

        Raises:
            BaseModelError: a model whose layers do not hand out their attention.
        """
        packed = self.pack(prefix, rows)
        out = self.read(packed, prefix, output_attentions=True)
        layers = [layer for layer in getattr(out, "attentions", None) or () if layer is not None]
        if len(layers) > len(prefix.keys):  # some look at the keys of others
            layers = [layer for number, layer in enumerate(layers) if number in prefix.places]
        if len(layers) != len(prefix.keys) or not layers:
            raise BaseModelError(f"{self._base.name} does not hand out its attention.")
        means = [layer[..., : prefix.length].double().mean(1).cpu() for layer in layers]
        seen = torch.stack(means)  # [L, N, W, P]
        found = []
        for row, start in zip(rows, packed.starts[0], strict=True):
            number, offset = divmod(start, packed.width)  # its bin, and the slot of its first token there
            found.append(seen[:, number, offset : offset + len(row.ids)])
        return found
