"""With ``batch_invariant`` an answer has the same bits alone and in any company, in bfloat16, too."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from generation.asking import Asked, compare, some_ids, until_over, write
from library import samples
from serving import solo
from softprompt.base import batch_invariant
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import freeze
from softprompt.errors import ConfigError
from softprompt.generation.scheduler import Scheduler
from softprompt.serving.engine import Engine
from softprompt.serving.version import Version

ARCHITECTURES = ("llama", "gpt2", "gemma3", "qwen3")
TOKENS = 40


def served(
    architecture: str, folder: Path, dtype: torch.dtype = torch.bfloat16
) -> tuple[Base, list[Version]]:
    """A base and prompts of every kind on it, as an engine serves them."""
    base = tiny.base(architecture, 0, dtype)
    with torch.no_grad():
        solo.prompt(base, "soft", samples.soft(base, 3, 4).to(dtype)).save(folder)
        samples.lora(base, "tuned").save(folder)
        samples.lora(base, "wide", positions=2, seed=8, rank=5).save(folder)
        samples.ia3(base, "vectors").save(folder)
        samples.full(base, "whole").save(folder)
    with Engine(base, folder, pack=False) as engine:
        found = [engine.registry.lease(name) for name in (base.name, *engine.library.names())]
        return engine.base, [lease.version for lease in found]


def bits(one: Asked) -> list[tuple[int, float | None]]:
    assert one.error is None
    return [(said.id, said.logprob) for said in one.said]


def told(base: Base, asked: Sequence[tuple[Version, tuple[int, ...]]], **options: Any) -> list[Any]:
    """Tokens and their likelihoods, of requests that are answered together."""
    own = Scheduler(base, batch_invariant=True, **options)
    all_of = [write(own, version, ids, TOKENS, logprobs=1, row=n) for n, (version, ids) in enumerate(asked)]
    until_over(own, *all_of)
    return [bits(one) for one in all_of]


@pytest.fixture(params=ARCHITECTURES)
def house(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Base, list[Version]]:
    return served(request.param, tmp_path)


def test_an_answer_has_the_same_bits_alone_and_among_31_others(house: tuple[Base, list[Version]]) -> None:
    base, versions = house
    draw = random.Random(5)
    asked = [(versions[n % len(versions)], some_ids(draw, draw.randint(3, 90))) for n in range(32)]
    together = told(base, asked)
    few_places = told(base, asked, rows=5, chunk=7)  # texts in pieces of 7, and rows that come later
    assert few_places == together
    for n in range(0, 32, 3):
        own = Scheduler(base, batch_invariant=True)
        one = write(own, *asked[n], TOKENS, logprobs=1, row=n)
        until_over(own, one)
        assert bits(one) == together[n], f"{asked[n][0].name} with {len(asked[n][1])} tokens"


def test_rows_that_are_set_aside_and_read_again_go_on_with_the_same_bits(
    house: tuple[Base, list[Version]],
) -> None:
    base, versions = house
    draw = random.Random(6)
    asked = [(versions[n % len(versions)], some_ids(draw, 30)) for n in range(8)]
    assert told(base, asked, room=448) == told(base, asked)


def test_what_is_scored_has_the_same_bits_in_any_company(house: tuple[Base, list[Version]]) -> None:
    base, versions = house
    draw = random.Random(7)
    candidates = [(5, 9, 12), (5, 10), (7,)]
    texts = [some_ids(draw, 50) for _ in versions]

    def scored(own: Scheduler, n: int) -> Asked:
        return compare(own, versions[n], texts[n], candidates, whole=True)

    own = Scheduler(base, batch_invariant=True)
    together = [scored(own, n) for n in range(len(versions))]
    until_over(own, *together, *[write(own, versions[0], texts[1], 9)])
    for n, one in enumerate(together):
        alone = Scheduler(base, batch_invariant=True)
        other = scored(alone, n)
        until_over(alone, other)
        assert other.likelihoods == one.likelihoods


def test_without_it_company_shows_in_bfloat16(tmp_path: Path) -> None:
    """What the others guard against does happen; otherwise they would prove nothing."""
    base, (version, *_) = served("llama", tmp_path)
    draw = random.Random(5)
    texts = [some_ids(draw, 60) for _ in range(32)]
    own = Scheduler(base)
    together = [write(own, version, ids, TOKENS, logprobs=1) for ids in texts]
    until_over(own, *together)
    apart = []
    for ids in texts:
        own = Scheduler(base)
        apart.append(write(own, version, ids, TOKENS, logprobs=1))
        until_over(own, apart[-1])
    assert [bits(one) for one in apart] != [bits(one) for one in together]


def test_a_base_that_cannot_keep_it_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gives other bits in other company"):
        Engine(tiny.base("bloom"), tmp_path, batch_invariant=True)  # its rows cannot lie in one
    base = freeze(tiny.model("llama"), tiny.tokenizer(), "mixed")
    assert batch_invariant.holds(base)
    base.model.model.layers[0].register_forward_hook(
        lambda _, __, out: out + 1e-3 * out.mean(1, keepdim=True)
    )
    assert not batch_invariant.holds(base)
