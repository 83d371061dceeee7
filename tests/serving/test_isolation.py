"""Nobody notices the others: whatever else an engine is asked, an answer is the one its prompt gives alone.

Soft prompts, trained keys and values, LoRA, rsLoRA, DoRA, a fully fine-tuned model and the bare base share
one engine, and mostly one pass. Each answer must be, token for token, that of plain transformers or PEFT
given this one request (``serving.solo``), while others come, go, are called off, give NaN, or lose the
artifact they began with.
"""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from generation.asking import Asked, some_ids, write
from library import samples
from serving import solo
from softprompt.errors import BaseModelError, CancelledJobError
from softprompt.serving.engine import Engine
from softprompt.serving.version import Version

ARCHITECTURES = ("llama", "gpt2", "bloom", "gemma3", "qwen3", "mistral")
"""Rotated, learnt and ALiBi positions; Conv1D layers; padded masks; windows; normalised queries."""

SMALL: dict[str, Any] = {"rows": 6, "chunk": 5}
"""So few rows that slots are used again and again; texts of up to 60 tokens take up to 12 passes."""


class House:
    """An engine over prompts of every kind, and what each of them answers alone."""

    def __init__(self, architecture: str, library: Path) -> None:
        self.base, self.library = tiny.base(architecture), library
        self.solos = solo.fill(library, architecture)

    def engine(self, **options: Any) -> Engine:
        return Engine(self.base, self.library, **(SMALL | options))


@functools.cache
def built(architecture: str, folder: Path) -> House:
    return House(architecture, folder / architecture)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


@pytest.fixture(params=ARCHITECTURES)
def house(request: pytest.FixtureRequest, folder: Path) -> House:
    return built(request.param, folder)


@pytest.fixture
def engine(house: House) -> Iterator[Engine]:
    with house.engine() as started:
        yield started


def version(engine: Engine, name: str) -> Version:
    """What a name means now; it stays what it is after the lease."""
    with engine.registry.lease(name) as found:
        return found


def versions(engine: Engine, house: House) -> dict[str, Version]:
    return {name: version(engine, name) for name in house.solos}


def check(house: House, asked: list[tuple[str, Asked]]) -> None:
    """Hold every answer against the one its prompt gives alone."""
    for name, one in asked:
        said = one.wait().tokens
        assert one.error is None
        assert len(said) == one.generation.sampling.max_new_tokens
        ids = one.request.ids
        assert said == house.solos[name].greedy(ids, said), f"{name} after {len(ids)} tokens"


def poisons(engine: Engine) -> list[Version]:
    """Prompts no trainer should make: vectors far too large, and keys and values that are no numbers."""
    base = engine.base
    with torch.no_grad():
        huge = base.prefill(torch.full((3, base.width), 1e30))
        sound = base.prefill(samples.soft(base))
    numbers = (torch.nan, torch.inf, -torch.inf)
    bad = tuple(torch.full_like(k, value) for k, value in zip(sound.keys, numbers, strict=True))
    broken = replace(sound, keys=bad, values=bad)
    return [Version(f"poison-{n}", "00", None, p, None, base, 0) for n, p in enumerate((huge, broken))]


def test_every_answer_of_a_busy_engine_is_the_solo_answer(engine: Engine, house: House) -> None:
    draw, known = random.Random(1), versions(engine, house)
    asked: list[tuple[str, Asked]] = []
    for _ in range(4):  # every prompt in every part, in any order, so that neighbours are always others
        for name in draw.sample(sorted(known), len(known)):
            ids = some_ids(draw, draw.randint(1, 60))
            asked.append((name, write(engine, known[name], ids, draw.randint(1, 12))))
    check(house, asked)


def test_drawn_answers_follow_their_own_seed(engine: Engine, house: House) -> None:
    draw, known = random.Random(2), versions(engine, house)
    ids = some_ids(draw, 7)
    asked = [
        (
            name,
            row,
            write(engine, known[name], ids, 6, row=row, temperature=1.3, top_k=20, seed=draw.randrange(99)),
        )
        for name in known
        for row in (0, 1)
    ]
    for name, row, one in asked:
        said = one.wait().tokens
        assert said == house.solos[name].drawn(ids, said, one.generation.sampling, row), name


