"""The ledger counts every storage once, from its making to its end, with and without numbers."""

from __future__ import annotations

import pytest
import torch

from softprompt.planning.ledger import BACKWARD, Ledger

DEVICES = ("meta", "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_bytes_are_held_from_making_to_end(device: str) -> None:
    with Ledger(device) as ledger:
        ledger.purpose = "mine"
        first = torch.zeros(1000, device=device)
        seen = first.view(10, 100).t()
        with ledger.booking("yours"):
            second = seen + 1
        assert ledger.held == {"mine": 4000, "yours": 4000}
        del first, second
        assert ledger.held == {"mine": 4000}  # a view keeps its storage
        del seen
        assert ledger.held == {}
    assert ledger.most == {"mine": 4000, "yours": 4000}


@pytest.mark.parametrize("device", DEVICES)
def test_an_operation_done_again_counts_as_the_first_time(device: str) -> None:
    x = torch.zeros(2, 3, 8, device=device)
    w = torch.zeros(8, 5, device=device)
    with Ledger(device) as ledger:
        ledger.ignore([x, w])
        for _ in range(3):
            found = [x * 2, torch.cat([x, x]), x.expand(2, 3, 8).reshape(6, 8), x @ w]
            assert sum(ledger.held.values()) == 4 * (2 * 3 * 5 + 2 * 3 * 8 + 4 * 3 * 8)
            del found
    assert sum(ledger.most.values()) == 4 * (2 * 3 * 5 + 2 * 3 * 8 + 4 * 3 * 8)
    assert ledger.flops == 3 * 2 * 6 * 8 * 5


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_told_from_the_rest_and_can_be_booked_anew(device: str) -> None:
    weight = torch.zeros(50, 50, device=device, requires_grad=True)
    with Ledger(device) as ledger:
        ledger.ignore([weight])
        ledger.purpose = "forward"
        (weight * 2).exp().sum().backward()
        assert ledger.held == {BACKWARD: 10_000}
        assert weight.grad is not None
        ledger.rebook([weight.grad], "gradients")
        assert ledger.held == {"gradients": 10_000}


def test_nothing_of_another_device_is_counted() -> None:
    with Ledger() as ledger:
        torch.zeros(100)
    assert ledger.most == {}
