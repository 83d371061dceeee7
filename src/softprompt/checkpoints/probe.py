"""Finds out by trying how an architecture can be read, instead of trusting its name.

A few short rows are read behind a short front, also in a KV pool and by steps, and the logits are held
against the model's own plain forward pass. The first layout that agrees is the model's.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from softprompt.base.kv_pool import Chunk, KVPool
from softprompt.base.layout import FLAT, PACKED, PADDED
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.errors import BaseModelError, ResourceError
from softprompt.prefix import Prefix

__all__ = ["agrees", "settle"]

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest relative difference (of norms) that rounding explains in each dtype."""

ROUGH = 0.1


def settle(base: Base) -> Base:
    """The base with the fastest layout it is exact in.

    Raises:
        BaseModelError: the model agrees with its own plain forward pass in no layout, or has a window that
            short rows cannot show.
        ResourceError: there is not enough memory to try.
    """
    _refuse_hidden_window(base)
    reasons = []
    for layout in (FLAT, PACKED, PADDED):
        candidate = replace(base, layout=layout)
        try:
            error = _disagreement(candidate)
        except torch.OutOfMemoryError as failure:  # a RuntimeError, too, but not the layout's fault
            raise ResourceError(
                f"There is not enough memory to read {base.name}: choose dtype bfloat16, another device or a "
                "smaller model."
            ) from failure
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError) as failure:
            said = str(failure).partition("\n")[0][:120] or "no message"
            reasons.append(f"{layout.name}: {type(failure).__name__}: {said}")
            continue
        if error <= _tolerance(base):
            return candidate
        reasons.append(f"{layout.name}: logits differ by {error:.2g}")
    raise BaseModelError(
        f"{base.name} is a {base.config.model_type} model, which softprompt cannot read behind a prefix "
        f"({'; '.join(reasons)}); use a decoder-only transformer with a key/value cache."
    )


def agrees(base: Base, original: Base) -> bool:
    """Whether a copy still reads in its layout what the plain forward pass of the original does."""
    return _disagreement(base, original) <= _tolerance(base)


def _refuse_hidden_window(base: Base) -> None:
    """A window by a name of its own comes with a mask of the model's own, which counts slots, not positions.

    Rows shorter than it read right, so trying short rows does not find it out.
    """
    most = base.max_positions
    for name, value in base.config.get_text_config().to_dict().items():
        window = name.endswith("window_size") and isinstance(value, int) and value > 0
        if window and (most is None or value < most):
            raise BaseModelError(
                f"{base.name} is a {base.config.model_type} model that looks back {value} positions by a "
                f"mask of its own ({name}), which softprompt cannot read exactly behind a prefix; use "
                "another base."
            )


def _tolerance(base: Base) -> float:
    # In 8 bits what is read is rounded too, in a way that depends on what is read with it.
    rounds_inputs = getattr(base.model, "is_loaded_in_8bit", False)
    return ROUGH if rounds_inputs else TOLERANCE.get(base.dtype, ROUGH)


def _disagreement(base: Base, original: Base | None = None) -> float:
    """Relative difference of packed rows, inline fronts and the KV pool to a plain forward pass."""
    count = base.embedding.weight.shape[0]
    tokens = [1 + (i * 7919) % (count - 1) for i in range(14)]
    front, rows = tuple(tokens[:3]), [tuple(tokens[3:8]), tuple(tokens[8:10]), tuple(tokens[10:])]
    with torch.no_grad():
        plain = torch.stack([_plain(original or base, front + row) for row in rows])
        embedded = base.embed(front)
        prefix = base.prefill(embedded)
        token_rows = [TokenRow(row) for row in rows]
        seen = [
            base.next_logits(token_rows, embedded),
            base.next_logits(token_rows, prefix),
            _continued(base, prefix, rows),
        ]
    return max(float((logits - plain).norm() / plain.norm()) for logits in seen)


def _continued(base: Base, prefix: Prefix, rows: list[tuple[int, ...]]) -> Tensor:
    """fp32 logits [B, V] after rows read into a KV pool, all but the last token first."""
    pool = KVPool(base)
    opened = [pool.open(prefix, prefix.length + len(row)) for row in rows]
    slots = [slot for slot in opened if slot is not None]
    pool.read([Chunk(slot, row[:-1]) for slot, row in zip(slots, rows, strict=True)])
    found = pool.read([Chunk(slot, row[-1:]) for slot, row in zip(slots, rows, strict=True)])
    return base.head.logits(torch.cat(found))


def _plain(base: Base, ids: tuple[int, ...]) -> Tensor:
    """fp32 logits [V] after ``ids`` from the model's own forward pass over one unpadded row."""
    tokens = torch.tensor([ids], device=base.device)
    logits: Tensor = base.model(input_ids=tokens, use_cache=False).logits
    return logits[0, -1].float()
