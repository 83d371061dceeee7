"""A long prefix brought down to few positions: rows attend behind these as behind all of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import tiny
from softprompt.base import matching
from softprompt.base.looking import most_attended
from softprompt.base.matching import Matching
from softprompt.base.model import Base, Batch
from softprompt.base.packing import TokenRow
from softprompt.base.turning import picked
from softprompt.errors import BaseModelError, DataError
from softprompt.methods.attended import attention_to
from softprompt.prefix import Prefix

ROWS = [TokenRow((50, 51, 52, 53)), TokenRow((60, 61, 62), 2), TokenRow((70, 71, 72, 73, 74, 75), 4)]
FAMILIES = ("llama", "gpt-neox", "qwen3", "gemma3", "gemma4", "qwen3-next", "lfm2")


def whole(base: Base) -> Prefix:
    return base.prefill(base.embed(range(1, 41)))


def gap(base: Base, prefix: Prefix) -> float:
    """How far hidden states at every token of the rows are from those behind the whole prefix."""
    every = [(number, token) for number, row in enumerate(ROWS) for token in range(len(row.ids))]
    with torch.no_grad():
        found, wanted = (base.hidden([Batch(ROWS, front)], [every]) for front in (prefix, whole(base)))
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_more_positions_the_nearer_and_all_of_them_are_the_prefix_itself(architecture: str) -> None:
    base = tiny.base(architecture)
    found = Matching(base, whole(base), ROWS)
    for ours, theirs in zip(found.to(40).tensors, whole(base).tensors, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    kept = picked(base, whole(base), most_attended(attention_to(base, whole(base), ROWS), 20))
    few, some, many = (gap(base, found.to(count)) for count in (8, 20, 30))
    assert many < some < few
    assert some < 0.9 * gap(base, kept)


def test_each_head_keeps_what_it_looks_at_and_the_first_position(monkeypatch: pytest.MonkeyPatch) -> None:
    base, row = tiny.base(), [TokenRow((50, 51, 52, 53), 3)]
    chosen: list[Tensor] = []

    def seen(base: Base, prefix: Prefix, places: Sequence[Tensor]) -> Prefix:
        chosen.extend(places)
        return picked(base, prefix, places)

    monkeypatch.setattr(matching, "picked", seen)
    Matching(base, whole(base), row).to(5)
    eager = tiny.model("llama")
    eager.set_attn_implementation("eager")
    ids = torch.tensor([[*range(1, 41), *row[0].ids]])
    weights = eager(ids, output_attentions=True).attentions  # L x [1, H, 44, 44]
    heads = whole(base).keys[0].shape[0]
    for layer, places in zip(weights, chosen, strict=True):
        looks = 0.05 * layer[0, :, 40:42, :40].sum(1) + layer[0, :, 42:, :40].sum(1)  # [H, 40]
        looks = looks.unflatten(0, (heads, -1)).sum(1)
        looks[:, 0] = torch.inf
        assert torch.equal(places, looks.topk(5).indices.sort().values)


def test_values_are_those_of_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weights, values, emphasis = torch.rand(2, 90, 7), torch.randn(2, 7, 5), torch.rand(30)
    monkeypatch.setattr(matching, "_RIDGE", 1e-12)
    found = matching._least_squares(weights, weights @ values, emphasis)
    torch.testing.assert_close(found.float(), values, atol=1e-4, rtol=1e-4)
    noisy = weights @ values + torch.randn(2, 90, 5)
    root = emphasis.sqrt().repeat(3)[:, None].double()
    wanted = torch.linalg.lstsq(root * weights.double(), root * noisy.double()).solution
    torch.testing.assert_close(
        matching._least_squares(weights, noisy, emphasis), wanted, atol=1e-6, rtol=1e-6
    )


def test_a_row_longer_than_all_that_is_matched_is_matched_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base()
    alone = Matching(base, whole(base), ROWS[:1]).to(6)
    monkeypatch.setattr(matching, "_TOKENS", 3)
    assert Matching(base, whole(base), ROWS).to(6).digest == alone.digest


def test_what_cannot_be_matched_is_said() -> None:
    base = tiny.base()
    with pytest.raises(DataError, match="no rows to see"):
        Matching(base, whole(base), [TokenRow(())])
    for architecture in ("bloom", "mamba2", "deepseek-v3"):
        base = tiny.base(architecture)
        with pytest.raises(BaseModelError, match=r"attend|attention"):
            Matching(base, whole(base), ROWS)
    base = tiny.base("gpt2")
    with pytest.raises(BaseModelError, match="cannot be moved"):
        Matching(base, whole(base), ROWS).to(6)
