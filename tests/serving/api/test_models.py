"""What the list of models, the health, the docs and the OpenAPI document say."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from serving.api import house
from softprompt.library.prompt import Prompt


def test_the_base_comes_first_and_every_prompt_with_its_card(
    http: httpx.Client, prompts: dict[str, Prompt]
) -> None:
    found = http.get("/v1/models").json()
    assert found["object"] == "list"
    assert [m["id"] for m in found["data"]] == ["tiny-chat", *sorted(prompts)]
    facts = {m["id"]: m["softprompt"] for m in found["data"]}
    assert facts["tiny-chat"]["kind"] == "base"
    assert facts["topics"]["labels"] == ["sport", "business", "tech"]
    assert facts["topics"]["fields"] == ["text"]
    assert facts["pairs"]["fields"] == ["premise", "hypothesis"]
    assert facts["choices"]["choices"] is True
    assert facts["topics"]["scores"]["validation"]["accuracy"] == pytest.approx(0.823)


def test_one_model_and_its_digest_once_it_is_loaded(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"model": "topics", "prompt": "x"}).json()
    found = http.get("/v1/models/topics").json()
    assert found["softprompt"]["digest"][:12] == answer["system_fingerprint"].removeprefix("fp_")
    assert http.get("/v1/models/unheard").status_code == 404


def test_a_damaged_prompt_is_not_served(http: httpx.Client, library: Path) -> None:
    house.prompt("broken", house.FREE).save(library)
    weights = library / "broken" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    try:
        answer = http.post("/v1/completions", json={"model": "broken", "prompt": "x"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_unavailable"
        assert str(library) not in answer.text
    finally:
        shutil.rmtree(library / "broken")


def test_health_and_docs(http: httpx.Client) -> None:
    assert http.get("/health").json()["status"] == "ok"
    page = http.get("/docs")
    assert "openapi.json" in page.text
    assert "//" not in page.text.replace("</", "")  # it works without the internet
    assert page.headers["x-content-type-options"] == "nosniff"


def test_the_openapi_document_tells_the_truth_about_errors(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    posts = [about for verbs in document["paths"].values() for about in verbs.values()]
    assert all("422" not in about["responses"] for about in posts)
    assert "CompletionRequest" in document["components"]["schemas"]
    assert document["components"]["schemas"]["CompletionRequest"]["properties"]["echo"]["description"]
