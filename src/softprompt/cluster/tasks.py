"""Work as Ray tasks: what each takes of a node, where it is done, and one board on which all of it is told.

It knows tasks, nodes and reports; it does not know what the tasks do.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.cluster.ray import connect
from softprompt.config import BaseConfig
from softprompt.errors import ResourceError, WrongBaseError
from softprompt.listener import Listener, Report

__all__ = ["Board", "Desk", "base_of", "board", "enter", "taking", "together"]

_RETRIES = 10
"""Nodes that may die under one task."""
_LOOK = 0.5
_EVERY = 15.0
"""Seconds between two pictures of what is at work."""
_TOLD = 1.0
"""Seconds between two things that a task tells of its steps."""


# Where the work is ordered ------------------------------------------------------------------------------


def taking(base: BaseConfig, threads: int | None) -> dict[str, Any]:
    """Options of a task: the threads it asks for, a device where its base is to lie on one, and retries.

    Raises:
        ResourceError: it asks for a device that no node gives.
    """
    device, devices = base.device, ray.cluster_resources().get("GPU", 0)
    wants = device.startswith("cuda") or (device == "auto" and devices > 0)
    if wants and not devices:
        raise ResourceError("The cluster has no GPU, but the base is to lie on one; set its device to cpu.")
    if device.startswith("cuda:") and device != "cuda:0":
        raise ResourceError(f"A task sees one GPU, its own, but the device is {device}; set it to cuda.")
    return {
        "num_cpus": float(threads or 1),
        "num_gpus": 1.0 if wants else 0.0,
        "max_retries": _RETRIES,
    }


def together(
    tasks: Sequence[ray.ObjectRef[Any]],
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Any]:
    """What came of tasks, in their order; the first fault is raised as it was raised there.

    Args:
        tasks: what was begun.
        stop: asked now and then whether to leave them; raises KeyboardInterrupt then.
        progress: told now and then how many are done, of how many.
    """
    waiting = list(tasks)
    try:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=_LOOK)
            ray.get(done)
            progress(len(tasks) - len(waiting), len(tasks))
            if stop():
                raise KeyboardInterrupt
        return list(ray.get(list(tasks)))
    except RayTaskError as error:
        raise error.cause from None
    except TaskCancelledError:
        raise KeyboardInterrupt from None
    finally:
        for task in waiting:
            ray.cancel(task)


@contextmanager
def board(address: str, listener: Listener, **how: Any) -> Iterator[Board]:
    """Join a cluster, and pass on to a listener what its nodes tell, until the block ends.

    Args:
        address: as for ``connect``.
        listener: told what tasks note and of their steps, by ``Report.run``, and now and then in a note how
            far every task is; asked whether to end now.
        how: further arguments of ``ray.init``.

    Raises:
        ResourceError: there is no cluster.
    """
    connect(address, **how)
    # Not softly, for then it may lie on a node that dies while this process lives.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    made = Board(_Notices.options(num_cpus=0, scheduling_strategy=here).remote(), listener)  # type: ignore[attr-defined]
    ended = threading.Event()

    def telling() -> None:
        while not ended.wait(_LOOK):
            made.pass_on()

    thread = threading.Thread(target=telling, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        ended.set()
        thread.join(5 * _LOOK)
        made.pass_on()


class Board:
    """What all nodes tell, for the one process that ordered the work."""

    def __init__(self, notices: Any, listener: Listener) -> None:
        """notices: what a ``Desk`` writes on; it may travel."""
        self.notices = notices
        self._listener, self._lock = listener, threading.Lock()
        self._last = time.monotonic()

    def pass_on(self) -> None:
        """Tell the listener what is new; when this returns, it has heard all that ended tasks had to tell."""
        with self._lock:
            try:
                notes, reports, working = ray.get(self.notices.read.remote(self._listener.stop()))
            except RayError:  # the cluster is gone, which whoever waits for a task is told
                return
            for note in notes:
                self._listener.note(note)
            for report in reports:
                self._listener.step(report)
            if working and time.monotonic() - self._last > _EVERY:
                self._last = time.monotonic()
                self._listener.note(_picture(working))


@dataclass(frozen=True)
class _AtWork:
    """How far a task is, and on which node."""

    node: str
    report: Report


def _picture(working: dict[str, _AtWork]) -> str:
    """Every task that is at work, a line each."""
    nodes = len({at.node for at in working.values()})
    lines = [
        f"  {title} (node {at.node}): "
        + (f"step {r.step} of {r.total}, loss {r.loss:.3f}" if (r := at.report).step else "begun")
        for title, at in sorted(working.items())
    ]
    return "\n".join([f"At work: {len(working)} on {nodes} node{'s' if nodes > 1 else ''}.", *lines])


@ray.remote
class _Notices:
    """What all nodes tell, until the board reads it."""

    def __init__(self) -> None:
        self._working: dict[str, _AtWork] = {}
        self._notes: list[str] = []
        self._reports: list[Report] = []
        self._asked = False

    def at_work(self, title: str, at: _AtWork) -> bool:
        """Take note of a beginning or a step, and say whether work is to end."""
        if at.report.total:
            self._reports.append(at.report)
        elif title in self._working:  # which it leaves when it is done
            self._notes.append(f"{title}: its process died; node {at.node} takes it up again.")
        self._working[title] = at
        return self._asked

    def note(self, message: str) -> None:
        self._notes.append(message)

    def done(self, title: str) -> None:
        self._working.pop(title, None)

    def read(self, asked: bool) -> tuple[list[str], list[Report], dict[str, _AtWork]]:
        self._asked = self._asked or asked
        notes, self._notes = self._notes, []
        reports, self._reports = self._reports, []
        return notes, reports, dict(self._working)


# Where the work is done ---------------------------------------------------------------------------------


def enter(folder: str, *there: Path) -> None:
    """Work in the folder of whoever ordered it, in which what all nodes share must be.

    Raises:
        ResourceError: this node does not see it.
    """
    if os.path.isdir(folder):
        os.chdir(folder)
    for path in (Path(folder), *there):
        if not path.exists():
            raise ResourceError(
                f"The node {_node()} does not see {path.absolute()}; put what is read and written on a "
                "folder that all nodes share, under the same path."
            )


class Desk:
    """Where a task sits: what it says goes to the board, under its title."""

    def __init__(self, notices: Any, title: str) -> None:
        self._notices, self._title = notices, title
        self._tokens, self._told, self._asked = 0, 0.0, False
        self._tell(Report(0, 0, run=title))

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        ray.get(self._notices.done.remote(self._title))

    def note(self, message: str) -> None:
        """Say a sentence."""
        self._notices.note.remote(message)

    def step(self, report: Report) -> None:
        """Tell of a step, unless one was told of a moment ago; a validation always is."""
        self._tokens += report.tokens
        if report.scores is not None or time.monotonic() - self._told > _TOLD:
            self._tell(replace(report, run=self._title, tokens=self._tokens))
            self._tokens = 0

    def stopped(self) -> bool:
        """Whether work is to end, as was known when a step was last told of."""
        return self._asked

    def _tell(self, report: Report) -> None:
        self._told = time.monotonic()
        self._asked = ray.get(self._notices.at_work.remote(self._title, _AtWork(_node(), report)))


_bases: dict[tuple[BaseConfig, str], Base] = {}


def base_of(about: BaseConfig, name: str, fingerprint: str) -> Base:
    """The base that whoever ordered the work has, loaded once a process, one at a time, for it may be large.

    Raises:
        WrongBaseError: this node has another one there.
    """
    key = about, name
    if key not in _bases:
        _bases.clear()
        _bases[key] = replace(load_base(**about.model_dump()), name=name)
    found = _bases[key]
    if found.fingerprint != fingerprint:
        raise WrongBaseError(
            f"The node {_node()} has another base under {about.model} than the one the work was begun with; "
            "give all nodes the same."
        )
    return found


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())[:6]
