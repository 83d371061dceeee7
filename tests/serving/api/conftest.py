"""One engine and one server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.api import house
from softprompt.library.prompt import Prompt
from softprompt.serving.engine import Engine


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served") / "prompts"


@pytest.fixture(scope="session")
def prompts(library: Path) -> dict[str, Prompt]:
    """What lies in the library, by name."""
    return house.fill(library)


@pytest.fixture(scope="session")
def engine(library: Path, prompts: dict[str, Prompt]) -> Iterator[Engine]:
    with Engine(house.base(), library, pack=False) as started:
        yield started


@pytest.fixture(scope="session")
def http(engine: Engine) -> Iterator[httpx.Client]:
    """A client of a server without keys, its admin paths open."""
    with house.client(engine, admin_open=True) as made:
        yield made
