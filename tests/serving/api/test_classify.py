"""Labels and their probabilities are those of ``Prompt.classify``."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from softprompt.library.prompt import Prompt

CASES: list[tuple[str, Any]] = [
    ("topics", "rates cut as growth slows"),
    ("topics", "x" * 400),
    ("careful", "rates cut as growth slows"),
    ("pairs", {"premise": "it rains", "hypothesis": "it is wet"}),
    ("choices", {"text": "what is it?", "options": ["a", "be", "see <|im_end|>"]}),
    ("tuned", "rates cut"),
]


def ask(http: httpx.Client, model: str, given: Any) -> Any:
    answer = http.post("/v1/classify", json={"model": model, "input": given})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(("model", "given"), CASES, ids=str)
def test_probabilities_are_those_of_the_library(
    http: httpx.Client, prompts: dict[str, Prompt], model: str, given: Any
) -> None:
    if isinstance(given, dict) and "options" in given:
        given = given | {"options": ["a", "be", "see"]}
    wanted = prompts[model].classify(given)
    (got,) = ask(http, model, given)["data"]
    assert list(got["probabilities"]) == list(wanted)
    assert got["probabilities"] == pytest.approx(wanted, abs=1e-5)
    assert got["label"] == next(iter(wanted))


def test_many_rows_at_once(http: httpx.Client, prompts: dict[str, Prompt]) -> None:
    texts = ["one", "two", "one", "a longer one"]
    got = ask(http, "careful", texts)
    for row, text in zip(got["data"], texts, strict=True):
        assert row["probabilities"] == pytest.approx(prompts["careful"].classify(text), abs=1e-5)
    assert [row["index"] for row in got["data"]] == [0, 1, 2, 3]
    ids = [prompts["careful"].encode_request(text).examples[0].input_ids for text in texts]
    assert got["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert got["usage"]["prompt_tokens_details"]["virtual_tokens"] == 4 * len(texts)


@pytest.mark.parametrize(
    ("model", "given", "word"),
    [
        ("free", "x", "labels"),
        ("tiny-chat", "x", "labels"),
        ("pairs", "plain text", "2 fields"),
        ("pairs", {"premise": "x"}, "hypothesis"),
        ("pairs", {"premise": ["x"], "hypothesis": "y"}, "premise"),
        ("topics", [], "input"),
        ("topics", 5, "input"),
        ("topics", ["x"] * 200, "128"),
        ("choices", {"text": "x"}, "options"),
        ("choices", {"text": "x", "options": ["a", "a"]}, "choice"),
    ],
)
def test_what_cannot_be_classified_is_refused(http: httpx.Client, model: str, given: Any, word: str) -> None:
    answer = http.post("/v1/classify", json={"model": model, "input": given})
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]
