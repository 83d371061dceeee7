"""One server process: its socket, its signals and its end. Knows uvicorn, not endpoints or models."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from softprompt.errors import ResourceError
from softprompt.serving.api.connections import Connections, protocol
from softprompt.serving.api.gate import Drain

__all__ = ["bind", "serve"]

_IDLE = 75
"""Seconds a connection may rest. Clients let theirs go after 5 to 60: were it shorter here, a request could
meet a connection just being closed."""

_GRACE = 5
"""Seconds for last bytes to leave when nothing is computed any more."""


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, not listening yet; port 0 takes any that is free.

    Raises:
        ResourceError: the port is taken or not allowed, or there is no such host.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen()  # only this tells surely that nobody else listens
        except OSError:
            sock.close()
            raise
    except (OSError, UnicodeError) as error:
        raise _refused(host, port, error) from error
    return sock


def _refused(host: str, port: int, error: Exception) -> ResourceError:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return ResourceError(
            f"Port {port} of {host} is taken by another program; choose another with --port, 0 for any."
        )
    if number == errno.EACCES:
        return ResourceError(f"Port {port} is not allowed for you; choose one from 1024 on with --port.")
    return ResourceError(f"Cannot listen at {host!r}: it is no address of this machine; check --host.")


def serve(
    app: Callable[..., Any],
    sock: socket.socket,
    drain: Drain,
    *,
    seconds: float,
    abandon: Callable[[], None],
    ready: Callable[[], None],
    connections: Connections | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then refuse what is new and finish what is under way.

    Args:
        app: the application.
        sock: where it listens.
        drain: what tells the application that the server is about to stop.
        seconds: how long to wait for what is under way.
        abandon: called when that was too short; must make it end.
        ready: called when requests are answered.
        connections: how many connections there may be, and how long one may be silent.
    """
    config = uvicorn.Config(
        app,
        http=protocol(connections or Connections()),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_GRACE,
    )
    _Server(config, drain, seconds, abandon, ready).run(sockets=[sock])


class _Server(uvicorn.Server):
    """Between the first signal and the end it goes on accepting, so that clients are told, not cut off."""

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Drain,
        seconds: float,
        abandon: Callable[[], None],
        ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._drain, self._seconds, self._abandon, self._ready = drain, seconds, abandon, ready
        self._stopping: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._ready()
        if self._signals:  # it came too early to be heeded
            self._begin()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, the second hastens it. None is raised again: all is in order."""
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        self._drain.draining = True
        until = time.monotonic() + self._seconds
        while self._drain.active and time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(0.02)
        if self._drain.active:
            self._drain.hurry()
            await asyncio.to_thread(self._abandon)
        self.should_exit = True
