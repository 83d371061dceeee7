"""Reaching a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
from typing import Any

import ray

from softprompt.errors import ResourceError

__all__ = ["LOCAL", "connect"]

LOCAL = "local"
"""The address of a cluster that is started on this machine and ends with the command."""


def connect(address: str = LOCAL, **how: Any) -> None:
    """Join the cluster at an address, unless this process has joined one already.

    Args:
        address: ``local``, ``auto`` for the one this machine is part of, or HOST:PORT of its head.
        how: further arguments of ``ray.init``.

    Raises:
        ResourceError: there is no cluster.
    """
    if ray.is_initialized():
        return
    if address == LOCAL:
        how = {"include_dashboard": False, **how}
    try:
        ray.init(address=address, logging_level=logging.ERROR, **how)
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise ResourceError(
            f"There is no Ray cluster at {address} ({said}); start one with `ray start --head`, or leave the "
            "address out to use this machine."
        ) from error
