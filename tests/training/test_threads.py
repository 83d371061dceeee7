"""Threads are as many as asked for while something runs, and as many as before when it ended."""

from __future__ import annotations

import pytest
import torch

from softprompt.training.threads import threads


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (None, 1)])
def test_threads_are_given_back_even_after_an_error(count: int | None, expected: int) -> None:
    def broken() -> None:
        with threads(count):
            assert torch.get_num_threads() == expected
            raise KeyboardInterrupt

    torch.set_num_threads(1)
    with pytest.raises(KeyboardInterrupt):
        broken()
    assert torch.get_num_threads() == 1
