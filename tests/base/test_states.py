"""A prefix of layers that keep a state: exact whatever the length of the rows, and shared by all of them."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional

import tiny
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow

LENGTHS = (1, 2, 70, 9, 150)
"""One token alone, which is read otherwise than several, and more than is computed at once."""


def rows() -> list[TokenRow]:
    draw = random.Random(0)
    return [TokenRow(tuple(draw.choices(range(4, tiny.VOCABULARY), k=length))) for length in LENGTHS]


def soft(base: Base, positions: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(positions, base.width, generator=generator).mul_(0.3).requires_grad_()


@pytest.mark.parametrize("positions", [1, 70])
@pytest.mark.parametrize("architecture", tiny.WITH_STATES)
def test_rows_of_any_length_give_loss_and_gradient_of_the_whole_text(
    architecture: str, positions: int
) -> None:
    base, plain = tiny.base(architecture), tiny.model(architecture)
    front = soft(base, positions)
    losses = base.nll(rows(), front).per_row()
    (gradient,) = torch.autograd.grad(losses.sum(), front)
    expected, wanted = [], torch.zeros_like(front)
    for row in rows():
        ids = torch.tensor(row.ids)
        whole = torch.cat([front, plain.get_input_embeddings()(ids)])
        logits = plain(inputs_embeds=whole[None], use_cache=False).logits[0, positions - 1 : -1]
        loss = functional.cross_entropy(logits, ids, reduction="sum")
        wanted += torch.autograd.grad(loss, front)[0]
        expected.append(loss.detach())
    torch.testing.assert_close(losses.detach(), torch.stack(expected), rtol=1e-4, atol=0)
    assert (gradient - wanted).norm() / wanted.norm() < 1e-4


@pytest.mark.parametrize("architecture", tiny.WITH_STATES)
def test_one_row_alone_of_one_token_has_a_gradient_too(architecture: str) -> None:
    base = tiny.base(architecture)
    front = soft(base)
    (one,) = torch.autograd.grad(base.nll(rows()[:1], front).nll.sum(), front)
    (among,) = torch.autograd.grad(base.nll(rows(), front).per_row()[0], front)
    torch.testing.assert_close(one, among, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", tiny.WITH_STATES)
def test_a_row_read_to_go_on_from_is_the_prefix_of_its_whole_text(architecture: str) -> None:
    base = tiny.base(architecture)
    with torch.no_grad():
        front = soft(base).detach()
        empty = TokenRow(())
        for row, longer in zip(
            [*rows(), empty], base.read([*rows(), empty], base.prefill(front)), strict=True
        ):
            wanted = base.prefill(torch.cat([front, base.embed(row.ids)]))
            assert longer.length == wanted.length == 5 + len(row.ids)
            assert longer.states.keys() == wanted.states.keys()
            for found, right in zip(longer.tensors, wanted.tensors, strict=True):
                torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", tiny.WITH_STATES)
def test_reading_behind_a_prefix_leaves_it_as_it_was(architecture: str) -> None:
    base = tiny.base(architecture)
    with torch.no_grad():
        prefix = base.prefill(soft(base))
        before = prefix.digest
        list(base.read(rows(), prefix))
        base.next_logits(rows(), prefix)
        del prefix.__dict__["digest"]
    assert prefix.digest == before


def test_equal_keys_and_values_with_other_states_are_another_prefix() -> None:
    base = tiny.base("lfm2")
    with torch.no_grad():
        one = base.prefill(base.embed([5, 6, 7]))
        other = base.prefill(base.embed([5, 6, 7]))
    assert one.digest == other.digest
    next(iter(other.states.values())).add_(1)
    del other.__dict__["digest"]
    assert one.digest != other.digest
