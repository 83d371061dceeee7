"""Several processes on this machine, each as torchrun would start it; they share one start of torch."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["environment", "together"]

_HERE = str(Path(__file__).parent)
_LIMIT = 120.0


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun says to one of its processes."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def together(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``work(*args)`` returns in each of so many processes, in their order; an exception is one, too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["teams", "softprompt.training.run", "peft", "training.toy"])
    # What the processes import is found where this one finds it.
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([_HERE, *filter(None, sys.path)]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told: Any = context.Queue()
    processes = [
        context.Process(
            target=_one, args=(rank, environment(rank, count, port), told, work, args), daemon=True
        )
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < count:
            rank, result = told.get(timeout=_LIMIT)
            found[rank] = pickle.loads(result)
    except queue.Empty:
        raise AssertionError(f"Of {count} processes only {sorted(found)} came to an end: {found}") from None
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return [found[rank] for rank in range(count)]


def _one(
    rank: int, about: dict[str, str], told: Any, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch

    os.environ |= about
    torch.set_num_threads(1)
    try:
        result = work(*args)
    except BaseException as error:
        error.add_note(traceback.format_exc())
        result = error
    told.put((rank, pickle.dumps(result)))  # whole: what torch would send instead dies with this process
    told.close()
    told.join_thread()
