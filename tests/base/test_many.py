"""Many fronts in one pass: each batch gets what it would get alone, whatever its neighbours hold."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tiny
from softprompt.base.model import Base, Batch
from softprompt.base.packing import TokenRow
from softprompt.errors import BaseModelError
from softprompt.prefix import Front, Prefix


def rows(count: int, seed: int, *, scored: int | None = 2) -> list[TokenRow]:
    """Rows of mixed lengths; the last ``scored`` tokens are labels, or all when None."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        ids = tuple(draw.randrange(4, tiny.VOCABULARY) for _ in range(draw.randint(2, 23)))
        made.append(TokenRow(ids, 0 if scored is None else len(ids) - scored))
    return made


def soft(base: Base, length: int, seed: int) -> Tensor:
    """A soft prompt [P, E]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, base.width, generator=generator).mul_(0.3).requires_grad_()


def learnt(base: Base, length: int, seed: int) -> Prefix:
    """A KV prefix whose keys and values train."""
    start = base.prefill(soft(base, length, seed)).detached()
    keys, values = ([t.clone().requires_grad_() for t in side] for side in (start.keys, start.values))
    return Prefix(tuple(keys), tuple(values), None, base.fingerprint)


def leaves(front: Front) -> list[Tensor]:
    return [front] if isinstance(front, Tensor) else [*front.keys, *front.values]


FRONTS: dict[str, Callable[[Base], list[Front]]] = {
    "soft": lambda base: [soft(base, length, length) for length in (7, 2, 11)],
    "learnt keys and values": lambda base: [learnt(base, length, length) for length in (3, 9)],
    "all kinds": lambda base: [
        soft(base, 5, 1),
        learnt(base, 31, 2),
        base.prefill(soft(base, 4, 3)).detached(),
        torch.empty(0, base.width),
        soft(base, 12, 5),
        learnt(base, 1, 6),
    ],
}


def batches(base: Base, kind: str, scored: int | None = 2) -> list[Batch]:
    return [Batch(rows(3 + n, n, scored=scored), front) for n, front in enumerate(FRONTS[kind](base))]


def gradients(loss: Tensor, front: Front) -> list[Tensor]:
    wanted = [leaf for leaf in leaves(front) if leaf.requires_grad]
    return list(torch.autograd.grad(loss, wanted, retain_graph=True)) if wanted else []


@pytest.mark.parametrize("scored", [2, None], ids=["target", "whole-text"])
@pytest.mark.parametrize("kind", FRONTS)
@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.OF_DISTANCES[1:]])
def test_losses_and_gradients_equal_those_alone(architecture: str, kind: str, scored: int | None) -> None:
    base = tiny.base(architecture)
    together = batches(base, kind, scored)
    found = base.nll_many(together)
    whole = torch.stack([losses.nll.mean() for losses in found]).sum()
    for (its_rows, front), losses in zip(together, found, strict=True):
        alone = base.nll(its_rows, front)
        assert losses.counts == alone.counts
        torch.testing.assert_close(losses.nll, alone.nll, rtol=1e-4, atol=1e-5)
        pairs = zip(gradients(whole, front), gradients(alone.nll.mean(), front), strict=True)
        for gradient, expected in pairs:
            assert (gradient - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.OF_DISTANCES[1:]])
def test_next_logits_equal_those_alone(architecture: str) -> None:
    base = tiny.base(architecture)
    together = batches(base, "all kinds")
    with torch.no_grad():
        for batch, logits in zip(together, base.next_logits_many(together), strict=True):
            torch.testing.assert_close(logits, base.next_logits(*batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FRONTS)
@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, *tiny.OF_DISTANCES[1:]])
def test_a_nan_in_one_front_reaches_no_other(architecture: str, kind: str) -> None:
    base = tiny.base(architecture)
    whole = batches(base, kind)
    with torch.no_grad():
        for leaf in leaves(whole[1].front):
            leaf[..., 0, 0] = math.nan
    found = base.nll_many(whole)
    assert found[1].nll.isnan().all()
    loss = torch.stack([losses.nll.mean() for losses in found]).sum()
    for number, (its_rows, front) in enumerate(whole):
        if number == 1:
            continue
        alone = base.nll(its_rows, front)
        torch.testing.assert_close(found[number].nll, alone.nll, rtol=1e-4, atol=1e-5)
        pairs = zip(gradients(loss, front), gradients(alone.nll.mean(), front), strict=True)
        for gradient, expected in pairs:
            assert (gradient - expected).norm() <= 1e-4 * expected.norm()


def test_half_precision_meets_few_shapes_however_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code is kept for every number of positions: without a bound memory grows as long as batches are new."""
    draw = random.Random(0)
    batches = [[TokenRow((5,) * draw.randint(8, 60), 2) for _ in range(16)] for _ in range(60)]
    met, plain = {}, functional.linear
    for dtype in (torch.float32, torch.bfloat16):
        base, front, shapes = tiny.base(dtype=dtype), torch.randn(20, 32, requires_grad=True), set[Any]()

        def noted(x: Tensor, weight: Tensor, *bias: Any, shapes: Any = shapes) -> Tensor:
            shapes.add((x.numel() // x.shape[-1], *weight.shape))
            return plain(x, weight, *bias)

        with monkeypatch.context() as patch:
            patch.setattr(functional, "linear", noted)
            for batch in batches:
                base.nll(batch, front)
        met[dtype] = len(shapes)
    assert met[torch.bfloat16] < met[torch.float32] / 3


def test_neighbours_of_any_length_change_nothing() -> None:
    base = tiny.base()
    mine = Batch(rows(5, 1), soft(base, 6, 1))
    alone = base.nll(*mine).nll
    for length, count in ((1, 1), (40, 2), (3, 40)):
        neighbour = Batch(rows(count, 9), soft(base, length, 2))
        for together in ([mine, neighbour], [neighbour, mine]):
            found = base.nll_many(together)[together.index(mine)].nll
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_an_empty_row_goes_on_from_its_own_front_or_is_refused(architecture: str) -> None:
    base = tiny.base(architecture)
    first, second = soft(base, 6, 1), base.prefill(soft(base, 3, 2)).detached()
    with torch.no_grad():
        found = base.next_logits_many([Batch([TokenRow(())], first), Batch([TokenRow(())], second)])
        expected = base.model(inputs_embeds=first[None], use_cache=False).logits[0, -1]
        torch.testing.assert_close(found[0][0], expected, rtol=1e-4, atol=1e-4)
        assert second.hidden is not None
        torch.testing.assert_close(found[1], base.head.logits(second.hidden[None]))
        with pytest.raises(BaseModelError, match="at least one token"):
            base.next_logits([TokenRow(())], replace(second, hidden=None))
