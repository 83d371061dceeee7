"""The one-minute form of ``benchmarks/soak.py``: a real server under everything at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import soak


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory another process takes")
def test_a_server_under_mixed_traffic_keeps_every_promise(tmp_path: Path) -> None:
    result = soak.run(tmp_path, minutes=0.4, clients=6)
    told = soak.show(result)
    assert result.sound, told
    assert result.checked >= 20, told
    assert result.evictions > 0, told
    assert result.ends.keys() >= {"answered", "left", "refused", "queue full"}, told
    assert result.events["replaced"] > 0, told
    assert result.last_ends["finished"] > 0, told
    assert result.attacks.keys() >= {"silent connections", "hang-ups", "long answers"}, told
    assert result.attacks.keys() & {"floods", "floods refused"}, told
    assert result.flooded[0] < 20 * max(result.peaceful[0], 0.05), told
    assert result.memory_most - result.memory_first < 256 * 2**20, told
