"""OpenAI's newer form of a chat, with its own client: whole, in a stream, in a schema, and refusals."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

USER: Any = [{"role": "user", "content": "rates cut"}]


def chat_text(http: httpx.Client, messages: Any = USER) -> str:
    body = {"model": "brought", "messages": messages, "max_tokens": 8, "temperature": 0}
    return str(http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    "said",
    ["rates cut", USER, [{"role": "user", "content": [{"type": "input_text", "text": "rates cut"}]}]],
)
def test_it_says_what_a_chat_says(http: httpx.Client, said: Any) -> None:
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none") as client:
        asked: Any = {"model": "brought", "input": said, "max_output_tokens": 8, "temperature": 0}
        whole = client.responses.create(**asked)
        events = list(client.responses.create(**asked, stream=True))
        briefly = client.responses.create(**asked, instructions="Be brief.")
    assert whole.output_text == chat_text(http)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.usage.output_tokens == 8
    assert briefly.output_text == chat_text(http, [{"role": "system", "content": "Be brief."}, *USER])
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == whole.output_text


def test_an_answer_that_ends_is_completed(http: httpx.Client) -> None:
    body = {
        "model": "free",
        "input": "x",
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"const": 7}}},
    }
    answer = http.post("/v1/responses", json=body).json()
    assert (answer["status"], answer["output"][0]["content"][0]["text"]) == ("completed", "7")


@pytest.mark.parametrize("name", ["tools", "previous_response_id", "background", "prompt", "conversation"])
def test_what_is_not_served_is_refused_by_name(http: httpx.Client, name: str) -> None:
    answer = http.post("/v1/responses", json={"model": "free", "input": "x", name: ["y"]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name
