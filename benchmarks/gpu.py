"""What has never run on a card, checked and measured in one call of at most ten minutes; see ``gpu.sh``.

    python benchmarks/gpu.py [--vllm PYTHON] [--only exact,qlora] [--out results/gpu.json]
    python benchmarks/gpu.py --rehearse

Each part is a program of its own with a limit of its own: one that fails, hangs or runs out of memory costs
the others nothing. What is known is written after every part, so that a machine that is taken away leaves
what it found. ``--rehearse`` runs the same commands on the CPU with small sizes, so that the first minute on
a card is not lost to a typo; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "gpu.json"
WHOLE = 600
"""Seconds the call may take."""

KEPT_LINES = 15
"""Lines of what a part that failed said last."""


@dataclass(frozen=True)
class Part:
    """One program.

    Attributes:
        name: of its results.
        script: of this folder, with the arguments that hold on a card and in a rehearsal.
        on_card, rehearsed: further arguments of each.
        limit: seconds on a card.
    """

    name: str
    script: tuple[str, ...]
    on_card: tuple[str, ...]
    rehearsed: tuple[str, ...]
    limit: int


PARTS = (
    Part(
        "exact",
        ("gpu_exact.py",),
        ("--device", "cuda"),
        ("--device", "cpu", "--few"),
        120,
    ),
    Part(
        "qlora",
        ("plan_gpu.py", "--json"),
        ("--shape", "llama-7b", "--cap", "16GB"),
        (
            *("--device", "cpu", "--shape", "smollm2-135m", "--batch-size", "2", "--tokens", "24"),
            *("--steps", "2"),
        ),
        150,
    ),
    Part(
        "train_step",
        ("train_step.py", "--json"),
        ("--device", "cuda", "--dtype", "both", "--virtual-tokens", "20,100", "--repeats", "5"),
        ("--device", "cpu", "--dtype", "float32", "--virtual-tokens", "4", "--repeats", "1"),
        100,
    ),
    Part(
        "many_prompts",
        ("many_prompts.py", "--json", "--out", "{scratch}/many.jsonl"),
        ("--device", "cuda", "--dtype", "bfloat16", "--prompts", "16", "--steps", "16"),
        ("--device", "cpu", "--prompts", "2", "--steps", "2", "--batch-size", "4"),
        80,
    ),
    Part(
        "serve",
        ("serve.py", "--only", "generate", "--out", "{scratch}/serve.jsonl"),
        (
            *("--device", "cuda", "--dtype", "bfloat16", "--clients", "1,32", "--repeats", "2"),
            *("--sides", "{sides}", "--few", "4"),
        ),
        (
            *("--device", "cpu", "--clients", "2", "--requests", "2", "--few", "1", "--repeats", "1"),
            *("--checked", "1", "--sides", "softprompt"),
        ),
        130,
    ),
)


def command(part: Part, scratch: str, *, rehearse: bool, vllm: Path | None) -> list[str]:
    """What is run."""
    words = [*part.script, *(part.rehearsed if rehearse else part.on_card)]
    sides = "transformers,softprompt" + (",vllm,vllm-prompts" if vllm else "")
    words = [word.format(scratch=scratch, sides=sides) for word in words]
    if part.name == "serve" and vllm and not rehearse:
        words += ["--vllm", str(vllm)]
    return [sys.executable, str(HERE / words[0]), *words[1:]]


def run(part: Part, limit: float, *, rehearse: bool, vllm: Path | None) -> dict[str, Any]:
    """Its JSON lines and files, or why there are none."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        words = command(part, scratch, rehearse=rehearse, vllm=vllm)
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            said, _ = process.communicate(timeout=limit)
            how = "done" if process.returncode == 0 else f"failed with {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
            said, _ = process.communicate()
            how = f"stopped after {limit:.0f} s"
        lines = [line for line in said.splitlines() if line.startswith("{")]
        files = sorted(Path(scratch).glob("*.jsonl"))
        lines += [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    found: dict[str, Any] = {"how": how, "seconds": round(time.monotonic() - began, 1)}
    found["command"] = [Path(words[1]).name, *words[2:]]
    found["found"] = list({line.strip(): value for line in lines for value in _parsed(line)}.values())
    if how != "done":
        found["said"] = [line for line in said.splitlines() if not line.startswith("{")][-KEPT_LINES:]
    return found


def _parsed(line: str) -> Iterator[Any]:
    """What a line says; nothing if it was cut off."""
    with contextlib.suppress(ValueError):
        yield json.loads(line)


def card() -> dict[str, Any]:
    """What this is measured on, asked of a process of its own, so that nothing of the card is held here."""
    asked = subprocess.run(
        [sys.executable, "-c", "import json; from machine import describe; print(json.dumps(describe()))"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(json.loads(asked.stdout)) if asked.returncode == 0 else {"unknown": asked.stderr[-500:]}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small; figures mean nothing")
    parser.add_argument("--only", help="parts by name, with commas between")
    parser.add_argument("--vllm", type=Path, help="a Python that vLLM and softprompt are installed for")
    parser.add_argument("--out", type=Path, help=f"where the JSON goes  [default: {RESULTS.name}]")
    asked = parser.parse_args(given)
    names = [part.name for part in PARTS]
    asked.only = names if asked.only is None else asked.only.split(",")
    if unknown := sorted(set(asked.only) - set(names)):
        parser.error(f"there is no part {unknown[0]}; the parts are {', '.join(names)}")
    if asked.out is None:
        asked.out = Path(tempfile.gettempdir(), "gpu-rehearsal.json") if asked.rehearse else RESULTS
    return asked


def main(given: Sequence[str] | None = None) -> int:
    asked = arguments(given)
    began = time.monotonic()
    whole: dict[str, Any] = {"rehearsal": asked.rehearse, "machine": card(), "parts": {}}
    if not asked.rehearse and whole["machine"].get("device") in (None, "cpu"):
        print("This needs a CUDA device, and torch finds none; try it with --rehearse.", file=sys.stderr)
        return 2
    for part in PARTS:
        if part.name not in asked.only:
            continue
        left = WHOLE - (time.monotonic() - began) - 10
        limit = part.limit if asked.rehearse else min(part.limit, left)
        if limit < 5:
            found: dict[str, Any] = {"how": "left out: the ten minutes are over", "found": []}
        else:
            found = run(part, limit, rehearse=asked.rehearse, vllm=asked.vllm)
        whole["parts"][part.name] = found
        whole["seconds"] = round(time.monotonic() - began, 1)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        print(f"{part.name}: {found['how']}, {found.get('seconds', 0)} s", flush=True)
        for line in found.get("said", ()):
            print(f"    {line}")
    print(f"written to {asked.out}")
    return 0 if all(found["how"] == "done" for found in whole["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
