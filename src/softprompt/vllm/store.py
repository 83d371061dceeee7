"""Prompts as files that vLLM's own processes read: keys, values and adapters, by digest. Knows no vLLM.

A store belongs to the process that makes it. What it puts there stays at least as long as the prefix it was
made from, so no request meets a prompt whose file was taken away or changed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from softprompt.base.lowrank import LowRank
from softprompt.prefix import Prefix

__all__ = ["PARAMETER", "LoadedPrompts", "Store", "Stored", "read_positions", "refuse_scaling", "salt_fits"]

PARAMETER = "softprompt"
"""The field of a request's ``kv_transfer_params`` that says which prompt stands in front of it."""

_KEY = re.compile(r"[A-Za-z0-9_]{1,64}/[0-9a-f]{64}")


@dataclass(frozen=True)
class Stored:
    """A prompt as a request names it.

    Attributes:
        key: its place in the store; None where it has no positions.
        positions: P.
        salt: what keeps its blocks in a cache of blocks apart from all others'.
        adapter: number and folder of what changes the model's layers; None where nothing does.
    """

    key: str | None
    positions: int
    salt: str
    adapter: tuple[int, Path] | None


class Store:
    """A folder in ``root`` that this process alone writes to, gone when the store is closed."""

    def __init__(self, root: Path, on_forget: Callable[[Stored], None] = lambda stored: None) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="s", dir=root))
        self._on_forget = on_forget
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._held: weakref.WeakKeyDictionary[Prefix, Stored] = weakref.WeakKeyDictionary()
        self._users: dict[str, int] = {}
        self._gone: deque[Stored] = deque()

    def put(self, prefix: Prefix, adapter: LowRank | None = None) -> Stored:
        """Write a prompt, unless it is there; equal prompts share a file.

        Raises:
            ValueError: an adapter of a kind that has no file, or a prefix that is more than keys and values.
        """
        if prefix.length and prefix.states:
            raise ValueError("its base has layers that keep a state, which vLLM's blocks do not hold")
        with self._lock:
            while self._gone:
                self._forget(self._gone.popleft())
            found = self._held.get(prefix)
            if found is not None:
                return found
            digest = prefix.digest if adapter is None else _digest(prefix, adapter)
            if prefix.length and not self._users.get(digest):
                _write(self._folder / digest, prefix)
            held = None
            if adapter is not None:
                number = next(self._numbers)
                held = number, self._folder / f"adapter-{number}"
                _write_change(held[1], adapter)
            key = f"{self._folder.name}/{digest}" if prefix.length else None
            found = Stored(key, prefix.length, digest, held)
            self._users[digest] = self._users.get(digest, 0) + 1
            self._held[prefix] = found
            # Only noted here: the garbage collector may come while the lock is held.
            weakref.finalize(prefix, self._gone.append, found).atexit = False
        return found

    def zero_adapter(self, layer: str, inside: int, outside: int) -> tuple[int, Path]:
        """An adapter that changes nothing: one layer's, of rank 1, all zeros."""
        number = next(self._numbers)
        folder = self._folder / f"adapter-{number}"
        _write_adapter(folder, {layer: (torch.zeros(1, inside), torch.zeros(outside, 1))}, rank=1)
        return number, folder

    def close(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _forget(self, stored: Stored) -> None:
        self._users[stored.salt] -= 1
        if not self._users[stored.salt]:
            del self._users[stored.salt]
            (self._folder / stored.salt).unlink(missing_ok=True)
        if stored.adapter is not None:
            shutil.rmtree(stored.adapter[1], ignore_errors=True)
        self._on_forget(stored)


def salt_fits(key: str, salt: str | None) -> bool:
    """Whether a request's ``cache_salt`` keeps the blocks behind a prompt apart from all others'."""
    return salt is not None and salt.split(":", 1)[0] == key.partition("/")[2]


def read_positions(root: Path, key: object) -> int:
    """P of a prompt in a store.

    Raises:
        ValueError: the key is none, or there is no such prompt.
    """
    try:
        with safe_open(_path(root, key), "pt") as file:
            return int(file.get_slice("k.0").get_shape()[0])
    except (OSError, SafetensorError) as error:
        raise ValueError(f"there is no prompt {key}") from error


class LoadedPrompts:
    """Prompts read from a store and kept, up to so many bytes, the last used longest."""

    def __init__(self, root: Path, budget: int) -> None:
        self._root, self._budget = root, budget
        self._held: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def get(self, key: str, heads: Callable[[int], range], device: torch.device) -> dict[str, Tensor]:
        """Keys and values ``k.L`` and ``v.L`` of every layer L, ``[P, heads, D]``.

        Args:
            key: of the prompt.
            heads: which heads of how many.
            device: where they are wanted.

        Raises:
            ValueError: there is no such prompt.
        """
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        try:
            with safe_open(_path(self._root, key), "pt") as file:
                found = {}
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    some = file.get_slice(name)
                    own = heads(some.get_shape()[1])
                    found[name] = some[:, own.start : own.stop].contiguous().to(device)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"there is no prompt {key}") from error
        self._held[key] = found
        while sum(map(_nbytes, self._held.values())) > self._budget and len(self._held) > 1:
            self._held.popitem(last=False)
        return found


def _nbytes(tensors: dict[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _path(root: Path, key: object) -> Path:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of a prompt")
    return root / key


def _write(path: Path, prefix: Prefix) -> None:
    """Write keys and values as a paged cache takes them: position, head, width."""
    tensors = {}
    for kind, side in (("k", prefix.keys), ("v", prefix.values)):
        for number, t in enumerate(side):
            tensors[f"{kind}.{number}"] = t.detach().transpose(0, 1).contiguous().cpu()  # [P, K, D]
    partial = path.with_suffix(".part")
    save_file(tensors, partial)
    partial.replace(path)


def _digest(prefix: Prefix, adapter: LowRank) -> str:
    sha = hashlib.sha256(prefix.digest.encode())
    for name, change in sorted(adapter.layers.items()):
        sha.update(name.encode())
        for t in (change.down, change.up):
            sha.update(t.detach().float().cpu().contiguous().numpy().data)
    return sha.hexdigest()


def refuse_scaling(adapter: LowRank) -> None:
    """Refuse a change that scales what layers give, which readers of PEFT's LoRA get wrong.

    Raises:
        ValueError: it does.
    """
    if any(change.scale is not None for change in adapter.layers.values()):
        raise ValueError("it scales what the layers give, as IA3 and DoRA do")


def _write_change(folder: Path, adapter: LowRank) -> None:
    """Write a change of layers in PEFT's format, every factor in its products.

    Raises:
        ValueError: as in ``refuse_scaling``.
    """
    refuse_scaling(adapter)
    _write_adapter(folder, {n: (c.down, c.up) for n, c in adapter.layers.items()}, rank=adapter.rank)


def _write_adapter(folder: Path, layers: dict[str, tuple[Tensor, Tensor]], rank: int) -> None:
    tensors = {}
    for name, (down, up) in layers.items():  # [r, in], [out, r]
        missing = rank - len(down)
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, missing))
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.nn.functional.pad(up, (0, missing))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(layers),
        "bias": "none",
    }
    folder.mkdir()
    save_file(
        {n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
