"""Changes that rows carry: what PEFT gives each of them alone, and not a bit for those that carry nothing."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

import tiny
from library import samples
from softprompt.base.copies import linear_layers
from softprompt.base.kv_pool import Chunk, KVPool
from softprompt.base.lowrank import LayerChange, LowRank, Riders, ridden
from softprompt.base.model import Base
from softprompt.library.folder import Library

ROWS = ((5, 9, 33), (7, 7, 80, 21, 4, 60, 11), (90,), (12, 13, 14, 15))
"""Rows of one and of several tokens, so that pool read both kinds."""


def carried(architecture: str, folder: Path, name: str, seed: int, **settings: Any) -> LowRank:
    """A random adapter, saved in PEFT's format in ``folder`` and loaded as rows carry it."""
    base = tiny.base(architecture)
    samples.lora(base, name, 0, seed, **settings).save(folder)
    ride = Library(folder).load_named(name).payload.ride(base)
    assert ride is not None
    assert ride.change is not None
    return ride.change


def of_peft(architecture: str, folder: Path) -> Tensor:
    """PEFT's own logits [V] after each of ``ROWS``."""
    return plain(peft.PeftModel.from_pretrained(tiny.model(architecture), folder).eval())


@torch.no_grad()
def plain(model: Any) -> Tensor:
    """Logits [B, V] after each of ``ROWS``, one at a time."""
    return torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1] for row in ROWS])


@functools.cache
def served(architecture: str) -> Base:
    return ridden(tiny.base(architecture))


@torch.no_grad()
def mixed(base: Base, riders: Riders, changes: Sequence[LowRank | None], first: int = 1) -> Tensor:
    """Logits [B, V] after ``ROWS`` in pool, each with its change; the ``first`` tokens, then the rest."""
    pool = KVPool(base)
    nothing = base.prefill(base.embed(()))
    places = [pool.open(nothing, len(row)) for row in ROWS]

    def read(texts: Sequence[Sequence[int]]) -> dict[int, Tensor]:
        some = [n for n, text in enumerate(texts) if text]
        chunks = [Chunk(place, texts[n]) for n, place in enumerate(places) if place is not None and texts[n]]
        found = pool.read(chunks, lambda owners: riders.seated([changes[some[owner]] for owner in owners]))
        return {n: hidden[-1] for n, hidden in zip(some, found, strict=True)}

    begun = read([row[:first] for row in ROWS])
    ended = begun | read([row[first:] for row in ROWS])
    return base.head.logits(torch.stack([ended[n] for n in range(len(ROWS))]))


def close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("variant", samples.VARIANTS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "opt", "gemma3"])
def test_every_row_gets_what_peft_gives_it(architecture: str, variant: str, tmp_path: Path) -> None:
    base, riders = served(architecture), Riders()
    settings = samples.VARIANTS[variant]
    changes = [carried(architecture, tmp_path, f"r{rank}", rank, rank=rank, **settings) for rank in (1, 5)]
    wanted = [of_peft(architecture, tmp_path / f"r{rank}") for rank in (1, 5)]
    bare = plain(tiny.model(architecture))
    assert not close(wanted[0], bare)
    found = mixed(base, riders, [changes[0], None, changes[1], changes[0]])
    assert close(found, torch.stack([wanted[0][0], bare[1], wanted[1][2], wanted[0][3]]))
    assert close(mixed(base, riders, [None] * 4), bare)
    assert close(mixed(base, riders, [changes[1]] * 4, first=2), wanted[1])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_vectors_of_ia3_ride_beside_adapters(architecture: str, tmp_path: Path) -> None:
    base, plain_base = served(architecture), tiny.base(architecture)
    for seed in (1, 2):
        samples.ia3(plain_base, f"v{seed}", 0, seed).save(tmp_path)
    samples.lora(plain_base, "dora", 0, 3, dora=True).save(tmp_path)
    names = ["v1", "dora", "v2"]
    rides = [Library(tmp_path).load_named(name).payload.ride(plain_base) for name in names]
    changes = [ride and ride.change for ride in rides]
    wanted = [of_peft(architecture, tmp_path / name) for name in names]
    bare = plain(tiny.model(architecture))
    assert not close(wanted[0], bare)
    found = mixed(base, Riders(), [*changes, None])
    assert close(found, torch.stack([wanted[0][0], wanted[1][1], wanted[2][2], bare[3]]))
    riders = Riders()
    assert close(mixed(base, riders, [changes[0]] * 4), wanted[0])  # alone, where no product has a rank
    assert close(mixed(base, riders, [None] * 4), bare)


def test_kinds_ranks_and_layers_may_differ_within_a_pass(tmp_path: Path) -> None:
    base = served("llama")
    kinds: dict[str, dict[str, Any]] = {
        "few": {"targets": ["q_proj", "down_proj"], "rank": 3},
        "wide": {"rank": 8},
        "dora": {"dora": True, "targets": ["q_proj", "v_proj"]},
        "rslora": {"rslora": True, "rank": 4},
    }
    changes = [
        carried("llama", tmp_path, name, seed, **kind) for seed, (name, kind) in enumerate(kinds.items())
    ]
    wanted = [of_peft("llama", tmp_path / name)[n] for n, name in enumerate(kinds)]
    assert close(mixed(base, Riders(), changes), torch.stack(wanted))


