"""The cells of a comparison as Ray tasks: each where there is a core or a device for it.

A cell whose node dies is carried out again on another; what was finished lies in the comparison's folder,
which all nodes must see, and is found there. So a comparison that was spread over nodes can go on on one.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from softprompt.cluster.ray import LOCAL, connect
from softprompt.comparison.run import Bench, Carry, CellOrder, Spread, carried
from softprompt.comparison.settings import Comparison, Contender
from softprompt.errors import ResourceError
from softprompt.listener import Report

__all__ = ["spread_over"]

_RETRIES = 10
"""Nodes that may die under one cell."""
_LOOK = 0.5
_EVERY = 15.0
"""Seconds between two pictures of what is at work."""


def spread_over(address: str = LOCAL, **how: Any) -> Spread:
    """What spreads a comparison over the nodes of a cluster; ``how``: further arguments of ``ray.init``."""

    @contextmanager
    def spread(bench: Bench) -> Iterator[Carry]:
        connect(address, **how)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        board = _Board.options(num_cpus=0, scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        ended = threading.Event()
        telling = threading.Thread(target=_tell, args=(board, bench.notify, ended), daemon=True)
        telling.start()
        name, what = uuid.uuid4().hex, ray.put((bench.comparison, list(bench.contenders.values())))
        task = _cell.options(**_resources(bench), max_retries=_RETRIES)
        try:
            yield lambda orders: _together(
                [task.remote(name, what, os.getcwd(), order, board) for order in orders], bench.stop
            )
        finally:
            ended.set()
            telling.join(5 * _LOOK)

    return spread


def _resources(bench: Bench) -> dict[str, float]:
    """What Ray keeps for a cell: the threads it asks for, and a device where the base is to lie on one."""
    comparison = bench.comparison
    device, threads = comparison.base.device, comparison.train.threads
    devices = ray.cluster_resources().get("GPU", 0)
    wants = device.startswith("cuda") or (device == "auto" and devices > 0)
    if wants and not devices:
        raise ResourceError("The cluster has no GPU, but base.device asks for one; set base.device to cpu.")
    return {"num_cpus": float(threads or 1), "num_gpus": 1.0 if wants else 0.0}


def _together(cells: Sequence[ray.ObjectRef[Any]], stop: Callable[[], bool]) -> list[Any]:
    """What came of cells, in their order; the first fault is raised as it was raised there."""
    waiting = list(cells)
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=_LOOK)
            ray.get(done)
            if stop():
                raise KeyboardInterrupt
        return list(ray.get(list(cells)))
    except RayTaskError as error:
        raise error.cause from None
    except TaskCancelledError:
        raise KeyboardInterrupt from None
    finally:
        for cell in waiting:
            ray.cancel(cell)


_benches: dict[str, Bench] = {}


def _bench(name: str, comparison: Comparison, contenders: Sequence[Contender]) -> Bench:
    """A comparison as one process of a node knows it, with the base it loaded last."""
    if name not in _benches:
        _benches.clear()  # one at a time, for a base may be large
        _benches[name] = Bench.of(comparison, contenders, lambda _: None, lambda *_: None, lambda: False)
    return _benches[name]


@ray.remote  # type: ignore[untyped-decorator]
def _cell(
    name: str, what: tuple[Comparison, Sequence[Contender]], folder: str, order: CellOrder, board: Any
) -> Any:
    """Carry a cell of the comparison of that name out on this node."""
    if not os.path.isdir(folder):
        raise ResourceError(
            f"The node {_node()} does not see {folder}; put the comparison and its rows on a folder that all "
            "nodes share."
        )
    os.chdir(folder)
    bench, told = _bench(name, *what), 0.0

    def watch(title: str, report: Report) -> None:
        nonlocal told
        if report.step and time.monotonic() - told > 1.0:
            told = time.monotonic()
            board.at_work.remote(title, _AtWork(_node(), report.step, report.total, report.loss))

    title = f"{order.contender}, trial {order.trial + 1}, seed {order.seed}"
    bench.notify = lambda message: board.note.remote(title, message)
    bench.watch = lambda _, report: watch(title, report)
    board.at_work.remote(title, _AtWork(_node(), 0, 0, 0.0))
    (found,) = carried(bench, [order])
    board.note.remote(title, "")
    return found


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())[:6]


@dataclass(frozen=True)
class _AtWork:
    """How far a cell is, and on which node."""

    node: str
    step: int
    total: int
    loss: float


@ray.remote
class _Board:
    """What all nodes tell, until the driver reads it."""

    def __init__(self) -> None:
        self._working: dict[str, _AtWork] = {}
        self._notes: list[str] = []

    def at_work(self, title: str, at: _AtWork) -> None:
        self._working[title] = at

    def note(self, title: str, message: str) -> None:
        """What a cell says for people; with nothing to say it is done."""
        if message:
            self._notes.append(message)
        else:
            self._working.pop(title, None)

    def read(self) -> tuple[list[str], dict[str, _AtWork]]:
        notes, self._notes = self._notes, []
        return notes, dict(self._working)


def _tell(board: Any, notify: Callable[[str], None], ended: threading.Event) -> None:
    """Pass on what all nodes say, and now and then how far every cell is."""
    last = time.monotonic()
    while True:
        over = ended.wait(_LOOK)
        try:
            notes, working = ray.get(board.read.remote())
        except RayError:  # the cluster is gone, which whoever waits for a cell is told
            return
        for note in notes:
            notify(note)
        if working and time.monotonic() - last > _EVERY:
            last = time.monotonic()
            notify(_picture(working))
        if over:
            return


def _picture(working: dict[str, _AtWork]) -> str:
    """Every cell that is at work, a line each."""
    nodes = len({at.node for at in working.values()})
    lines = [
        f"  {title} (node {at.node}): "
        + (f"step {at.step} of {at.total}, loss {at.loss:.3f}" if at.step else "begun")
        for title, at in sorted(working.items())
    ]
    return "\n".join([f"At work: {len(working)} on {nodes} node{'s' if nodes > 1 else ''}.", *lines])
