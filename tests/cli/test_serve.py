"""``softprompt serve`` as its users meet it: a process, its address, its end, and what stops its start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.shell import Shell

BODY = {"model": "moods", "prompt": "a good film", "max_tokens": 2}


@contextmanager
def serving(shell: Shell, *args: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A server in a process of its own, and what it said as JSON."""
    code = "import sys; from softprompt.cli.main import main; sys.argv[0] = 'softprompt'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", "--json", *args],
        cwd=shell.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        said = ""
        while (line := process.stdout.readline()) and not line.startswith("}"):
            said += line
        if not line:
            pytest.fail(process.communicate()[1])
        yield process, json.loads(said + line)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_and_ends_in_order(taught: Shell, sign: signal.Signals) -> None:
    with serving(taught, "--drain", "20") as (process, said):
        assert said["base"] == "base"
        assert said["prompts"] == ["moods"]
        with httpx.Client(base_url=said["url"], timeout=60) as http:
            answer = http.post("/v1/classify", json={"model": "moods", "input": "a good film"})
            assert set(answer.json()["data"][0]["probabilities"]) == {"pos", "neg"}
            assert http.get("/").status_code == 200
            body = {
                "model": "base",
                "prompt": "a",
                "max_tokens": 300,
                "logit_bias": {"2": -100},
                "stream": True,
            }
            refused = threading.Event()
            with http.stream("POST", "/v1/completions", json=body) as stream:
                lines = stream.iter_lines()
                next(lines)
                process.send_signal(sign)
                with httpx.Client(base_url=said["url"], timeout=60) as other:
                    for _ in range(100):
                        if other.post("/v1/completions", json=BODY).status_code == 503:
                            refused.set()
                            break
                rest = [line for line in lines if line]
        assert refused.is_set()
        assert rest[-1] == "data: [DONE]"
        assert process.wait(20) == 0


def test_what_does_not_finish_in_time_is_ended(taught: Shell) -> None:
    with (
        serving(taught, "--drain", "0") as (process, said),
        httpx.Client(base_url=said["url"], timeout=60) as http,
    ):
        body = {"model": "base", "prompt": "a", "max_tokens": 500, "n": 32, "logit_bias": {"2": -100}}
        with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "cancelled"
        assert process.wait(20) == 0


def test_a_port_that_is_taken_is_one_sentence(taught: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = taught("serve", "--port", str(taken.getsockname()[1]))
    assert done.code == 2
    assert "--port" in done.err
    assert done.err.count(". ") == 0


def test_other_hosts_need_keys(taught: Shell) -> None:
    for host in ("0.0.0.0", "::", "example.com"):
        done = taught("serve", "--host", host)
        assert done.code == 2
        assert "--keys" in done.err


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--keys", "none.toml"), "none.toml"),
        (("--budget", "much"), "much"),
        (("--kv-memory", "some"), "some"),
        (("--kv-memory", "1KB"), "kv_memory holds"),
        (("--pin", "unheard"), "unheard"),
        (("--base", "nowhere"), "nowhere"),
        (("--port", "99999"), "--port"),
        (("--host", "localhost.invalid", "--keys", "keys.toml"), "--host"),
    ],
)
def test_what_is_wrong_is_said_before_it_serves(taught: Shell, args: tuple[str, ...], word: str) -> None:
    if "keys.toml" in args:
        taught("keys", "add", "me")
    done = taught("serve", "--port", "0", *args)
    assert done.code == 2
    assert word in done.err


def test_the_line_to_try_works(taught: Shell, tmp_path: Path) -> None:
    from softprompt.checkpoints.freeze import load_base
    from softprompt.cli.serve import _curl, cards_of, url_of
    from softprompt.serving.api.gate import is_loopback

    base = load_base("base")
    line = _curl("http://127.0.0.1:1", base.name, cards_of("prompts"), keyed=True)
    assert '"model": "moods"' in line
    assert "Bearer $KEY" in line
    assert url_of("0.0.0.0", "0.0.0.0", 80) == "http://127.0.0.1:80"
    assert url_of("::1", "::1", 80) == "http://[::1]:80"
    assert not is_loopback("127.0.0.1.example.com")
