"""The processes that train together: which of them this is, and what they tell one another.

The home of torch.distributed. ``torchrun`` starts the processes and says in the environment who is who; here
tensors are added up and handed on. It knows tensors and JSON values, not runs, rows or models.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from softprompt.errors import ConfigError, ResourceError, TrainingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["ALONE", "Team", "join", "local_rank", "refuse_company", "started_together"]

BUCKET = 2**24
"""Numbers that travel in one message at most: a soft prompt's gradient is one, a model's are many."""

PATIENCE = timedelta(days=1)
"""How long a process waits for the others; one that has ended is noticed at once."""

Item = TypeVar("Item")


def started_together() -> bool:
    """Whether torchrun, or whoever sets its variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def refuse_company(what: str) -> None:
    """Refuse what one process does where several were started, which would all write the same files.

    Raises:
        ConfigError: there are several.
    """
    if started_together():
        raise ConfigError(
            f"{what} runs in one process; start it without torchrun, which is for softprompt train."
        )


def local_rank() -> int:
    """Which of its machine's processes this is, and so which of its cards is its own."""
    return int(os.environ.get("LOCAL_RANK", "0")) if started_together() else 0


@dataclass(frozen=True)
class Team:
    """N processes that run the same program on shares of the same rows; the first, the leader, writes files.

    Every method but ``share`` has to be called by all of them, in the same order.

    Attributes:
        rank: which one this is, counted from 0.
        count: N.
    """

    rank: int = 0
    count: int = 1
    _store: Any = field(default=None, repr=False, compare=False)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item], size: Callable[[Item], int] = lambda item: 1) -> Sequence[Item]:
        """The part of this process; items are dealt out from the largest, so that all have as much to do."""
        if self.count == 1:
            return items
        return sorted(items, key=size, reverse=True)[self.rank :: self.count]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes, in place, its sum over all processes, the same to the bit in all of them."""
        import torch.distributed as dist

        self._in_buckets(tensors, dist.all_reduce)

    def hand(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes, in place, what it is in the leader."""
        import torch.distributed as dist

        self._in_buckets(tensors, lambda flat: dist.broadcast(flat, 0))

    def handed(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The leader's tensors by name; what the others give does not count."""
        if self.count == 1:
            return dict(tensors or {})
        import torch

        mine = {name: t.detach().cpu() for name, t in (tensors or {}).items()} if self.leads else {}
        about = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in mine.items()}
        for name, (shape, dtype) in self.told(about).items():
            if not self.leads:
                mine[name] = torch.empty(shape, dtype=getattr(torch, dtype))
        self.hand(list(mine.values()))
        return mine

    def told(self, value: Any) -> Any:
        """The leader's JSON value; what the others give does not count."""
        return self.all_told(value)[0] if self.count > 1 else value

    def all_told(self, value: Any) -> list[Any]:
        """Every process's JSON value, in their order."""
        if self.count == 1:
            return [value]
        import torch
        import torch.distributed as dist

        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        with _still_there():
            dist.all_gather(sizes, torch.tensor([len(mine)]))
            most = max(int(size) for size in sizes)
            texts = [torch.zeros(most, dtype=torch.uint8) for _ in range(self.count)]
            dist.all_gather(texts, torch.nn.functional.pad(mine, (0, most - len(mine))))
        pairs = zip(texts, sizes, strict=True)
        return [json.loads(bytes(text[: int(size)].tolist())) for text, size in pairs]

    def any(self, wishes: Sequence[bool]) -> list[bool]:
        """Of each wish, whether any process has it."""
        return [any(each) for each in zip(*self.all_told(list(wishes)), strict=True)]

    def refuse_unlike(self, value: Any, what: str) -> None:
        """See that all have the same JSON value.

        Raises:
            TrainingError: one has another, in all processes alike.
        """
        every = self.all_told(value)
        odd = next((rank for rank, other in enumerate(every) if other != every[0]), None)
        if odd is not None:
            raise TrainingError(
                f"Process {odd} of {self.count} has {what} than process 0; give all of them the same."
            )

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """What is done inside, the others do when the leader has done it."""
        if not self.leads:
            self.told(None)
        yield
        if self.leads:
            self.told(None)

    def first_to_fail(self) -> bool:
        """Whether no other process has failed before this one: it is the one to say why."""
        try:
            return self._store is None or bool(self._store.add("failed", 1) == 1)
        except RuntimeError:  # who kept count is gone
            return False

    def _in_buckets(self, tensors: Sequence[Tensor], send: Callable[[Tensor], Any]) -> None:
        if self.count == 1:
            return
        import torch

        with torch.no_grad(), _still_there():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
                there = flat if flat.device.type in ("cpu", "cuda") else flat.cpu()
                send(there)
                for tensor, part in zip(bucket, there.split([t.numel() for t in bucket]), strict=True):
                    tensor.copy_(part.view_as(tensor))


ALONE = Team()
"""A process by itself: nothing is shared and nobody is asked."""

_joined: dict[int, Team] = {}
"""By process id: a process joins once, and stays joined."""


def join() -> Team:
    """The team of this process: those that torchrun started with it, or itself alone.

    Raises:
        ResourceError: this machine has fewer cards than processes, or the others cannot be reached.
    """
    if not started_together():
        return ALONE
    if os.getpid() not in _joined:
        _joined[os.getpid()] = _meet()
    return _joined[os.getpid()]


def _meet() -> Team:
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        rank, count, here = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        if cards >= here:
            torch.cuda.set_device(local_rank())
        store = next(iter(rendezvous("env://", rank, count, timeout=PATIENCE)))[0]
        backend = "cpu:gloo,cuda:nccl" if cards >= here else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    except (RuntimeError, ValueError, KeyError) as error:
        said = str(error).strip().partition("\n")[0][:200]
        raise ResourceError(
            f"This process cannot join those it was started with ({said}); start all of them with torchrun."
        ) from error
    return Team(rank, count, PrefixStore("softprompt", store))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one device and number format, some millions of numbers together."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        bucket = kinds.setdefault((tensor.device, tensor.dtype), [])
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield list(bucket)
            bucket.clear()
        bucket.append(tensor)
    yield from kinds.values()


@contextmanager
def _still_there() -> Iterator[None]:
    """Say plainly that one of the others is gone, which torch tells in terms of sockets."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0][:160]
        raise TrainingError(
            f"Another process of this run ended, or cannot be reached any more ({said}); see what it said, "
            "and go on from the last checkpoint with --resume."
        ) from error
