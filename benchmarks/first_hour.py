"""What a newcomer waits for and makes room for: time to the first sign of life, and the size without extras.

    python benchmarks/first_hour.py

Times are from the command's start to the first byte on a terminal, the best of five, or to the answer of a
saved prompt on the bundled base: the first ever, and the best of three that follow. Sizes are of the files
that each package of the plain install brought. Writes ``results/first_hour.json``.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from machine import describe
from serve_sides import save_prompts
from softprompt.checkpoints.freeze import load_base
from softprompt.wheels import cache_root

RESULTS = Path(__file__).parent.parent / "results" / "first_hour.json"
COMMANDS = (
    ["--help"],
    ["list"],
    ["train", "bbc-topics"],
    ["generate", "nothing", "text"],
    ["compare", "nothing.toml"],
    ["serve", "--port", "0"],
    ["models"],
)


def main() -> None:
    """Measure both and write them down."""
    sizes = installed()
    found = {
        "first_output_seconds": {
            " ".join(args): round(min(first_output(args) for _ in range(5)), 3) for args in COMMANDS
        },
        "answer_seconds": answers(),
        "installed_bytes": sum(sizes.values()),
        "largest": dict(sorted(sizes.items(), key=lambda pair: -pair[1])[:8]),
        "machine": describe(),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def first_output(args: list[str]) -> float:
    """Seconds until something stands on the terminal; the command is stopped there."""
    screen, terminal = os.openpty()
    code = f"from softprompt.cli.main import run; run({args!r})"
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=terminal, cwd=folder
        )
        try:
            assert select.select([screen], [], [], 120)[0], args
            return time.perf_counter() - began
        finally:
            process.kill()
            process.wait()
            os.close(screen)
            os.close(terminal)


def answers() -> dict[str, float]:
    """Seconds until a prompt has answered with three tokens, in a cache that holds the base and no more."""
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as library:
        base = load_base("smollm2-135m")
        prompts: Any = SimpleNamespace(
            prompts=[base.embed(base.encode("One word: the topic of a headline."))]
        )
        save_prompts(base, prompts, Path(library))
        (Path(cache) / "converted").symlink_to(cache_root() / "converted")
        asked = ["generate", "prompt-0", "Rates cut", "--library", library, "--max-new-tokens", "3"]

        def seconds() -> float:
            began = time.perf_counter()
            code = f"from softprompt.cli.main import run; raise SystemExit(run({asked!r}))"
            subprocess.run(
                [sys.executable, "-c", code], env=os.environ | {"SOFTPROMPT_CACHE": cache}, check=True
            )
            return round(time.perf_counter() - began, 2)

        return {"first": seconds(), "later": min(seconds() for _ in range(3))}


def installed(package: str = "softprompt") -> dict[str, int]:
    """Bytes of every package that the plain install brings, softprompt's own first."""
    sizes: dict[str, int] = {}
    waiting = [package]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in sizes:
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:  # for another system or Python
            continue
        sizes[name] = sum(_size(file.locate()) for file in found.files or ())
        waiting += [_named(line) for line in found.requires or () if "extra ==" not in line]
    return sizes


def _size(path: Any) -> int:
    return Path(path).stat().st_size if Path(path).is_file() else 0


def _named(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return found[0]


if __name__ == "__main__":
    main()
