"""vLLM as one who answers: its own Python, its own process, asked over HTTP with embeddings.

    python benchmarks/serve_vllm.py PATH_TO_ITS_PYTHON [--dtype float32|bfloat16] [--port 8123]

starts a server by itself, for several runs of ``serve.py --vllm-port 8123``. It knows vLLM's command line
and its completions API; it does not know clients or clocks. vLLM has no named soft prompts: to ``vllm`` every
request brings its prompt's embeddings and its text's, side by side; ``vllm-prompts`` is the same server with
softprompt's connector and middleware, and requests name their prompts.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve_loads import Answer, Ask, Material
from serve_sides import save_prompts
from sides import peft_model
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.vllm.flags import engine_fields, flags

__all__ = [
    "NAME",
    "ROWS",
    "OverPrompts",
    "OverVllm",
    "VllmServer",
    "plain_words",
    "prompts_server",
    "saved_base",
]

MODEL = "smollm2-135m"
NAME = "base"
ROWS = 32
"""The most requests in a batch of vLLM's."""
PATIENCE = 540.0
"""Seconds vLLM may take to start."""


def saved_base(base: Base, model: Any, dtype: str) -> Path:
    """A folder with the model and its tokenizer as transformers writes them, for vLLM to read; made once."""
    folder = Path(tempfile.gettempdir()) / f"serve-{MODEL}-{dtype}"
    if not (folder / "tokenizer_config.json").exists():  # the last file to be written
        model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
    return folder


class VllmServer:
    """A server of vLLM's; a context manager that starts it and ends it."""

    def __init__(self, python: Path, log: Path, words: Sequence[str], port: int | None = None) -> None:
        self.python, self.log, self.port = python, log, port or _free_port()
        self._command = [
            *(str(python), "-m", "vllm.entrypoints.openai.api_server", *words),
            *("--host", "127.0.0.1", "--port", str(self.port), "--block-size", "32"),
            *("--max-model-len", "512", "--max-num-seqs", str(ROWS)),
        ]

    def __enter__(self) -> VllmServer:
        # By itself it leaves a processor free, which softprompt does not.
        own = {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "HF_HUB_OFFLINE": "1",
        }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env={**own, **os.environ}, start_new_session=True
            )
        until = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__()
                raise SystemExit(f"vLLM did not start; its last words are in {self.log}.")
            time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        # Its workers are processes of their own in its session, and some outlive a signal to the first alone.
        for sign, seconds in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0)):
            try:
                os.killpg(self._process.pid, sign)
                self._process.wait(seconds)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def _answers(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False


class OverVllm:
    """vLLM's completions; a connection for every client, request bodies made before they are timed."""

    name, most = "vllm", None

    def __init__(self, port: int, base: Base, material: Material) -> None:
        self._port, self._base, self._material = port, base, material
        self._own = threading.local()
        self._bodies: dict[tuple[Ask, int], bytes] = {}

    @property
    def version(self) -> str:
        """What the server says it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        connection.request("GET", "/version")
        return str(json.loads(connection.getresponse().read())["version"])

    def prepare(self, asks: Sequence[Ask], new_tokens: int) -> None:
        """Write what will be sent."""
        self._bodies = {(ask, new_tokens): self._body(ask, new_tokens) for ask in asks}

    def answer(self, asks: Sequence[Ask], new_tokens: int) -> list[Answer]:
        (ask,) = asks
        body = self._bodies.get((ask, new_tokens)) or self._body(ask, new_tokens)
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection("127.0.0.1", self._port)
        connection: http.client.HTTPConnection = self._own.connection
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"vLLM answered {reply.status}: {text[:500]!r}")
        return [tuple(json.loads(text)["choices"][0]["token_ids"])]

    def _body(self, ask: Ask, new_tokens: int) -> bytes:
        prompt = self._material.prompts[ask.prompt].to(self._base.dtype)
        embeds = torch.cat([prompt, self._base.embed(ask.ids)])  # [P + T, E]
        asked: dict[str, Any] = {
            "model": NAME,
            "prompt_embeds": _encoded(embeds),
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        if self._material.load.classifies:
            asked["allowed_token_ids"] = list(self._material.labels)
        return json.dumps(asked).encode()


class OverPrompts(OverVllm):
    """The same server behind softprompt's middleware: a request names its prompt."""

    name = "vllm-prompts"

    def __init__(self, port: int, base: Base, material: Material, library: Path) -> None:
        super().__init__(port, base, material)
        self._load = material.load.name
        save_prompts(base, material, library, self._load)  # while it serves

    def _body(self, ask: Ask, new_tokens: int) -> bytes:
        asked: dict[str, Any] = {
            "model": f"{self._load}-{ask.prompt}",
            "prompt": list(ask.ids),
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        if self._material.load.classifies:
            asked["allowed_token_ids"] = list(self._material.labels)
        return json.dumps(asked).encode()


def plain_words(folder: Path, dtype: str) -> list[str]:
    """How vLLM is started for itself."""
    return ["--model", str(folder), "--served-model-name", NAME, "--dtype", dtype, "--enable-prompt-embeds"]


def prompts_server(python: Path, base: Base, library: Path) -> VllmServer:
    """A vLLM started as ``softprompt vllm-args`` says."""
    about = {"library": str(library), "fingerprint": base.fingerprint}
    fields = engine_fields(base, str(library.parent / "store"), **about)
    return VllmServer(python, library.parent / "vllm.log", flags(fields))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _encoded(embeds: Tensor) -> str:
    """A tensor as vLLM's API asks for it."""
    file = io.BytesIO()
    torch.save(embeds.contiguous().cpu(), file)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description="vLLM with the base of serve.py, until it is interrupted.")
    parser.add_argument("python", type=Path, help="the Python that vLLM is installed for")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--port", type=int, default=8123)
    asked = parser.parse_args()
    base = load_base(MODEL, dtype=asked.dtype, device="cpu")
    folder = saved_base(base, peft_model(asked.dtype, torch.device("cpu")), asked.dtype)
    del base
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    words = plain_words(folder, asked.dtype)
    with (
        VllmServer(asked.python, folder.with_suffix(".log"), words, asked.port) as server,
        suppress(KeyboardInterrupt),
    ):
        print(f"vLLM listens at port {server.port}; interrupt it to end it.", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
