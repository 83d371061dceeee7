"""Connections that say nothing, half a thing, or are too many do not keep others out."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from serving.api import house
from softprompt.serving.api.app import create_app
from softprompt.serving.api.connections import Connections, protocol
from softprompt.serving.engine import Engine
from softprompt.serving.service import Service


@contextlib.contextmanager
def served(engine: Engine, bounds: Connections) -> Iterator[str]:
    with house.running(create_app(Service(engine)), http=protocol(bounds)) as url:
        yield url


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), timeout=10)


def whole(sock: socket.socket) -> bytes:
    """One answer, head and body."""
    sock.settimeout(10)
    found = b""
    while b"\r\n\r\n" not in found:
        found += sock.recv(4096)
    head, _, body = found.partition(b"\r\n\r\n")
    (length,) = (
        int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    )
    while len(body) < length:
        body += sock.recv(4096)
    return head + body


def closed(sock: socket.socket, within: float) -> bool:
    """Whether the other side ends the connection in time."""
    sock.settimeout(within)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nHost: local"])
def test_a_head_that_does_not_come_ends_the_connection(engine: Engine, said: bytes) -> None:
    with served(engine, Connections(head_seconds=0.3)) as url, connect(url) as sock:
        sock.sendall(said)
        begun = time.monotonic()
        assert closed(sock, 5)
        assert time.monotonic() - begun < 3


def test_half_a_head_behind_a_whole_request_ends_it_too(engine: Engine) -> None:
    with served(engine, Connections(head_seconds=0.5)) as url, connect(url) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in whole(sock)
        time.sleep(1)  # a connection may rest between requests for longer than a head may take
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in whole(sock)
        sock.sendall(b"GET /hea")
        assert closed(sock, 5)


def test_an_answer_may_take_longer_than_a_head(engine: Engine) -> None:
    """The time of the head is over once it is there."""
    with served(engine, Connections(head_seconds=0.2)) as url, connect(url) as sock:
        body = b'{"model": "free", "prompt": "x", "max_tokens": 2}'
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        sock.sendall(head.encode())
        time.sleep(0.5)
        sock.sendall(body)
        assert b" 200 " in whole(sock)


def test_what_is_too_many_is_closed_and_told_once(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), served(engine, Connections(most=8)) as url:
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(connect(url)) for _ in range(4)]
            more = [stack.enter_context(connect(url)) for _ in range(20)]
            assert all(closed(sock, 5) for sock in more)
            assert not any(closed(sock, 0.05) for sock in held)
        time.sleep(0.2)
        assert httpx.get(f"{url}/health").status_code == 200
    assert [r.message for r in caplog.records if "turned away" in r.message] == [
        "1 connections turned away: 4 are open, 4 of them from 127.0.0.1"
    ]


def test_another_address_finds_room_beside_a_flood() -> None:
    connections = Connections(most=8)
    assert [connections.enter("flood") for _ in range(6)] == [True] * 4 + [False] * 2
    assert connections.enter("other")
    connections.leave("flood")
    assert connections.enter("flood")
    assert not connections.enter("flood")
