"""Pages in Chromium, and what axe finds wrong with them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium; the test is skipped where it, playwright or axe is not here."""
    pytest.importorskip("axe_playwright_python", reason="axe is not installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with api.sync_playwright() as player:
        made = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


def serious(made: Any, address: str, *, width: int = 1280, dark: bool = False) -> list[str]:
    """What axe calls serious or critical on a page: rule, help and the first element of each."""
    from axe_playwright_python.sync_playwright import Axe

    scheme = "dark" if dark else "light"
    context = made.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        bypass_csp=True,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(address, wait_until="load")
    found = Axe().run(page).response["violations"]
    context.close()
    return [
        f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
