"""How rows are laid out for a model and what masks tell it so.

Six layouts exist. ``PACKED`` puts many rows in a bin and needs a model that takes explicit
positions and four-dimensional masks. ``FLAT`` is packed, too, and while answering lays the tokens of all
rows in one row without padding, for which the model must hand its attention what it does not know itself.
``REPEATED`` shares bins among rows of a model that is told no positions and knows only how far apart keys
lie (ALiBi): each row has its front's keys right before it, and who sees what is told where transformers makes
masks.
The others give each row a bin of its own, as whatever keeps a state needs. ``TOLD`` asks for explicit
positions and, while answering, masks; ``PADDED`` for nothing but a mask of padding while answering. ``ALONE``
answers every row in a pass of its own, too, for models whose masks count slots. Which one a model can hold is
found out by ``checkpoints.probe``, not by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING as _MASKED_BY
from transformers.masking_utils import create_recurrent_attention_mask

from softprompt.base.packing import Pack

__all__ = ["ALONE", "FLAT", "PACKED", "PADDED", "REPEATED", "TOLD", "Layout", "Mask", "Windows"]

Mask = Tensor | dict[str, Tensor | None] | None


@dataclass(frozen=True)
class Windows:
    """The attention span of each kind of layer: kind -> window in positions, ``None`` for all.

    Attributes:
        spans: of the kinds that attend.
        unmasked: the kinds that keep a state, by what transformers masks them with.
    """

    spans: tuple[tuple[str, int | None], ...]
    unmasked: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Any) -> Windows:
        """Read the kinds of layers from a transformers configuration, or the part of it about text."""
        about = config.get_text_config()
        window = getattr(about, "sliding_window", None)
        kinds = getattr(about, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
        unmasked = {k for k in kinds if _MASKED_BY.get(k) is create_recurrent_attention_mask}
        spans = [(k, window if k == "sliding_attention" else None) for k in sorted({*kinds} - unmasked)]
        return cls(tuple(spans) or (("full_attention", None),), tuple(sorted(unmasked)))

    def masks(self, visible: Tensor, distance: Tensor, dtype: torch.dtype) -> Mask:
        """Additive masks from ``visible`` [N, W, C] and key distances [N, W, C], one a kind of layer."""
        made = {
            kind: _additive(visible if span is None else visible & (distance < span), dtype)
            for kind, span in self.spans
        }
        return next(iter(made.values())) if len(made) == 1 else {**made, **dict.fromkeys(self.unmasked)}


@dataclass(frozen=True)
class Layout:
    """The arguments that make one model read packs, and decode steps, exactly.

    Attributes:
        name: ``"flat"``, ``"packed"``, ``"repeated"``, ``"told"``, ``"padded"`` or ``"alone"``.
        inline: whether rows share bins, and a front can be read in the same pass as the rows.
        flat: whether tokens of many rows that are being answered can lie in one row.
        company: whether rows of unequal lengths can be answered in one pass.
        told: whether the model is told positions, and masks of more than padding.
        repeats: whether every row has a copy of its front's keys right before it.
    """

    name: str
    inline: bool
    flat: bool = False
    company: bool = True
    told: bool = True
    repeats: bool = False

    def reading(self, pack: Pack, windows: Windows, dtype: torch.dtype) -> dict[str, Any]:
        """Positions and masks for a pack whose bins have their fronts set before them."""
        if pack.keys is not None:
            rows = pack.owners.masked_fill(pack.positions < pack.before[:, None], pack.keys.FRONT)  # [N, W]
            distance = pack.positions[:, :, None] - pack.keys.positions[:, None, :]  # [N, W, C]
            visible = (rows[:, :, None] == pack.keys.owners[:, None, :]) & (distance >= 0)
            masks = windows.masks(visible, distance, dtype)
            return {"attention_mask": pack.keys.counting, "mask": masks}
        if not self.inline:
            # Row tokens follow the prefix directly, so the model's own causal mask holds.
            return self.following(pack.positions)
        positions, before = pack.positions, pack.before[:, None]  # [N, W], [N, 1]
        slots = torch.arange(pack.longest, device=before.device)
        # A row sees its whole front, a front being read sees itself up to where it is.
        front = slots < torch.minimum(before, positions + 1)[:, :, None]  # [N, W, P]
        own = (pack.owners[:, :, None] == pack.owners[:, None, :]).tril()  # [N, W, W]
        own &= (positions >= before)[:, :, None]
        keys = torch.cat([slots.expand(len(before), -1), positions], dim=1)  # [N, P + W]
        distance = positions[:, :, None] - keys[:, None, :]
        masks = windows.masks(torch.cat([front, own], dim=2), distance, dtype)
        return {"position_ids": positions, "attention_mask": masks}

    def following(self, positions: Tensor) -> dict[str, Any]:
        """Positions [N, W] of tokens that directly follow what their pass has seen, for who must be told."""
        told = {"position_ids": positions} if self.told else {}
        return {"attention_mask": None, **told}

    def decoding(self, at: Tensor, slots: int, windows: Windows, dtype: torch.dtype) -> dict[str, Any]:
        """Positions and masks for one new token a row: ``at`` [B] its slot, of ``slots`` visible ones."""
        if not self.company:
            return {"attention_mask": None}
        distance = at[:, None] - torch.arange(slots, device=at.device)[None, :]  # [B, C]
        visible = distance >= 0
        if not self.told:
            return {"attention_mask": visible.long()}
        masks = windows.masks(visible[:, None], distance[:, None], dtype)
        return {"position_ids": at[:, None], "attention_mask": masks}

    def pooled(self, at: Tensor, visible: int, windows: Windows, dtype: torch.dtype) -> dict[str, Any]:
        """Positions and masks for tokens of many rows: ``at`` [N] the position of each in its own slot."""
        assert self.flat
        distance = at[:, None] - torch.arange(visible, device=at.device)[None, :]  # [N, C]
        masks = windows.masks((distance >= 0)[None], distance[None], dtype)
        return {"position_ids": at[None], "attention_mask": masks}


FLAT = Layout("flat", inline=True, flat=True)
PACKED = Layout("packed", inline=True)
REPEATED = Layout("repeated", inline=True, told=False, repeats=True)
TOLD = Layout("told", inline=False)
PADDED = Layout("padded", inline=False, told=False)
ALONE = Layout("alone", inline=False, company=False, told=False)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Visible [N, W, C] -> [N, 1, W, C]: 0 where a key is seen, the lowest number where it is not."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
