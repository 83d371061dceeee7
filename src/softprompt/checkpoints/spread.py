"""A base larger than one device: which of its layers lie where, for accelerate to bring them together.

Layers fill one device after the other; what no device holds stays on disk and is read when its turn comes.
What is no layer (embeddings, norms, head) lies on the first device, where rows come in and losses are made.
It knows sizes and devices, nothing of what is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from softprompt.errors import ResourceError

__all__ = [
    "DISK",
    "devices_in_order",
    "kept_elsewhere",
    "layer_places",
    "let_pool_be",
    "quiet_accelerate",
    "weights_of_layers",
]

DISK = "disk"

OF_CARD, OF_MEMORY = 0.8, 0.8
"""The share of what is free on a card, and in memory, that weights may take: rows need the rest."""

_MEMINFO = Path("/proc/meminfo")


def devices_in_order() -> dict[str, int]:
    """Bytes that weights may take of every card, and then of the computer's memory."""
    free = {f"cuda:{n}": torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count())}
    return {name: int(OF_CARD * size) for name, size in free.items()} | {"cpu": _memory()}


def _memory() -> int:
    """A share of what the system says is available; nothing where it does not say."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return int(OF_MEMORY * sum(found))


def layer_places(model: nn.Module, memory: Mapping[str, int]) -> dict[str, str]:
    """Full names of modules and tensors -> the device each lies on, or ``"disk"``: a device map.

    Args:
        model: on the meta device will do.
        memory: bytes that may be taken of each device, in the order in which they are filled.

    Raises:
        ResourceError: the first device cannot hold what is no layer.
    """
    stack, layers = _layers(model)
    left, (first, *_) = dict(memory), memory
    left[first] -= _bytes(model) - _bytes(layers)
    if left[first] < 0:
        raise ResourceError(
            f"{first} has no room for the embeddings and the head alone, which need "
            f"{(_bytes(model) - _bytes(layers)) / 1e9:.1f} GB; choose a smaller model, or dtype bfloat16."
        )
    order = iter(left)
    place, where = next(order), dict[str, str]()
    for number, layer in enumerate(layers):
        size = _bytes(layer)
        while place != DISK and left[place] < size:
            place = next(order, DISK)
        if place != DISK:
            left[place] -= size
        where[f"{stack}.{number}"] = place
    return dict(_others(model, layers, first)) | where


def weights_of_layers(model: nn.Module) -> list[int]:
    """Bytes of every layer, in order."""
    return [_bytes(layer) for layer in _layers(model)[1]]


def _layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of modules that holds most of the model, and its name."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    # A list of experts lies in a layer of the list that is meant.
    return max(lists, key=lambda found: _bytes(found[1]))


def _others(
    module: nn.Module, layers: nn.ModuleList, place: str, name: str = ""
) -> Iterator[tuple[str, str]]:
    """What holds no layer, as few names as will do."""
    before = f"{name}." if name else ""
    for own, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        yield before + own, place
    for own, child in module.named_children():
        if child is layers:
            continue
        if any(inner is layers for inner in child.modules()):
            yield from _others(child, layers, place, before + own)
        else:
            yield before + own, place


def _bytes(module: nn.Module) -> int:
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}  # tied ones once
    return sum(t.numel() * t.element_size() for t in tensors.values())


# A model that was placed so ------------------------------------------------------------------------


def kept_elsewhere(model: nn.Module, name: str) -> Tensor:
    """A tensor that is brought to its device only while its layer runs, from where it lies."""
    from accelerate.utils import align_module_device

    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    with align_module_device(module):
        found: Tensor = getattr(module, own).detach().clone()
    return found


def let_pool_be(model: nn.Module) -> None:
    """Keep accelerate from carrying the KV pool of all layers to the device of each."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in (hook, *getattr(hook, "hooks", ())):
            if hasattr(one, "skip_keys"):
                skipped = one.skip_keys or []
                one.skip_keys = ["pool", *([skipped] if isinstance(skipped, str) else skipped)]


def quiet_accelerate() -> None:
    """It warns that some parameters lie elsewhere, which is what was asked for."""
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
