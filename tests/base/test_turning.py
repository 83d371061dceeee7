"""Keys moved to other places are those the model itself would have computed there."""

from __future__ import annotations

import pytest
import torch

import tiny
from softprompt.base.cache import Recorder
from softprompt.base.turning import picked
from softprompt.errors import BaseModelError
from softprompt.prefix import Prefix


def read(architecture: str, ids: list[int], first: int) -> Prefix:
    """What a model remembers of ids that stand from position ``first`` on."""
    base, recorder = tiny.base(architecture), Recorder()
    with torch.no_grad():
        at = torch.arange(first, first + len(ids))[None]
        base.run(input_ids=torch.tensor([ids]), position_ids=at, cache=recorder)
    pairs = [recorder.pairs[layer] for layer in sorted(recorder.pairs)]
    keys, values = (tuple(pair[side][0] for pair in pairs) for side in (0, 1))
    return Prefix(keys, values, None, base.fingerprint)


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox", "mistral", "qwen3", "gemma3"])
def test_turned_keys_are_those_of_the_other_place(architecture: str) -> None:
    # three tokens that are read far off and three that are read at the front have equal hidden states
    far = read(architecture, [9, 8, 7], 40)
    shifted = Prefix(
        tuple(torch.cat([torch.zeros_like(k).repeat(1, 14, 1)[:, :40], k], 1) for k in far.keys),
        tuple(torch.cat([torch.zeros_like(v).repeat(1, 14, 1)[:, :40], v], 1) for v in far.values),
        None,
        far.base,
    )
    wanted = read(architecture, [9, 8, 7], 0)
    found = picked(tiny.base(architecture), shifted, [[40, 41, 42]] * 3)
    for ours, theirs in zip((*found.keys, *found.values), (*wanted.keys, *wanted.values), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_layers_choose_by_themselves() -> None:
    base = tiny.base()
    whole = base.prefill_text("abcdefgh")
    found = picked(base, whole, [[0, 1], [0, 5], [0, 7]])
    assert found.length == 2
    for layer, place in enumerate((1, 5, 7)):
        assert torch.equal(found.values[layer][:, 1], whole.values[layer][:, place])
        assert torch.equal(found.keys[layer][:, 0], whole.keys[layer][:, 0])


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_a_model_whose_keys_hold_their_place_is_refused(architecture: str) -> None:
    base = tiny.base(architecture)
    with pytest.raises(BaseModelError, match="cannot be moved"):
        picked(base, base.prefill_text("abcdefgh"), [[0, 5]] * 3)


def test_what_stays_in_its_place_is_never_turned() -> None:
    base = tiny.base("gpt2")
    whole = base.prefill_text("abcdefgh")
    assert picked(base, whole, [[0, 1, 2]] * 3).length == 3
