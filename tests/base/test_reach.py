"""How far a base can be read, and that no row beyond it changes what its neighbours read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import tiny
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.base.reach import Reach
from softprompt.checkpoints.freeze import freeze
from softprompt.errors import BaseModelError
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling

LLAMA = tiny.CONFIGS["llama"]().to_dict()
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16, **FACTORS}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}


def llama(most: int, turns: dict[str, Any]) -> Any:
    return transformers.LlamaConfig(**{**LLAMA, "max_position_embeddings": most, "rope_parameters": turns})


@pytest.fixture(params=["longrope", "dynamic"])
def base(request: pytest.FixtureRequest) -> Base:
    """A base of 16 positions, whose frequencies are others where one row is longer."""
    torch.manual_seed(0)
    config = llama(64, LONG) if request.param == "longrope" else llama(16, DYNAMIC)
    return freeze(transformers.AutoModelForCausalLM.from_config(config), tiny.tokenizer(), "tiny-rope")


def test_the_bound_is_where_the_frequencies_change() -> None:
    assert Reach.of(llama(64, LONG)) == Reach(16, firm=True)
    assert Reach.of(llama(16, DYNAMIC)) == Reach(16, firm=True)
    assert Reach.of(llama(64, YARN)) == Reach(64)
    assert Reach.of(tiny.CONFIGS["gpt2"]()) == Reach(512)
    assert Reach.of(tiny.CONFIGS["gemma3"]()) == Reach(512)
    assert Reach.of(tiny.CONFIGS["bloom"]()) == Reach(None)
    layers = ["full_attention", "sliding_attention"]
    mixed = tiny.CONFIGS["gemma3"]()
    mixed.rope_parameters = dict(zip(layers, [LONG, YARN], strict=True))
    assert Reach.of(mixed) == Reach(16, firm=True)


def test_a_row_too_long_is_refused_and_leaves_no_trace(base: Base) -> None:
    assert base.max_positions == 16
    front = base.embed((4, 5, 6))
    short, whole = TokenRow((8, 9, 10), 1), TokenRow(tuple(range(4, 17)), 1)
    too_long = TokenRow(tuple(range(4, 18)), 1)
    with torch.no_grad():
        alone = base.nll([short], front).nll
        for before in (front, base.prefill(front)):
            with pytest.raises(BaseModelError, match=r"needs 17 positions, but tiny-rope holds 16.*shorten"):
                base.nll([short, too_long], before)
            torch.testing.assert_close(base.nll([short, whole], before).per_row()[0], alone.sum())
        with pytest.raises(BaseModelError, match="needs 17 positions"):
            base.prefill(base.embed(tuple(range(4, 21))))


def test_an_answer_too_long_is_refused(base: Base) -> None:
    def request(tokens: int) -> GenerateRequest:
        prefix, how = base.prefill(base.embed((4, 5, 6))), Sampling(max_new_tokens=tokens)
        return GenerateRequest(model=base, prefix=prefix, ids=(8, 9, 10), sampling=how)

    with pytest.raises(BaseModelError, match="16"):
        generate([request(11)])
    generate([request(10)])


def test_other_bases_may_go_beyond_what_they_were_built_for() -> None:
    base = tiny.base("llama")
    long = TokenRow(tuple(4 + n % 90 for n in range(600)), 599)
    assert torch.isfinite(base.nll([long], base.embed(())).nll).all()
