"""Lines of results: reading and adding them, and the bars that they meet or miss.

It knows lines; it does not know how they were measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["BARS", "Bar", "Cell", "add", "bars", "latest", "read", "show"]


@dataclass(frozen=True)
class Cell:
    """What one side did with one load and so many clients.

    Attributes:
        entry: who answered: a side, or ``softprompt-one`` for softprompt with all requests naming one prompt.
        prompts: how many prompts the requests named.
        turn: the same for cells that were measured in turns with each other.
        requests_per_second, tokens_per_second: medians over the repeats.
        latency_p50, latency_p99: seconds, over all repeats, without each client's first request; none where
            nobody sent a second one.
        speedup: how many times as many requests a second softprompt answered in the same turn.
        seconds: of every repeat.
        checked, same_answers, same_tokens, worst_gap: as in ``serve_check.Agreement``.
    """

    load: str
    entry: str
    prompts: int
    clients: int
    dtype: str
    turn: str
    requests: int
    requests_per_second: float
    tokens_per_second: float
    latency_p50: float | None
    latency_p99: float | None
    speedup: float | None
    seconds: tuple[float, ...]
    checked: int
    same_answers: float
    same_tokens: float
    worst_gap: float

    @property
    def key(self) -> Key:
        return Key(self.load, self.entry, self.clients, self.dtype)


class Key(NamedTuple):
    """Which cell it is."""

    load: str
    entry: str
    clients: int
    dtype: str


class Bar(NamedTuple):
    """softprompt's requests a second over another's, at 32 clients, and how large it should be."""

    load: str
    against: str
    least: float


BARS = (
    Bar("generate", "peft", 6.0),
    Bar("classify-100", "peft", 4.0),
    Bar("generate", "softprompt-one", 0.95),
    Bar("classify-20", "softprompt-one", 0.95),
    Bar("classify-100", "softprompt-one", 0.95),
    Bar("generate", "vllm", 1.2),
    Bar("classify-20", "vllm", 2.0),
    Bar("classify-100", "vllm", 2.0),
)
BAR_CLIENTS = 32


def add(path: Path, cells: Iterable[Cell], about: dict[str, Any]) -> None:
    """Append cells, each a JSON object on a line, with what is known about machine and versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for cell in cells:
            file.write(json.dumps({**asdict(cell), **about}) + "\n")


def read(path: Path) -> list[Cell]:
    """The cells of a file, in order; none where there is no file."""
    if not path.exists():
        return []
    fields = Cell.__dataclass_fields__
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Cell(**{name: _plain(line[name]) for name in fields}) for line in lines]


def latest(cells: Iterable[Cell]) -> dict[Key, Cell]:
    """The last measurement of every cell."""
    return {cell.key: cell for cell in cells}


def bars(cells: Sequence[Cell], dtypes: Iterable[str] = ("float32", "bfloat16")) -> list[str]:
    """A sentence for every bar and number type: met, missed, or what is not measured."""
    return [_bar(cells, bar, dtype) for dtype in dtypes for bar in BARS]


def _bar(cells: Sequence[Cell], bar: Bar, dtype: str) -> str:
    what = f"{dtype}, {bar.load}, {BAR_CLIENTS} clients, at least {bar.least}x {bar.against}"
    other = latest(cells).get(Key(bar.load, bar.against, BAR_CLIENTS, dtype))
    if other is None:
        return f"{what}: not measured."
    ours = _beside(cells, other)
    if ours is None:
        return f"{what}: softprompt was not measured."
    ratio = ours.requests_per_second / other.requests_per_second
    turns = "" if ours.turn == other.turn else "; not measured in turns"
    right = f"answers right: {ours.same_answers:.0%} and {other.same_answers:.0%}"
    return f"{what}: {'met' if ratio >= bar.least else 'missed'}, {ratio:.2f}x ({right}{turns})."


def _beside(cells: Sequence[Cell], other: Cell) -> Cell | None:
    """Softprompt's cell of the same turn, or the latest there is."""
    wanted = Key(other.load, "softprompt", other.clients, other.dtype)
    same = [cell for cell in cells if cell.key == wanted and cell.turn == other.turn]
    return same[-1] if same else latest(cells).get(wanted)


def show(cell: Cell) -> str:
    """One line a person can read."""
    rates = f"{cell.requests_per_second:8.2f} requests/s {cell.tokens_per_second:8.1f} tokens/s"
    waits = (
        "      -       -" if cell.latency_p50 is None else f"{cell.latency_p50:7.2f} {cell.latency_p99:7.2f}"
    )
    ratio = "" if cell.speedup is None or cell.entry == "softprompt" else f"  softprompt {cell.speedup:.2f}x"
    right = f"answers right {cell.same_answers:.0%}, tokens {cell.same_tokens:.1%}, gap {cell.worst_gap:.1e}"
    place = f"{cell.load:12} {cell.clients:2} clients {cell.entry:14}"
    return f"{place} {rates}  p50, p99 {waits} s  {right}{ratio}"


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
