"""The cells of a comparison as Ray tasks: each where there is a core or a device for it.

A cell whose node dies is carried out again on another; what was finished lies in the comparison's folder,
which all nodes must see, and is found there. So a comparison that was spread over nodes can go on on one.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from softprompt.cluster.ray import LOCAL
from softprompt.cluster.tasks import Desk, board, enter, taking, together
from softprompt.comparison.run import Bench, Carry, CellOrder, Spread, carried
from softprompt.comparison.settings import Comparison, Contender
from softprompt.listener import Listener

__all__ = ["spread_over"]


def spread_over(address: str = LOCAL, **how: Any) -> Spread:
    """What spreads a comparison over the nodes of a cluster; ``how``: further arguments of ``ray.init``."""

    @contextmanager
    def spread(bench: Bench) -> Iterator[Carry]:
        comparison = bench.comparison
        with board(address, Listener(note=bench.notify), **how) as told:
            name, what = uuid.uuid4().hex, ray.put((comparison, list(bench.contenders.values())))
            task = _cell.options(**taking(comparison.base, comparison.train.threads))
            yield lambda orders: together(
                [task.remote(name, what, os.getcwd(), order, told.notices) for order in orders], bench.stop
            )

    return spread


_benches: dict[str, Bench] = {}


def _bench(name: str, comparison: Comparison, contenders: Sequence[Contender]) -> Bench:
    """A comparison as one process of a node knows it, with the base it loaded last."""
    if name not in _benches:
        _benches.clear()  # one at a time, for a base may be large
        _benches[name] = Bench.of(comparison, contenders, lambda _: None, lambda *_: None, lambda: False)
    return _benches[name]


@ray.remote  # type: ignore[untyped-decorator]
def _cell(
    name: str, what: tuple[Comparison, Sequence[Contender]], folder: str, order: CellOrder, notices: Any
) -> Any:
    """Carry a cell of the comparison of that name out on this node."""
    enter(folder, Path(what[0].compare.folder) / what[0].name)
    bench = _bench(name, *what)
    with Desk(notices, f"{order.contender}, trial {order.trial + 1}, seed {order.seed}") as desk:
        bench.notify = desk.note
        bench.watch = lambda _, report: desk.step(report)
        (found,) = carried(bench, [order])
    return found
