"""What it costs to hold answers to a grammar: tokens a second at 32 clients, free and held, in turns.

    python benchmarks/structured.py [--clients 32] [--tokens 64] [--repeats 5]

Each client asks SmolLM2-135M for its next answer when its last has come. Free answers have exactly
``--tokens`` tokens, the end token ignored; held ones follow a schema of many people, each client's with names
of its own, and are cut at the same length, so both do the same work but for the grammar. Then answers to a
schema that ends are asked for, and each is held against it. Adds a line to ``results/structured.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.generation.grammar import Grammar
from softprompt.generation.request import Event, Finished, RequestFailed, TextDelta
from softprompt.generation.sampler import Sampling
from softprompt.serving.engine import Engine
from softprompt.serving.version import Version

RESULTS = Path(__file__).parent.parent / "results" / "structured.jsonl"
TEXT = "Write down the people in the room as JSON, each with a name, an age, a mood and a list of tags.\n"


def schema(number: int, least: int, most: int) -> dict[str, Any]:
    """People of client ``number``, of whom there are at least and at most so many."""
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            f"mood_{number}": {"enum": ["glad", "sad", "calm"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
        },
        "required": ["name", "age", f"mood_{number}", "tags"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": person, "minItems": least, "maxItems": most}


def answer(
    engine: Engine, version: Version, grammar: Grammar | None, tokens: int, row: int
) -> tuple[str, int]:
    """One answer, waited for: its text and how many tokens it has."""
    sampling = Sampling(max_new_tokens=tokens, ignore_end=grammar is None, temperature=0.7, seed=1)
    request = version.generate(version.model.encode(TEXT), sampling, row=row, grammar=grammar)
    done, pieces, last = threading.Event(), list[str](), list[Event]()

    def tell(event: Event) -> None:
        if isinstance(event, TextDelta):
            pieces.append(event.text)
        if isinstance(event, Finished | RequestFailed):
            last.append(event)
            done.set()

    engine.submit(request, tell, block=True)
    done.wait()
    if isinstance(last[0], RequestFailed):
        raise last[0].error
    assert isinstance(last[0], Finished)
    return "".join(pieces), last[0].completion_tokens


def rate(engine: Engine, version: Version, grammars: list[Grammar | None], tokens: int, rounds: int) -> float:
    """Tokens a second over all clients."""

    def client(number: int) -> int:
        asked = range(rounds)
        return sum(answer(engine, version, grammars[number], tokens, number + 1000 * n)[1] for n in asked)

    begun = time.perf_counter()
    with ThreadPoolExecutor(len(grammars)) as pool:
        written = sum(pool.map(client, range(len(grammars))))
    return written / (time.perf_counter() - begun)


def valid(engine: Engine, base: Base, version: Version, clients: int) -> int:
    """How many of as many answers as clients fit a schema that ends."""
    import jsonschema_rs

    schemas = [schema(number, 1, 1) for number in range(clients)]
    grammars = [Grammar.of_schema(base, one) for one in schemas]
    with ThreadPoolExecutor(clients) as pool:
        found = pool.map(lambda n: answer(engine, version, grammars[n], 400, n), range(clients))
        return sum(
            jsonschema_rs.is_valid(one, json.loads(said))
            for one, (said, _) in zip(schemas, found, strict=True)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    asked = parser.parse_args()
    base = load_base("smollm2-135m", dtype=asked.dtype, device="cpu")
    with Engine(base, "prompts", rows=asked.clients) as engine:
        lease = engine.registry.lease(engine.base.name)
        begun = time.perf_counter()
        held: list[Grammar | None] = [
            Grammar.of_schema(base, schema(number, 40, 50)) for number in range(asked.clients)
        ]
        compiled = (time.perf_counter() - begun) / asked.clients
        free: list[Grammar | None] = [None] * asked.clients
        rates: dict[str, list[float]] = {"free": [], "held": []}
        rate(engine, lease.version, held, 8, 1)
        for _ in range(asked.repeats):
            for name, grammars in (("free", free), ("held", held)):
                rates[name].append(rate(engine, lease.version, grammars, asked.tokens, 1))
                print(f"{name:<6}{rates[name][-1]:8.0f} tokens a second", flush=True)
        fit = valid(engine, base, lease.version, asked.clients)
        lease.close()
    shares = [theirs / mine for mine, theirs in zip(rates["free"], rates["held"], strict=True)]
    found = {
        "clients": asked.clients,
        "tokens": asked.tokens,
        "dtype": asked.dtype,
        "rates": rates,
        "cost": 1 - statistics.median(shares),
        "compile_seconds": compiled,
        "valid": fit,
    }
    print(f"cost  {found['cost']:8.1%} (by repeat: {', '.join(f'{1 - share:.1%}' for share in shares)})")
    print(f"a schema compiles in {1000 * compiled:.1f} ms; {fit} of {asked.clients} answers fit theirs")
    with RESULTS.open("a") as file:
        file.write(json.dumps({**found, **describe()}) + "\n")


if __name__ == "__main__":
    main()
