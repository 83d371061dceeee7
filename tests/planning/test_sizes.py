"""Sizes as people write them."""

from __future__ import annotations

import pytest

from softprompt.errors import ConfigError
from softprompt.planning.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GB", 16 * 10**9),
        ("16 GB", 16 * 10**9),
        ("24GiB", 24 * 2**30),
        ("1.5gb", 1_500_000_000),
        ("512 B", 512),
        ("80 tb", 80 * 10**12),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["16 gigs", "16", "", "GB", "-4GB", "0GB", "1e9", "1GB1", "nan", "9" * 400 + "GB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size of memory; write a number and a unit, such as 16GB"):
        parse_size(text)
