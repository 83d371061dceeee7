"""Counts the bytes of all tensors that live while code runs, and what for; knows no model and no method."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["BACKWARD", "Ledger"]

BACKWARD = "backward"
"""What is allocated while gradients flow is for, unless it is booked otherwise."""


class Ledger(TorchDispatchMode):
    """``with Ledger() as ledger: ...``: bytes by purpose now, and at the moment when most were held.

    Every operation's results are booked under the purpose that holds at the time, until the last
    reference to their storage is gone. On torch's meta device that costs no memory and hardly any time, and
    the count is the same as on a real device; what a kernel takes for itself while it runs is not seen.

    Attributes:
        purpose: what is booked from now on is for.
        flops: of matrix products so far, a multiplication and an addition counting two.
    """

    def __init__(self, device: str = "meta") -> None:
        """device: the type of the device that is watched."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self._booked: dict[int, tuple[str, int]] = {}
        self._held: Counter[str] = Counter()
        self._most: Counter[str] = Counter()
        self._sizes: dict[Any, tuple[Any, Any, torch.dtype]] = {}
        self.purpose = "other"
        self.flops = 0

    @property
    def held(self) -> Mapping[str, int]:
        """Bytes by purpose, now."""
        return +self._held

    @property
    def most(self) -> Mapping[str, int]:
        """Bytes by purpose when most were held."""
        return +self._most

    @contextmanager
    def booking(self, purpose: str) -> Iterator[None]:
        """Book what is made inside under ``purpose``."""
        before, self.purpose = self.purpose, purpose
        try:
            yield
        finally:
            self.purpose = before

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Count nothing for what was there before."""
        for tensor in tensors:
            self._book(tensor, "", 0)

    def rebook(self, tensors: Iterable[Tensor], purpose: str) -> None:
        """Say anew what tensors are for."""
        for tensor in tensors:
            key = _key(tensor)
            before, size = self._booked[key]
            self._booked[key] = purpose, size
            self._held[before] -= size
            self._held[purpose] += size
        self._note()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = self._run(func, args, kwargs or {})
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        for found in tree_leaves(out):
            if isinstance(found, Tensor) and found.device.type == self._device:
                # Nothing but autograd runs operations inside a graph task.
                backward = torch._C._current_graph_task_id() != -1
                self._book(found, BACKWARD if backward else self.purpose)
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operation; one like an earlier one, without numbers, is made from its sizes.

        torch works out the sizes of a result in Python, which for the same layer again and again is nearly
        all the time a run on the meta device takes.
        """
        if self._device != "meta" or not _makes_new(func):
            return func(*args, **kwargs)
        try:
            key = func, _described(args), _described(tuple(kwargs.items()))
            like = self._sizes.get(key)
        except TypeError:  # an argument that cannot be hashed
            return func(*args, **kwargs)
        if like is None:
            out = func(*args, **kwargs)
            if isinstance(out, Tensor) and out.is_meta and _key(out) not in self._booked:
                self._sizes[key] = out.shape, out.stride(), out.dtype
            return out
        return torch.empty_strided(like[0], like[1], dtype=like[2], device="meta")

    def _book(self, tensor: Tensor, purpose: str, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._booked:
            return
        self._booked[key] = purpose, storage.nbytes() if size is None else size
        weakref.finalize(storage, self._drop, key).atexit = False
        self._held[purpose] += self._booked[key][1]
        self._note()

    def _drop(self, key: int) -> None:
        purpose, size = self._booked.pop(key)
        self._held[purpose] -= size

    def _note(self) -> None:
        if self._held.total() > self._most.total():
            self._most = self._held.copy()


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@cache
def _makes_new(func: Any) -> bool:
    """Whether an operation changes nothing and gives one tensor that shares no storage."""
    schema = func._schema
    return not schema.is_mutable and len(schema.returns) == 1 and schema.returns[0].alias_info is None


def _described(value: Any) -> Any:
    """All of an argument that the sizes of a result can depend on."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device.type, value.requires_grad
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return type(value), value
