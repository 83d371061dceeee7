"""The rate of a device is that of products large enough for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from softprompt.planning.timing import matrix_rate


@pytest.mark.parametrize(("kind", "width"), [("cpu", 1024), ("cuda", 8192)])
def test_the_product_that_is_timed_suits_the_device(
    kind: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def small(*sizes: int, device: torch.device, dtype: torch.dtype) -> Any:
        asked.append(sizes)
        assert device.type == kind
        return torch.zeros(2, 2, dtype=dtype)

    monkeypatch.setattr(torch, "ones", small)
    assert matrix_rate(torch.device(kind), torch.float32) > 2 * width**3  # 2 x 2 takes less than a second
    assert asked == [(width, width)]
