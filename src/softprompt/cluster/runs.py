"""The runs of a search as Ray tasks: each where there is a core or a device for it.

A run whose node dies goes on from its checkpoint on another. Checkpoints lie in the search's folder, which
all nodes must see; so a search that was spread over nodes can go on on one. Every run is read in passes of
its own, so what it learns does not depend on how many nodes there are, nor on what else they do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from softprompt.base.model import Base
from softprompt.cluster.ray import LOCAL
from softprompt.cluster.tasks import Desk, base_of, board, enter, taking, together
from softprompt.config import Config
from softprompt.listener import Listener
from softprompt.training.search import Carry, RunOrder, RunState, Spread, carried
from softprompt.training.threads import threads

__all__ = ["spread_over"]


def spread_over(address: str = LOCAL, **how: Any) -> Spread:
    """What spreads a search over the nodes of a cluster; ``how``: further arguments of ``ray.init``."""

    @contextmanager
    def spread(base: Base, config: Config, listener: Listener) -> Iterator[Carry]:
        with board(address, listener, **how) as told:
            task = _run.options(**taking(config.base, config.train.threads))

            def carry(orders: list[RunOrder]) -> list[RunState | None]:
                about = os.getcwd(), base.name, base.fingerprint
                found = together([task.remote(*about, order, told.notices) for order in orders])
                told.pass_on()
                return found

            yield carry

    return spread


@ray.remote  # type: ignore[untyped-decorator]
def _run(folder: str, base: str, fingerprint: str, order: RunOrder, notices: Any) -> RunState | None:
    """Go on with a run on this node; None if work was to end before it began."""
    enter(folder, order.folder.parent)
    with Desk(notices, order.folder.name) as desk, threads(order.config.train.threads or 1):
        if desk.stopped():
            return None
        found = base_of(order.config.base, base, fingerprint)
        return carried(found, order, Listener(note=desk.note, step=desk.step, stop=desk.stopped))
