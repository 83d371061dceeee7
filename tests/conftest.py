"""Makes ``tests/tiny.py`` importable and keeps the suite off the network and the user's cache of prompts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_CORES = torch.get_num_threads()
torch.set_num_threads(1)  # now, for fixtures of modules are made before those of tests

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def _no_memory_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests find out about their checkpoints does not fill the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("softprompt.checkpoints.remembered.cache_root", lambda: folder)
        yield


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny models run fastest, and alike everywhere, on one thread; the real base takes them all."""
    torch.set_num_threads(_CORES if "real_base" in request.keywords else 1)
    yield
    torch.set_num_threads(1)
