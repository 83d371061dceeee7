"""From a loaded model to a ``Base``: frozen, fingerprinted, and asked how it can be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from softprompt.base.attention import IMPLEMENTATION, register
from softprompt.base.layout import LAYOUTS, PADDED
from softprompt.base.model import Base
from softprompt.checkpoints.activations import with_torchs_activations
from softprompt.checkpoints.fingerprint import fingerprint
from softprompt.checkpoints.load import Loaded, open_model
from softprompt.checkpoints.probe import attend_with, settle
from softprompt.checkpoints.remembered import KnownBase

__all__ = ["freeze", "load_base"]


def load_base(
    model: str = "smollm2-135m",
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantisation: str = "none",
    trust_remote_code: bool = False,
    memory: Mapping[str, int] | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> Base:
    """Load a base model once, to serve every prompt.

    Args:
        model: a bundled name, a folder, a ``.gguf`` file or a hub id.
        revision: branch, tag or commit of a hub id.
        dtype: ``auto`` (bfloat16 where the hardware has it), ``float32``, ``bfloat16``, ``float16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        quantisation: ``none``, ``nf4`` (4 bits, double quantisation) or ``int8``, through bitsandbytes.
        trust_remote_code: run code that comes with the model; off unless you know its author.
        memory: bytes that weights may take of each device, as ``{"cuda:0": 20 * 10**9, "cpu": 60 * 10**9}``;
            what they do not hold stays on disk. None: of all cards and memory, where ``device`` is ``auto``
            and the first card does not hold the base.
        notify: told in a sentence when something takes a while.

    Raises:
        BaseModelError: there is no such model, or it is not a causal language model with a
            key/value cache.
        ResourceError: no network, no disk space, no such device.
    """
    found = open_model(
        model,
        revision=revision,
        dtype=dtype,
        device=device,
        quantisation=quantisation,
        trust_remote_code=trust_remote_code,
        memory=memory,
        notify=notify,
    )
    known = None if found.remembered is None else found.remembered.recall()
    if known is not None and known.layout in LAYOUTS:
        return _as_known(found, model, known)
    base = freeze(found.model, found.tokenizer, model)
    if found.remembered is not None:
        attention = str(base.config._attn_implementation)
        found.remembered.keep(KnownBase(base.fingerprint, base.layout.name, attention))
    return base


def _as_known(found: Loaded, name: str, known: KnownBase) -> Base:
    """The base of a checkpoint that was fingerprinted and tried before."""
    found.model.eval().requires_grad_(False)
    if found.model.config._attn_implementation != known.attention:
        register()
        found.model.set_attn_implementation(known.attention)
    return Base(found.model, found.tokenizer, name, known.fingerprint, LAYOUTS[known.layout])


def freeze(model: Any, tokenizer: Any, name: str) -> Base:
    """Make a ``Base`` of a transformers model that is already in memory.

    The model is put in eval mode, stops requiring gradients and gets softprompt's attention if it reads
    the same with that; its weights stay as they are, byte for byte. Where it spells out its activations, the
    base reads with a copy over the same weights that does not.
    """
    model.eval().requires_grad_(False)
    base = Base(model, tokenizer, name, fingerprint(model, tokenizer), PADDED)
    base = with_torchs_activations(base)
    register()
    if getattr(model, "_supports_sdpa", False):
        attend_with(base, IMPLEMENTATION)
    return settle(base)
