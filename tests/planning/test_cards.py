"""Cards by name: each plans in the number format that loading would choose on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from softprompt.checkpoints.placement import choose_dtype
from softprompt.errors import ConfigError
from softprompt.planning.cards import CARDS, card
from softprompt.planning.target import aim

WITHOUT_BFLOAT16 = {"t4", "v100-16", "v100-32", "rtx-2080-ti"}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_planned_as_loading_would_compute_on_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = aim("auto", None, name).dtype("auto")
    assert planned == (torch.float32 if name in WITHOUT_BFLOAT16 else torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: CARDS[name].capability)
    assert planned == choose_dtype("auto", torch.device("cuda"))
    assert aim("auto", None, name).dtype("float16") == torch.float16


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("t4", "t4"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100-40GB", "a100-40"),
        ("a100 80gb", "a100-80"),
        ("rtx 3090", "rtx-3090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("V100-16GB", "v100-16"),
        ("H200", "h200"),
    ],
)
def test_a_card_is_known_as_people_write_it(written: str, name: str) -> None:
    assert card(written) is CARDS[name]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("a100", "did you mean a100-40 or a100-80?"),
        ("v100", "did you mean v100-16 or v100-32?"),
        ("3090", "did you mean rtx-3090?"),
        ("rtx-4900", "did you mean rtx-"),
        ("abacus", "there are t4, v100-16"),
        ("", "there are t4, v100-16"),
        ("nvidia", "there are t4, v100-16"),
    ],
)
def test_an_unknown_card_is_refused_with_what_is_near(written: str, said: str) -> None:
    with pytest.raises(ConfigError) as fault:
        card(written)
    assert str(fault.value).startswith(f"There is no card {written!r} here")
    assert said in str(fault.value)


@pytest.mark.parametrize("name", CARDS)
def test_a_cards_figures_are_possible(name: str) -> None:
    found = CARDS[name]
    assert 8 * 2**30 < found.memory < 200 * 2**30
    assert found.single < found.half
    rate: Any = found.rate(torch.bfloat16)
    assert rate is None if name in WITHOUT_BFLOAT16 else rate == found.half


def test_a_gpu_without_a_name_is_told_what_was_taken_for_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    unnamed = aim("auto", 16 * 10**9)
    assert unnamed.dtype("auto") == torch.bfloat16
    assert "name yours with --gpu" in unnamed.notes("auto")[0]
    assert unnamed.notes("float32") == ()


def test_an_apple_gpu_is_planned_as_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert aim("mps", 16 * 10**9).dtype("auto") == torch.float32


def test_a_card_may_be_had_in_part_and_is_no_cpu() -> None:
    assert aim("cuda:0", 10**10, "t4").capacity == 10**10
    with pytest.raises(ConfigError, match="A T4 is no cpu"):
        aim("cpu", None, "t4")
