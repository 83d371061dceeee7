"""Artifacts are put, replaced and removed while the server runs, and nothing but artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

import tiny
from library import samples
from serving.api import house
from softprompt.library.prompt import Prompt

Files = list[tuple[str, tuple[str, bytes]]]


def files_of(folder: Path) -> Files:
    return [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder of artifacts that are not in the server's library."""
    house.prompt("fresh", house.FREE, 21).save(tmp_path)
    samples.lora(house.base(), "adapter").save(tmp_path)
    return tmp_path


def put(http: httpx.Client, name: str, files: Files) -> httpx.Response:
    return http.put(f"/v1/admin/prompts/{name}", files=files)


def answer(http: httpx.Client, name: str) -> str:
    body = {"model": name, "prompt": "rates", "max_tokens": 8, "temperature": 0}
    got: dict[str, Any] = http.post("/v1/completions", json=body).json()
    return str(got["choices"][0]["text"]) if "choices" in got else str(got["error"]["code"])


def test_a_prompt_comes_is_replaced_and_goes(http: httpx.Client, made: Path, tmp_path: Path) -> None:
    assert put(http, "fresh", files_of(made / "fresh")).json() == {"name": "fresh", "done": True}
    first = house.prompt("fresh", house.FREE, 21)
    assert answer(http, "fresh") == first.generate("rates", max_new_tokens=8)
    second = house.prompt("fresh", house.FREE, 22)
    second.save(tmp_path, overwrite=True)
    assert put(http, "fresh", files_of(tmp_path / "fresh")).status_code == 200
    assert answer(http, "fresh") == second.generate("rates", max_new_tokens=8)
    assert http.delete("/v1/admin/prompts/fresh").json()["done"]
    assert answer(http, "fresh") == "model_not_found"
    assert http.delete("/v1/admin/prompts/fresh").status_code == 404


def test_an_adapter_comes_too(http: httpx.Client, made: Path) -> None:
    assert put(http, "adapter", files_of(made / "adapter")).status_code == 200
    tuned = samples.lora(house.base(), "adapter")
    assert answer(http, "adapter") == tuned.generate("rates", max_new_tokens=8)
    http.delete("/v1/admin/prompts/adapter")


def test_nothing_but_whole_artifacts_comes_in(
    http: httpx.Client, made: Path, library: Path, tmp_path: Path
) -> None:
    before = sorted(path.name for path in library.iterdir())
    good = files_of(made / "fresh")
    other = samples.bound(tiny.base(), "prompt-tuning", samples.P, name="foreign")
    Prompt(tiny.base(), samples.soft(tiny.base()), other).save(tmp_path)
    bad = {
        "fresh": [
            [],
            good[:1],
            [f for f in good if f[1][0] != "softprompt.json"],
            [*good, ("files", ("evil.py", b"print()"))],
            [*good, ("files", ("../evil", b"x"))],
            [*good, ("files", ("model.bin", b"x"))],
            [(n, (f, c[:-1] if f.endswith("safetensors") else c)) for n, (f, c) in good],
            [(n, (f, b"{" if f.endswith(".json") else c)) for n, (f, c) in good],
        ],
        "other-name": [good],
        "foreign": [files_of(tmp_path / "foreign")],
        "tiny-chat": [good],
    }
    for name, tries in bad.items():
        for files in tries:
            got = put(http, name, files) if files else http.put(f"/v1/admin/prompts/{name}", content=b"")
            assert got.status_code == 400, (name, files)
            assert str(library) not in got.text
    for name in ("..", "a/b", ".hidden", "%2e%2e", "a" * 101):
        assert put(http, name, good).status_code in (400, 404, 405)
    assert sorted(path.name for path in library.iterdir()) == before


def test_prompts_are_pinned_and_evicted(http: httpx.Client) -> None:
    def held() -> dict[str, Any]:
        return {one["name"]: one for one in http.get("/v1/admin/prompts").json()["data"]}

    answer(http, "free")
    assert held()["free"]["bytes"] > 0
    assert held()["free"]["users"] == 0
    assert http.post("/v1/admin/prompts/free/pin").json()["done"]
    assert held()["free"]["pinned"]
    assert http.post("/v1/admin/prompts/free/evict").json()["done"] is False
    assert http.post("/v1/admin/prompts/free/unpin").json()["done"]
    assert http.post("/v1/admin/prompts/free/evict").json()["done"] is True
    assert "free" not in held()
    assert http.post("/v1/admin/prompts/unheard/pin").status_code == 404


@pytest.mark.parametrize("name", ["a%00b", "x" * 300, "a%0A", ".hidden"])
def test_names_that_are_none_are_refused(http: httpx.Client, made: Path, name: str) -> None:
    assert put(http, name, files_of(made / "fresh")).status_code in (400, 404)
