"""Saved prompts looked into as Ray tasks, a prompt a task.

A prompt whose node dies is looked into again on another. The library must be readable from every node.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray

from softprompt.base.model import Base
from softprompt.cluster.ray import LOCAL
from softprompt.cluster.tasks import Desk, base_of, board, enter, taking, together
from softprompt.config import BaseConfig
from softprompt.interpretation.inspect import Carry, LookOrder, Spread, carried
from softprompt.interpretation.vocabulary import Vocabulary
from softprompt.listener import SILENT, Listener
from softprompt.training.threads import threads

__all__ = ["spread_over"]


def spread_over(about: BaseConfig, address: str = LOCAL, **how: Any) -> Spread:
    """What spreads an inspection over the nodes of a cluster.

    Args:
        about: how every node loads the base.
        address: as for ``connect``.
        how: further arguments of ``ray.init``.
    """

    @contextmanager
    def spread(base: Base, listener: Listener) -> Iterator[Carry]:
        with board(address, replace(SILENT, note=listener.note), **how) as told:
            task = _look.options(**taking(about, None))

            def carry(orders: list[LookOrder]) -> list[Mapping[str, Any]]:
                here = os.getcwd(), about, base.name, base.fingerprint
                tasks = [task.remote(*here, order, told.notices) for order in orders]
                return together(tasks, progress=listener.counting("Prompts"))

            yield carry

    return spread


@functools.lru_cache(1)
def _vocabulary(base: Base) -> Vocabulary:
    """The words of the base that a process loaded last."""
    return Vocabulary.of(base)


@ray.remote  # type: ignore[untyped-decorator]
def _look(
    folder: str, about: BaseConfig, name: str, fingerprint: str, order: LookOrder, notices: Any
) -> Mapping[str, Any]:
    """What is found in one prompt on this node."""
    enter(folder)
    with Desk(notices, str(order.name)) as desk, threads(1):
        vocabulary = _vocabulary(base_of(about, name, fingerprint))
        return carried(order, vocabulary, Listener(note=desk.note))
