"""A hidden position is one that nothing behind it looks at, with every place as it was."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers
from torch import Tensor

import tiny
from softprompt.base.model import Base
from softprompt.data.rows import Encoded, Example
from softprompt.errors import BaseModelError
from softprompt.evaluation.score import score, target_rows
from softprompt.interpretation.ablation import ablate, quarters, score_without

WORDS = ((40,), (41,), (50,))


def front(base: Base, count: int = 6, seed: int = 0) -> Tensor:
    noise = torch.randn(count, base.width, generator=torch.Generator().manual_seed(seed))
    return noise * float(base.embedding.weight.std())


def labelled(count: int = 12, *, whole: bool = False) -> Encoded:
    """Rows of 1 to 7 tokens with three labels."""
    rows = tuple(
        Example(tuple(4 + (7 * n + 3 * t) % 90 for t in range(1 + n % 7)), WORDS[n % 3], n % 3, n)
        for n in range(count)
    )
    words = ((40, 5), (40, 6, 7), (50,)) if whole else WORDS
    return Encoded(rows, 0, words, whole, ())


def free_text(count: int = 8) -> Encoded:
    rows = tuple(
        Example(tuple(range(4 + n, 6 + 2 * n)), tuple(range(30, 32 + n)), None, n) for n in range(count)
    )
    return Encoded(rows, 0, None, False, ())


def eager(base: Base) -> transformers.PreTrainedModel:
    model = tiny.model(base.name.split("-", 1)[1].rsplit("-", 1)[0])
    model.set_attn_implementation("eager")
    return model


def masked_losses(base: Base, before: Tensor, encoded: Encoded, hidden: tuple[int, ...]) -> list[float]:
    """Loss of each row's label by the model's own forward pass over the whole, with a mask written out."""
    model, found = eager(base), []
    for row in encoded.examples:
        embeds = torch.cat([before, base.embed(row.input_ids)])[None]
        length = embeds.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool).tril()
        for p in hidden:
            allowed[p + 1 :, p] = False
        mask = torch.zeros(length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)
        with torch.no_grad():
            logits = model(
                inputs_embeds=embeds, attention_mask=mask[None, None], position_ids=torch.arange(length)[None]
            ).logits[0, -1]
        found.append(-float(logits.log_softmax(-1)[row.target_ids[0]]))
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox", "opt", "qwen3"])
@pytest.mark.parametrize("hidden", [(), (0,), (3,), (5,), (1, 2, 4)])
def test_hiding_is_a_mask_in_a_plain_forward_pass(architecture: str, hidden: tuple[int, ...]) -> None:
    base, rows = tiny.base(architecture), labelled()
    before = front(base)
    (scores,) = score_without(base, before, rows, [hidden])
    assert scores.losses == pytest.approx(masked_losses(base, before, rows, hidden), rel=1e-4, abs=1e-5)


def test_hiding_keeps_the_window_of_a_sliding_layer() -> None:
    """Mistral looks back 6 positions: what is hidden beyond changes nothing, and nothing moves nearer."""
    base, rows = tiny.base("mistral"), labelled()
    prefix = base.prefill(front(base, 9))
    trained = replace(prefix, hidden=None)
    found = ablate(base, trained, rows)
    assert [p for p, one in enumerate(found.each) if one.loss.difference == 0] == [0, 1, 2, 3]
    assert all(one.loss.difference != 0 for one in found.each[4:])
    for one in found.each[:4]:
        assert (one.loss.difference, one.loss.low, one.loss.high) == (0, 0, 0)
        assert one.accuracy is not None
        assert (one.accuracy.difference, one.accuracy.low, one.accuracy.high) == (0, 0, 0)
        assert not one.matters


def test_rows_miss_a_position_of_a_kv_prefix_and_its_later_positions_do_not() -> None:
    base, rows = tiny.base(), labelled()
    read = base.prefill(front(base))
    found = {}
    for kind, before in {"read": read, "trained": replace(read, hidden=None)}.items():
        (scores,) = score_without(base, before, rows, [(2,)])
        found[kind] = scores.losses
    (soft,) = score_without(base, front(base), rows, [(2,)])
    assert found["read"] == found["trained"]
    assert found["read"] != pytest.approx(soft.losses, rel=1e-4)  # there the later positions were read anew
    (last,), (soft_last,) = (score_without(base, f, rows, [(5,)]) for f in (read, front(base)))
    assert last.losses == pytest.approx(soft_last.losses, rel=1e-4)  # nothing of the front stands behind it


def test_hiding_nothing_is_the_score_itself() -> None:
    for rows in (labelled(), labelled(whole=True), free_text()):
        for before in (front(tiny.base()), tiny.base().prefill(front(tiny.base()))):
            (found,) = score_without(tiny.base(), before, rows, [()])
            assert found.losses == pytest.approx(score(tiny.base(), before, rows).losses, rel=1e-5)


def test_hiding_everything_is_reading_rows_at_their_places_alone() -> None:
    """RoPE knows differences of places only, so rows without a front answer as if nothing had stood there."""
    base = tiny.base()
    rows = labelled()
    (found,) = score_without(base, front(base), rows, [tuple(range(6))])
    (bare,) = score_without(base, front(base)[:0], rows, [()])
    assert found.losses == pytest.approx(bare.losses, rel=1e-4)


def test_a_row_without_text_goes_on_from_the_last_position_left() -> None:
    base = tiny.base()
    rows = Encoded((Example((), (40,), 0, 0), Example((), (41,), 1, 1)), 0, WORDS, False, ())
    (hidden,) = score_without(base, front(base), rows, [(5,)])
    (shorter,) = score_without(base, front(base)[:5], rows, [()])
    assert hidden.losses == pytest.approx(shorter.losses, rel=1e-4)


@pytest.mark.parametrize(
    "rows", [labelled(), labelled(whole=True), free_text()], ids=["first", "whole", "text"]
)
def test_differences_are_those_of_the_scores_and_lie_in_their_intervals(rows: Encoded) -> None:
    base, before = tiny.base(), front(tiny.base(), 8)
    told: list[tuple[int, int]] = []
    found = ablate(base, before, rows, clusters=[(7, 0), (3,)], progress=lambda *done: told.append(done))
    assert [one.positions for one in found.each] == [(p,) for p in range(8)]
    assert [one.positions for one in found.groups] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [one.positions for one in found.clusters] == [(0, 7), (3,)]
    assert told == [(n, 15) for n in range(15)]
    whole, less = score_without(base, before, rows, [(), (0, 7)])
    assert found.loss == whole.nll
    assert found.clusters[0].loss.difference == pytest.approx(less.nll - whole.nll, abs=1e-9)
    assert found.clusters[1].loss == found.each[3].loss
    for one in (*found.each, *found.groups):
        assert one.loss.low <= one.loss.difference <= one.loss.high
        assert (one.accuracy is None) == (found.accuracy is None)
        if one.accuracy is not None and whole.accuracy is not None:
            (seen,) = score_without(base, before, rows, [one.positions])
            assert seen.accuracy is not None
            assert one.accuracy.difference == pytest.approx(seen.accuracy - whole.accuracy)
    losses = [one.loss.difference for one in found.each]
    assert [losses[p] for p in found.order] == sorted(losses, reverse=True)


def test_a_position_that_answers_everything_stands_out() -> None:
    """One position carries the answer: its values push the label's word, in keys every row looks at."""
    base = tiny.base()
    rows = Encoded(tuple(Example((10 + n, 20), (40,), 0, n) for n in range(20)), 0, WORDS, False, ())
    before = front(base, 5).requires_grad_()
    loud = torch.zeros(5, 1)
    loud[2] = 1
    for _ in range(60):  # only the one position learns
        losses = base.nll(target_rows(rows.examples), before).nll.mean()
        (gradient,) = torch.autograd.grad(losses, before)
        before = (before - 0.3 * loud * gradient / gradient.norm()).detach().requires_grad_()
    found = ablate(base, before.detach(), rows)
    assert found.order[0] == 2
    assert found.each[2].matters
    assert found.each[2].loss.difference > 0.5


def test_the_base_stays_as_it_is() -> None:
    base = tiny.base()
    layout = base.layout
    ablate(base, front(base), labelled())
    assert base.layout is layout


def test_results_are_json() -> None:
    read = json.loads(json.dumps(ablate(tiny.base(), front(tiny.base(), 2), labelled()).to_json()))
    assert read["rows"] == 12
    assert set(read["each"][0]["loss"]) == {"difference", "low", "high", "p"}


def test_a_model_that_takes_no_masks_is_refused_in_a_sentence() -> None:
    base = tiny.base("bloom")
    with pytest.raises(BaseModelError, match="leave ablation out"):
        ablate(base, front(base), labelled())


def test_quarters_cover_every_position_once() -> None:
    for count in range(1, 30):
        parts = quarters(count)
        assert [p for part in parts for p in part] == list(range(count))
        assert len(parts) == min(4, count)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_position_can_be_hidden() -> None:
    found = ablate(tiny.base(), front(tiny.base(), 1), labelled())
    assert len(found.each) == 1
    assert found.groups == ()
