"""A second model over the base's weights costs no memory, and leaves the base as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import softprompt
import tiny
from softprompt.base.copies import twin
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow

ROWS = [TokenRow(tuple(range(3, 15)), 4), TokenRow((5, 6, 7, 8), 1)]


def opened(folder: Path, quantisation: str) -> Base:
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return softprompt.load_base(str(folder), quantisation=quantisation, dtype="float32", device="cpu")


def held(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that can be reached from a module's attributes, those of bitsandbytes' own objects too."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    inside = thing.values() if isinstance(thing, dict) else getattr(thing, "__dict__", {}).values()
    for part in inside:
        if isinstance(part, dict | Tensor | torch.nn.Module) or "bitsandbytes" in type(part).__module__:
            yield from held(part, seen)


def storages(model: Any) -> dict[int, int]:
    """Bytes of every storage of a model, by its address."""
    found = [t.untyped_storage() for t in held(model, set()) if t.device.type != "meta"]
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


@pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
def test_a_twin_shares_every_weight(kind: str, tmp_path: Path) -> None:
    if kind != "none":
        pytest.importorskip("bitsandbytes")
    base = opened(tmp_path, kind)
    own = storages(base.model)
    other = twin(base)
    assert sum(own.values()) >= sum(p.numel() * p.element_size() for p in base.model.parameters())
    assert storages(other) == own


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_twin_of_a_quantised_base_reads_the_same_and_leaves_it_alone(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = opened(tmp_path, kind)
    other = softprompt.freeze(twin(base), base.tokenizer, "twin")
    with torch.no_grad():
        front = base.embed((4, 5))
        before = base.nll(ROWS, front).nll
        assert torch.equal(other.nll(ROWS, front).nll, before)
        assert torch.equal(base.nll(ROWS, front).nll, before)
    assert other.fingerprint == base.fingerprint