def test_tokens_that_carry_nothing_stay_as_they_are_to_the_bit(tmp_path: Path) -> None:
    base = served("opt")  # layers with biases, which DoRA scales around
    lora, dora = (carried("opt", tmp_path, n, 4, dora=n == "dora") for n in ("lora", "dora"))
    x = torch.randn(9, base.width, generator=torch.Generator().manual_seed(0))
    layers = [base.model.get_submodule(name) for name in linear_layers(tiny.base("opt"))]
    layers = [layer for layer in layers if layer.weight.shape[1] == base.width]
    bare = [layer(x) for layer in layers]
    with Riders().seated([lora, None, None, dora, None, lora, None, dora, None]):
        found = [layer(x) for layer in layers]
    carrying = torch.tensor([0, 3, 5, 7])
    free = torch.tensor([1, 2, 4, 6, 8])
    for mine, theirs in zip(found, bare, strict=True):
        assert torch.equal(mine[free], theirs[free])
        assert not torch.isclose(mine[carrying], theirs[carrying]).all(1).any()


def test_a_change_that_overflows_stays_in_its_own_rows(tmp_path: Path) -> None:
    base, riders = served("llama"), Riders()
    good = carried("llama", tmp_path, "good", 3)
    huge = LowRank({n: LayerChange(c.down * 1e30, c.up * 1e30) for n, c in good.layers.items()})
    alone = mixed(base, riders, [good, None, None, good])
    found = mixed(base, riders, [good, huge, None, good])
    assert not bool(torch.isfinite(found[1]).all())
    assert close(found[[0, 2, 3]], alone[[0, 2, 3]])


def test_seats_are_taken_again_and_never_more_than_needed(tmp_path: Path) -> None:
    base, riders = served("llama"), Riders()
    changes = [carried("llama", tmp_path, f"a{n}", n, rank=1 + n % 3) for n in range(7)]
    wanted = [of_peft("llama", tmp_path / f"a{n}") for n in range(7)]
    draw = torch.Generator().manual_seed(1)
    for _ in range(12):
        picked = torch.randint(-1, 7, (4,), generator=draw).tolist()
        found = mixed(base, riders, [None if n < 0 else changes[n] for n in picked])
        for row, n in enumerate(picked):
            assert close(found[row], plain(tiny.model("llama"))[row] if n < 0 else wanted[n][row])
        assert len(riders._seats) <= 4
    assert all(len(table.owners) <= 4 * 3 for table in riders._tables.values())


def test_a_change_that_comes_back_finds_its_seat(tmp_path: Path) -> None:
    base, riders = served("llama"), Riders()
    one, other = (carried("llama", tmp_path, f"a{n}", n) for n in range(2))
    mixed(base, riders, [one, other, None, None])
    table = riders._tables[next(iter(riders._tables))]
    laid = table.down.clone()
    mixed(base, riders, [None, other, None, None])
    mixed(base, riders, [one, None, None, other])
    assert riders._tables[next(iter(riders._tables))] is table
    assert torch.equal(table.down, laid)


def test_who_is_seated_is_forgotten_when_the_pass_is_over_or_fails(tmp_path: Path) -> None:
    base, riders = served("llama"), Riders()
    change = carried("llama", tmp_path, "a", 1)
    layer = base.model.get_submodule(next(iter(change.layers)))
    x = torch.ones(2, layer.weight.shape[1])
    bare = layer(x)
    with riders.seated([change, change]):
        assert not torch.equal(layer(x), bare)
    with pytest.raises(RuntimeError), riders.seated([change, change]):
        layer(x[:, 1:])
    assert torch.equal(layer(x), bare)
    with riders.seated([None, None]):
        assert torch.equal(layer(x), bare)


def test_another_thread_does_not_see_who_is_seated(tmp_path: Path) -> None:
    """Prompts are prefilled by loading threads while the engine is in a pass."""
    base, riders = served("llama"), Riders()
    change = carried("llama", tmp_path, "a", 1)
    rows = samples.ROWS
    with torch.no_grad():
        nothing = base.prefill(base.embed(()))
        bare, seen = base.next_logits(rows, nothing), list[Tensor]()

        def read() -> None:
            with torch.no_grad():
                seen.append(base.next_logits(rows, nothing))

        with riders.seated([change] * 3):
            thread = threading.Thread(target=read)
            thread.start()
            thread.join()
    assert torch.equal(seen[0], bare)


def test_the_base_it_was_made_from_is_as_it_was(tmp_path: Path) -> None:
    base = tiny.base("gpt2")
    before, kinds = samples.bytes_of(base), [type(m) for m in base.model.modules()]
    copy = ridden(base)
    change = carried("gpt2", tmp_path, "a", 1)
    with torch.no_grad():
        wanted = base.next_logits(samples.ROWS, base.prefill_text("ab"))
        mixed(copy, Riders(), [change] * 4)
        assert torch.equal(base.next_logits(samples.ROWS, base.prefill_text("ab")), wanted)
    assert samples.bytes_of(base) == before
    assert [type(m) for m in base.model.modules()] == kinds
    assert copy.fingerprint == base.fingerprint
    assert change.rank == 2
    assert change.nbytes == sum(t.numel() * 4 for c in change.layers.values() for t in (c.down, c.up))
