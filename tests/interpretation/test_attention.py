"""The attention told is the one transformers itself computes over the unpacked, unpadded row."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
from interpretation.test_ablation import front, labelled
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.data.rows import Encoded, Example
from softprompt.errors import BaseModelError, DataError
from softprompt.interpretation import attention as module
from softprompt.interpretation.attention import attention

ALL = sorted(set(tiny.ARCHITECTURES))


def plain(architecture: str, base: Base, before: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
    """Mean over rows and heads of what the last token, and all tokens, pay to the front: [L, P] each."""
    model = tiny.model(architecture)
    model.set_attn_implementation("eager")
    last, mean = [], []
    for row in encoded.examples:
        embeds = torch.cat([before, base.embed(row.input_ids)])[None]
        with torch.no_grad():
            out = model(inputs_embeds=embeds, output_attentions=True, use_cache=False)
        weights = torch.stack([layer[0].mean(0) for layer in out.attentions])  # [L, P + T, P + T]
        seen = weights[:, len(before) :, : len(before)]
        last.append(seen[:, -1])
        mean.append(seen.mean(1))
    return torch.stack(last).mean(0), torch.stack(mean).mean(0)


@pytest.mark.parametrize("architecture", ALL)
def test_attention_is_transformers_own(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, rows = tiny.base(architecture), labelled()
    before = front(base)
    monkeypatch.setattr(module, "_TOKENS", 20)  # several passes
    found = attention(base, before, rows)
    last, mean = plain(architecture, base, before, rows)
    torch.testing.assert_close(torch.tensor(found.last), last, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(torch.tensor(found.mean), mean, rtol=1e-3, atol=1e-5)
    assert found.rows == len(rows.examples)
    assert found.layers == 3


def test_a_prefix_read_from_vectors_gets_what_the_vectors_get() -> None:
    base, rows = tiny.base(), labelled()
    found = [attention(base, f, rows) for f in (front(base), base.prefill(front(base)))]
    assert found[0] == found[1]


def test_what_lies_beyond_the_window_is_not_looked_at() -> None:
    """Mistral looks back 6 positions."""
    base, rows = tiny.base("mistral"), labelled(3)
    prefix = base.prefill(front(base, 9))
    still = replace(prefix, keys=tuple(torch.zeros_like(k) for k in prefix.keys), hidden=None)
    found = attention(base, still, rows)
    for layer in found.last:
        assert layer[:4] == (0, 0, 0, 0)
        assert layer[8] > 0
    assert attention(base, prefix, rows).last != found.last


def test_even_shares_count_what_a_token_sees() -> None:
    rows = Encoded((Example((5, 6), (40,), 0, 0), Example((7,), (41,), 1, 1)), 0, ((40,), (41,)), False, ())
    found = attention(tiny.base(), front(tiny.base(), 4), rows)
    assert found.even_last == pytest.approx((1 / 6 + 1 / 5) / 2)
    assert found.even_mean == pytest.approx(((1 / 5 + 1 / 6) / 2 + 1 / 5) / 2)


def test_the_base_keeps_its_own_attention() -> None:
    base = tiny.base()
    kept = base.model.config._attn_implementation
    before, rows = front(base), labelled()
    logits = base.next_logits([TokenRow((5, 6))], before)
    attention(base, before, rows)
    assert base.model.config._attn_implementation == kept == "softprompt"
    assert torch.equal(base.next_logits([TokenRow((5, 6))], before), logits)


def test_rows_without_input_are_left_out_or_refused() -> None:
    nothing = Example((), (40,), 0, 0)
    words = ((40,), (41,))
    some = Encoded((nothing, Example((5,), (41,), 1, 1)), 0, words, False, ())
    assert attention(tiny.base(), front(tiny.base()), some).rows == 1
    with pytest.raises(DataError, match="nothing to look from"):
        attention(tiny.base(), front(tiny.base()), Encoded((nothing,), 0, words, False, ()))


def test_results_are_json() -> None:
    told: list[tuple[int, int]] = []
    found = attention(
        tiny.base(), front(tiny.base(), 3), labelled(), progress=lambda *done: told.append(done)
    )
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert len(read["last"]) == 3
    assert len(read["last"][0]) == 3
    assert told[-1] == (12, 12)
    means = found.positions()
    assert means[0] == pytest.approx(sum(layer[0] for layer in found.last) / 3)


def test_a_model_without_attention_says_so() -> None:
    base, rows = tiny.base("mamba2"), labelled()
    with pytest.raises(BaseModelError, match="does not hand out its attention"):
        attention(base, front(base), rows)
