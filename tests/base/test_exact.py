"""Promise 1, exact: one shared prefix and packed rows give PEFT's loss, gradient and greedy tokens."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tiny
from reference import peft_loss_and_gradient
from softprompt.base import packing
from softprompt.base.attention import told
from softprompt.base.model import Base, Batch
from softprompt.base.packing import TokenRow
from softprompt.generation.offline import generate
from softprompt.generation.request import Event, GenerateRequest, TextDelta
from softprompt.generation.sampler import Sampling

P = 7
EVERY = (*tiny.ARCHITECTURES, *tiny.OF_DISTANCES[1:], *tiny.WITH_STATES)


def rows(count: int, seed: int, *, scored: int | None = 2) -> list[TokenRow]:
    """Rows of mixed lengths; the last ``scored`` tokens are labels, or all when None."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        ids = tuple(draw.randrange(4, tiny.VOCABULARY) for _ in range(draw.randint(3, 23)))
        made.append(TokenRow(ids, 0 if scored is None else len(ids) - scored))
    return made


def front(base: Base, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(P, base.width, generator=generator).mul_(0.3).requires_grad_()


@pytest.mark.parametrize("scored", [2, None], ids=["target", "whole-text"])
@pytest.mark.parametrize("architecture", EVERY)
def test_loss_and_gradient_equal_pefts(architecture: str, scored: int | None) -> None:
    base = tiny.base(architecture)
    batch = rows(9, seed=1, scored=scored)
    soft = front(base)
    loss = base.nll(batch, soft).nll.mean()
    (gradient,) = torch.autograd.grad(loss, soft)
    expected_loss, expected_gradient = peft_loss_and_gradient(tiny.model(architecture), soft, batch)
    torch.testing.assert_close(loss.detach(), expected_loss, rtol=1e-4, atol=0)
    error = (gradient - expected_gradient).norm() / expected_gradient.norm()
    assert error < 1e-4


@pytest.mark.parametrize("architecture", EVERY)
def test_a_finished_prefix_gives_the_same_gradient_as_reading_it_inline(architecture: str) -> None:
    base = tiny.base(architecture)
    batch = rows(6, seed=2)
    soft = front(base)
    inline = base.nll(batch, soft).nll.sum()
    finished = base.nll(batch, base.prefill(soft)).nll.sum()
    torch.testing.assert_close(inline, finished, rtol=1e-5, atol=1e-5)
    (a,), (b,) = (torch.autograd.grad(loss, soft) for loss in (inline, finished))
    assert (a - b).norm() / b.norm() < 1e-4


def reference_tokens(base: Base, soft: Tensor, ids: tuple[int, ...], count: int) -> list[int]:
    """Greedy tokens of one row alone, everything computed anew each step."""
    tokens = list(ids)
    with torch.no_grad():
        for _ in range(count):
            embedded = torch.cat([soft, base.embed(tokens)])[None]
            tokens.append(int(base.model(inputs_embeds=embedded, use_cache=False).logits[0, -1].argmax()))
    return tokens[len(ids) :]


@pytest.mark.parametrize("architecture", EVERY)
def test_greedy_tokens_equal_a_row_alone_whatever_the_batch(architecture: str) -> None:
    base = tiny.base(architecture)
    fronts = [front(base, seed)[:length].detach() for seed, length in ((1, 7), (2, 2), (3, 5))]
    prefixes = [base.prefill(soft) for soft in (*fronts, torch.empty(0, base.width))]
    requests, expected = [], []
    for i, row in enumerate(rows(8, seed=5)):
        prefix = prefixes[i % 4]
        soft = fronts[i % 4] if i % 4 < 3 else torch.empty(0, base.width)
        nine = Sampling(max_new_tokens=9)
        requests.append(GenerateRequest(model=base, prefix=prefix, ids=row.ids, sampling=nine))
        expected.append(reference_tokens(base, soft, row.ids, 9))
    produced: dict[int, list[int]] = {i: [] for i in range(8)}

    def told(row: int, event: Event) -> None:
        if isinstance(event, TextDelta):
            produced[row] += [token.id for token in event.tokens]

    generate(requests, on_event=told)
    for i, tokens in enumerate(expected):
        cut = tokens.index(base.end_id) if base.end_id in tokens else len(tokens)
        assert produced[i] == tokens[:cut]


@pytest.mark.parametrize("architecture", EVERY)
def test_batch_mates_change_nothing(architecture: str) -> None:
    base = tiny.base(architecture)
    soft = front(base).detach()
    batch = rows(7, seed=8, scored=None)
    together = base.nll(batch, soft).per_row()
    alone = torch.cat([base.nll([row], soft).per_row() for row in batch])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.OF_DISTANCES[1:]])
def test_all_these_architectures_share_bins(architecture: str) -> None:
    expected = "repeated" if architecture in tiny.OF_DISTANCES else "flat"
    assert tiny.base(architecture).layout.name == expected


@pytest.mark.parametrize("architecture", tiny.OF_DISTANCES)
def test_a_bias_of_distances_counts_from_each_rows_own_front(architecture: str) -> None:
    """Rows that share bins have the losses and gradients that transformers gives each row alone."""
    base, model = tiny.base(architecture), tiny.model(architecture)
    batch, soft = rows(12, seed=4, scored=None), front(base)
    assert base._pack([Batch(batch, soft)]).ids.shape[0] < 4
    losses = base.nll(batch, soft).per_row()
    for row, loss in zip(batch, losses, strict=True):
        ids = torch.tensor(row.ids)
        embedded = torch.cat([soft, model.get_input_embeddings()(ids)])[None]
        logits = model(inputs_embeds=embedded, use_cache=False).logits[0, P - 1 : -1]
        expected = functional.cross_entropy(logits, ids, reduction="sum")
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        found, wanted = (torch.autograd.grad(one, soft, retain_graph=True)[0] for one in (loss, expected))
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_in_half_precision_a_bias_is_rounded_as_in_the_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place far on in a bin would round its bias more coarsely than the row's own place does."""
    base = tiny.base("bloom", dtype=torch.bfloat16)
    monkeypatch.setattr(packing, "_cheapest", lambda groups, *_: [packing._fill(g, 2, True) for g in groups])
    draw = random.Random(0)
    batch = [TokenRow(tuple(draw.randrange(4, tiny.VOCABULARY) for _ in range(30))) for _ in range(12)]
    soft = front(base).detach()
    assert base._pack([Batch(batch, soft)]).width > 100
    together = base.nll(batch, soft).per_row()
    alone = torch.cat([base.nll([row], soft).per_row() for row in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)  # counted on: 6e-4 apart


@pytest.mark.parametrize("architecture", tiny.OF_DISTANCES)
def test_masks_are_told_to_nobody_else(architecture: str) -> None:
    """What a pass was told ends with it, also where it fails."""
    base = tiny.base(architecture)
    ids = torch.tensor([[5, 9, 8, 7]])
    with torch.no_grad():
        before = base.model(input_ids=ids, use_cache=False).logits
        base.nll(rows(3, seed=0), front(base).detach())
        with pytest.raises(ValueError, match="stop"), told(torch.zeros(1, 1, 4, 4)):
            raise ValueError("stop")
        torch.testing.assert_close(base.model(input_ids=ids, use_cache=False).logits, before, rtol=0, atol=0)
