"""Object stores for tests: fsspec's in memory, and S3 as a server process of its own on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3(port: int | None = None) -> Iterator[str]:
    """A server that speaks S3; gives its address, and sets what S3's clients read from the environment."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", port or 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    asked = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    told = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        try:
            _await(url)
            yield url
        finally:
            server.kill()
            server.wait()


def _await(url: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


def bucket(url: str) -> str:
    """A new, empty bucket of a server; its name."""
    name = f"prompts-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{url}/{name}", method="PUT"), timeout=10)
    return name


def forget_clients() -> None:
    """Let fsspec make its clients anew, for they remember where they were told to ask."""
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
    os.environ.pop("AWS_PROFILE", None)
