"""What a newcomer waits for and makes room for: time to the first sign of life, and the size without extras.

    python benchmarks/first_hour.py

Times are from the command's start to the first byte on a terminal, the best of five; sizes are of the files
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
from typing import Any

from machine import describe

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
