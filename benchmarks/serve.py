"""Many prompts served at once: softprompt's engine against PEFT, transformers and vLLM, in one run.

    python benchmarks/serve.py [--dtype float32|bfloat16] [--vllm PATH_TO_ITS_PYTHON]
    python benchmarks/serve.py --only generate --clients 32 --sides peft,softprompt --resume
    python benchmarks/serve.py --report

All sides hold SmolLM2-135M and 32 soft prompts, and get the same requests: to classify texts of 20 to 50
tokens behind 20 and 100 virtual tokens, and to write 64 tokens (the end token ignored) behind 20 virtual
tokens and a text of 34. Each of 1, 8 or 32 clients sends its next request when its last has come back.
``softprompt-one`` is softprompt again with all requests naming one prompt; ``vllm-prompts`` is a vLLM that
softprompt's connector and middleware have made know the prompts by name.

In a cell (load, clients) the sides take turns, repeat by repeat, after each has answered once for every
prompt, unmeasured. No text comes twice, so a cache of texts gains nothing; the cell's time seeds them. Rates
are medians of the repeats. Some answers of each side are held against a plain pass of transformers in fp32
(see ``serve_check``). Every cell is added to ``results/serve.jsonl`` as it is done, so a run can be made in
parts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import describe
from serve_check import Agreement, agreement
from serve_clients import Side, Timing, closed_loop
from serve_loads import LOADS, PROMPTS, Ask, Load, Material
from serve_results import Cell, Key, add, bars, latest, read, show
from serve_sides import OneByOne, Ours, Padded
from serve_vllm import MODEL, OverPrompts, OverVllm, VllmServer, plain_words, prompts_server, saved_base
from sides import peft_model
from softprompt.base.model import Base
from softprompt.base.process import let_workers_go
from softprompt.checkpoints.freeze import load_base
from softprompt.data import bundled

RESULTS = Path(__file__).parent.parent / "results" / "serve.jsonl"
ENTRIES = ("peft", "transformers", "vllm", "vllm-prompts", "softprompt", "softprompt-one")
CLIENTS = (1, 8, 32)
WARM_TOKENS = 4
REST = 3.0
"""Seconds after every turn, in which a server's threads stop looking for work (vLLM's do for a while)."""


@dataclass(frozen=True)
class Entry:
    """One who takes part: a side, and how many prompts the requests to it name."""

    name: str
    side: Side
    prompts: int


@dataclass(frozen=True)
class Plan:
    """How a cell is measured."""

    clients: int
    requests: int
    few: int
    repeats: int
    checked: int

    def requests_of(self, entry: Entry) -> int:
        """One who answers one by one may be asked less often, as its rate does not depend on it."""
        return self.few if entry.side.most == 1 else self.requests


def entries(names: Sequence[str], made: dict[str, Side], prompts: int = PROMPTS) -> list[Entry]:
    """Those of ``names`` that there are, in order."""
    found = [(name, made.get(name.removesuffix("-one"))) for name in names]
    return [
        Entry(name, side, 1 if name.endswith("-one") else prompts) for name, side in found if side is not None
    ]


def measure(
    plan: Plan, taking_part: Sequence[Entry], material: Material, reference: Any, dtype: str
) -> list[Cell]:
    """All entries of one load and one number of clients, in turns; ``reference`` is a plain fp32 model."""
    load = material.load
    turn = time.strftime("%Y-%m-%dT%H:%M:%S")
    timings: dict[str, list[tuple[list[Ask], Timing]]] = {entry.name: [] for entry in taking_part}
    for entry in taking_part:
        _warm(entry, material, plan.clients, turn)
    for repeat in range(plan.repeats):
        for entry in taking_part:
            asks = material.asks(plan.requests_of(entry), f"{turn} {repeat}", entry.prompts)
            if isinstance(entry.side, OverVllm):
                entry.side.prepare(asks, load.new_tokens)
            timings[entry.name].append((asks, closed_loop(entry.side, asks, plan.clients, load.new_tokens)))
            let_workers_go()  # this thread's, which would slow whoever is next
            time.sleep(REST)
    made = [
        _cell(entry, plan, load, timings[entry.name], turn, dtype)
        | asdict(_agreement(reference, material, timings[entry.name], plan.checked))
        for entry in taking_part
    ]
    ours = next((cell["requests_per_second"] for cell in made if cell["entry"] == "softprompt"), None)
    return [Cell(**cell, speedup=ours and ours / cell["requests_per_second"]) for cell in made]


def _warm(entry: Entry, material: Material, clients: int, turn: str) -> None:
    """One answer for every prompt, short ones, and as many at a time as will come."""
    some = PROMPTS if entry.side.most != 1 else 2
    tokens = min(WARM_TOKENS, material.load.new_tokens)
    closed_loop(entry.side, material.asks(some, f"{turn} warm", entry.prompts), clients, tokens)


def _cell(
    entry: Entry, plan: Plan, load: Load, found: list[tuple[list[Ask], Timing]], turn: str, dtype: str
) -> dict[str, Any]:
    every = Timing(0, tuple(s for _, timing in found for s in timing.latencies), ())
    rate = statistics.median(len(asks) / timing.seconds for asks, timing in found)
    return {
        "load": load.name,
        "entry": entry.name,
        "prompts": entry.prompts,
        "clients": plan.clients,
        "dtype": dtype,
        "turn": turn,
        "requests": plan.requests_of(entry),
        "requests_per_second": rate,
        "tokens_per_second": rate * load.new_tokens,
        "latency_p50": every.percentile(0.5),
        "latency_p99": every.percentile(0.99),
        "seconds": tuple(timing.seconds for _, timing in found),
    }


def _agreement(
    reference: Any, material: Material, found: list[tuple[list[Ask], Timing]], most: int
) -> Agreement:
    asks, timing = found[-1]
    return agreement(reference, material, asks, timing.answers, most)


def sides(
    base: Base, plain: Any, material: Material, names: Sequence[str], within: ExitStack
) -> dict[str, Side]:
    """The sides that are asked for and live in this process; ``within`` ends them."""
    made: dict[str, Side] = {}
    if "peft" in names:
        made["peft"] = OneByOne(plain, material)
    if "transformers" in names:
        made["transformers"] = Padded(plain, material, most=max(CLIENTS))
    if "softprompt" in names or "softprompt-one" in names:
        folder = Path(within.enter_context(tempfile.TemporaryDirectory()))
        ours = Ours(base, material, folder)
        within.enter_context(ours.engine)
        made["softprompt"] = ours
    return made


def missing(cells: Sequence[Cell], load: str, names: Sequence[str], clients: int, dtype: str) -> list[str]:
    """Which entries a cell lacks, and softprompt with them, for their ratio."""
    there = latest(cells)
    lacking = [name for name in names if Key(load, name, clients, dtype) not in there]
    return [name for name in names if name in lacking or (lacking and name == "softprompt")]


def run(asked: argparse.Namespace) -> None:
    """Measure every cell that is asked for."""
    base = load_base(MODEL, dtype=asked.dtype, device=asked.device)
    plain = peft_model(asked.dtype, base.device)
    plain.generation_config.eos_token_id = None  # so that every side writes as many tokens
    reference = plain if asked.dtype == "float32" else peft_model("float32", base.device)
    texts = [str(row["text"]) for row in bundled.load("bbc-news/train").rows]
    with ExitStack() as within:
        port = _vllm(asked, base, plain, within) if "vllm" in asked.sides else None
        library = Path(within.enter_context(tempfile.TemporaryDirectory())) / "prompts"
        named = _vllm_prompts(asked, base, library, within) if "vllm-prompts" in asked.sides else None
        for load in asked.only:
            material = Material(base, LOADS[load], texts)
            about = describe()
            with ExitStack() as ending:
                made = sides(base, plain, material, asked.sides, ending)
                if port is not None:
                    made["vllm"] = vllm = OverVllm(port, base, material)
                    about["versions"]["vllm"] = vllm.version
                if named is not None:
                    made["vllm-prompts"] = OverPrompts(named, base, material, library)
                for clients in asked.clients:
                    cells = _measured(asked, made, clients, material, reference)
                    add(asked.out, cells, about)
                    print("".join(show(cell) + "\n" for cell in cells), end="", flush=True)


def _measured(
    asked: argparse.Namespace, made: dict[str, Side], clients: int, material: Material, reference: Any
) -> list[Cell]:
    """The cells of one load and one number of clients; none where the results hold them already."""
    names = [entry.name for entry in entries(asked.sides, made)]
    if asked.resume:
        names = missing(read(asked.out), material.load.name, names, clients, asked.dtype)
    if not names:
        return []
    plan = Plan(clients, asked.requests, asked.few, asked.repeats, asked.checked)
    return measure(plan, entries(names, made), material, reference, asked.dtype)


def _vllm(asked: argparse.Namespace, base: Base, plain: Any, within: ExitStack) -> int | None:
    """The port of a vLLM that is there, or is started now and ended by ``within``; none without one."""
    if asked.vllm_port is not None:
        return int(asked.vllm_port)
    if asked.vllm is None or not asked.vllm.exists():
        print("vLLM is left out: give the Python it is installed for with --vllm.", flush=True)
        return None
    folder = saved_base(base, plain, asked.dtype)
    words = plain_words(folder, asked.dtype)
    return within.enter_context(VllmServer(asked.vllm, folder.with_suffix(".log"), words)).port


def _vllm_prompts(asked: argparse.Namespace, base: Base, library: Path, within: ExitStack) -> int | None:
    """The port of a vLLM that knows prompts by name, started now; none without a Python for it."""
    if asked.vllm is None or not asked.vllm.exists():
        print("vllm-prompts is left out: give the Python vLLM and softprompt are installed for with --vllm.")
        return None
    return within.enter_context(prompts_server(asked.vllm, base, library)).port


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--only", type=_names(LOADS), default=list(LOADS), help=_listed(LOADS))
    parser.add_argument("--sides", type=_names(ENTRIES), default=list(ENTRIES), help=_listed(ENTRIES))
    parser.add_argument(
        "--clients", type=_numbers, default=list(CLIENTS), help="how many at a time, by commas"
    )
    parser.add_argument("--requests", type=int, default=64, help="of all clients together, in a repeat")
    parser.add_argument("--few", type=int, help="requests to PEFT, which is slow; as many by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checked", type=int, default=16, help="answers held against the reference")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda")
    parser.add_argument("--vllm", type=Path, help="the Python that vLLM is installed for")
    parser.add_argument("--vllm-port", type=int, help="the port of one that runs already")
    parser.add_argument("--resume", action="store_true", help="leave out what the results hold already")
    parser.add_argument("--report", action="store_true", help="measure nothing, only print")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where lines are added")
    asked = parser.parse_args(given)
    asked.few = asked.few or asked.requests
    return asked


def _listed(names: Iterable[str]) -> str:
    return "of " + ",".join(names)


def _names(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    asked = arguments()
    if asked.report:
        print("\n".join(map(show, latest(read(asked.out)).values())))
    else:
        run(asked)
    print("\n".join(bars(read(asked.out))))


if __name__ == "__main__":
    main()