def test_a_prompt_that_gives_no_numbers_harms_only_itself(engine: Engine, house: House) -> None:
    draw, known = random.Random(3), versions(engine, house)
    asked, poisoned = list[tuple[str, Asked]](), list[tuple[Version, Asked]]()
    for _ in range(2):
        for name in draw.sample(sorted(known), len(known)):
            for poison in poisons(engine):
                poisoned.append((poison, write(engine, poison, some_ids(draw, draw.randint(1, 40)), 6)))
            asked.append((name, write(engine, known[name], some_ids(draw, draw.randint(1, 40)), 8)))
    check(house, asked)
    broken = [one.wait() for poison, one in poisoned if poison.name == "poison-1"]
    assert all(isinstance(one.error, BaseModelError) for one in broken)
    assert "no finite numbers" in str(broken[0].error)


def test_who_comes_after_a_poisoned_row_finds_its_place_clean(house: House) -> None:
    """A NaN left in a slot that is only masked would reach a short row beside a long one."""
    ids = some_ids(random.Random(4), 3)
    with house.engine(rows=2) as engine:
        bare, poison = version(engine, house.base.name), poisons(engine)[1]
        long = write(
            engine, bare, some_ids(random.Random(5), 50), 60
        )  # shares the bucket, and shows many positions
        for _ in range(2):
            assert write(engine, poison, some_ids(random.Random(6), 60), 40).wait().error is not None
            check(house, [(house.base.name, write(engine, bare, ids, 70))])
        assert long.wait().error is None


def test_rows_of_the_bare_base_do_not_notice_adapters_beside_them(house: House) -> None:
    ids = some_ids(random.Random(7), 30)
    with house.engine() as engine:
        known = versions(engine, house)
        bare = known[house.base.name]
        alone = write(engine, bare, ids, 12, logprobs=3).wait()
        one = write(engine, bare, ids, 12, logprobs=3)
        others = [
            write(engine, known[name], ids[:n], 12) for n, name in enumerate(("lora", "rslora", "dora"), 9)
        ]
        assert one.wait().tokens == alone.tokens
        logprobs = [[said.logprob or 0.0 for said in asked.said] for asked in (one, alone)]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-5)
        assert all(other.wait().tokens != alone.tokens for other in others), "adapters that change nothing"


def test_answers_called_off_leave_the_others_as_they_are(engine: Engine, house: House) -> None:
    draw, known = random.Random(8), versions(engine, house)
    asked: list[tuple[str, Asked]] = []
    for number, name in enumerate(sorted(known) * 2):
        asked.append((name, write(engine, known[name], some_ids(draw, draw.randint(1, 20)), 10)))
        leaving = write(engine, known[draw.choice(sorted(known))], some_ids(draw, draw.randint(1, 60)), 300)
        leaving.until(number % 4).handle.cancel()  # waiting, reading and writing ones
        assert isinstance(leaving.wait().error, CancelledJobError)
        assert len(leaving.tokens) < 300
    check(house, asked)


@pytest.mark.parametrize("name", ["soft", "lora", "whole"])
def test_a_replaced_prompt_finishes_what_it_began(engine: Engine, house: House, name: str) -> None:
    ids, bare = some_ids(random.Random(9), 9), house.base.name
    shutil.copytree(house.library / name, house.library / f"swapped-{name}")
    lease = engine.registry.lease(f"swapped-{name}")
    old = write(engine, lease.version, ids, 40, stay=3).until(3)
    front = samples.soft(house.base, 50)
    solo.prompt(house.base, f"swapped-{name}", front).save(house.library, overwrite=True)
    replacing = version(engine, f"swapped-{name}")
    new = write(engine, replacing, ids, 12)
    beside = write(engine, version(engine, bare), ids, 12)
    old.go_on()
    assert new.wait().tokens == solo.Solo(house.solos[bare].model, front).greedy(ids, new.tokens)
    check(house, [(bare, beside), (name, old)])
    lease.close()
    held = [held.digest for held in engine.registry.loaded() if held.name == f"swapped-{name}"]
    assert held == [replacing.digest], "the old version was to be let go"


def test_no_byte_of_the_base_changes(engine: Engine, house: House) -> None:
    before = samples.bytes_of(house.base)
    known = versions(engine, house)
    asked = [
        write(engine, one, some_ids(random.Random(10), 12), 8) for one in (*known.values(), *poisons(engine))
    ]
    assert all(one.wait().over for one in asked)
    assert samples.bytes_of(house.base) == before
