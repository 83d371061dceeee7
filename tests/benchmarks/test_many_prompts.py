"""Many prompts together and one after another: the benchmark compares equals."""

from __future__ import annotations

import pytest

import many_prompts
import tiny


@pytest.mark.parametrize("pass_tokens", [None, 400])
def test_both_sides_learn_the_same(pass_tokens: int | None) -> None:
    result = many_prompts.measure(tiny.base(), 3, 3, 4, pass_tokens)
    assert result.virtual_tokens == [8, 12, 16]
    assert result.loss_error < 1e-4
    assert result.vector_error < 1e-4
    assert 1e-8 < result.control_vector_error < 1e-3
    assert result.ratio == result.one_after_another_seconds / result.together_seconds
