"""Makes ``tests/tiny.py`` importable and keeps the suite off the network and the user's cache of prompts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

_CORES = torch.get_num_threads()

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> None:
    """Tiny models run fastest, and alike everywhere, on one thread; the real base takes them all."""
    torch.set_num_threads(_CORES if "real_base" in request.keywords else 1)
