"""From an artifact's folder to a version: read, checked against the base, its keys and values computed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.base.lowrank import LowRank, Riders
from softprompt.base.model import Base
from softprompt.base.process import let_workers_go
from softprompt.errors import ArtifactError
from softprompt.library.card import CARD_FILE
from softprompt.library.folder import Library, check_base
from softprompt.library.prompt import Prompt
from softprompt.prefix import Prefix
from softprompt.serving.version import Version

__all__ = ["Builder"]


class Builder:
    """Loads versions from a library, for one served base.

    Args:
        library: where the artifacts lie.
        frozen: the base they were learnt on.
        served: the same base as it is served: a copy that heeds what rows carry.
    """

    def __init__(self, library: Library, frozen: Base, served: Base) -> None:
        self._library, self._frozen, self._served = library, frozen, served

    def __call__(self, name: str) -> Version:
        """Read, check and prefill an artifact.

        Raises:
            ArtifactError: there is none of that name, or it is damaged, or its numbers are of no use.
            WrongBaseError: it was learnt on another base.
        """
        try:
            return self._built(name)
        finally:
            let_workers_go()

    def _built(self, name: str) -> Version:
        artifact = self._library.load_named(name)
        card = artifact.card
        assert card is not None  # load_named refuses a folder without one
        check_base(artifact, self._frozen)
        with torch.no_grad():
            ride = artifact.payload.ride(self._frozen)
            if ride is not None:
                model, front, adapter, nbytes = self._served, ride.front, ride.change, 0
            else:
                met = artifact.payload.meet(self._frozen)
                model, front, adapter = met.base, met.front, None
                nbytes = _own_bytes(model, self._frozen)
            length = front.length if isinstance(front, Prefix) else len(front)
            with Riders().seated([adapter] * length):
                prefix = model.prefill(front).detached()
        _refuse_useless(name, prefix, adapter)
        nbytes += prefix.nbytes + (adapter.nbytes if adapter is not None else 0)
        prompt = Prompt(model, prefix, card, None, self._frozen)
        return Version(name, self._digest(artifact.path), card, prefix, adapter, model, nbytes, prompt)

    def _digest(self, path: Path) -> str:
        """The card holds the hash of the weights, which were held against it."""
        return hashlib.sha256((path / CARD_FILE).read_bytes()).hexdigest()


def _own_bytes(model: Base, frozen: Base) -> int:
    shared = {p.data_ptr() for p in frozen.model.parameters()}
    return sum(p.numel() * p.element_size() for p in model.model.parameters() if p.data_ptr() not in shared)


def _refuse_useless(name: str, prefix: Prefix, adapter: LowRank | None) -> None:
    layers: Mapping[str, Any] = adapter.layers if adapter is not None else {}
    carried: list[Tensor] = [t for c in layers.values() for t in (c.down, c.up, c.scale) if t is not None]
    if not all(bool(torch.isfinite(t).all()) for t in (*prefix.tensors, *carried)):
        raise ArtifactError(f"{name} gives numbers that are not finite on this base; train it again.")
