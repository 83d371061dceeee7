"""Answers in the form a client asks for: OpenAI's fields and vLLM's, whole, in streams, to real clients."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

import tiny
from library import samples
from serving.api import house
from softprompt.library.prompt import Prompt
from softprompt.serving.engine import Engine

pytest.importorskip("llguidance")

USER: Any = [{"role": "user", "content": "Who?"}]


class Person(pydantic.BaseModel):
    """Small enough that random weights reach its end."""

    name: str = pydantic.Field(pattern="^[a-z]{1,5}$")
    mood: Literal["glad", "sad"]
    tags: list[Literal["a", "b"]] = pydantic.Field(max_length=2)


SCHEMA = Person.model_json_schema() | {"additionalProperties": False}
NAMED = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
MODELS = ("tiny-byte-level", "soft", "tuned")


@pytest.fixture(scope="module")
def spelling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server of a base that can spell anything, a soft prompt and an adapter on it."""
    folder = tmp_path_factory.mktemp("spelling")
    base = tiny.byte_base(chat_template=house.CHAT)
    made = samples.bound(base, "prompt-tuning", samples.P, name="soft", template=house.FREE, data={})
    Prompt(base, samples.soft(base), made).save(folder)
    samples.lora(base, "tuned", positions=2).save(folder)
    with Engine(base, folder, pack=False) as engine, house.client(engine) as http:
        yield http


def chat(http: httpx.Client, **body: Any) -> Any:
    asked = {"model": "tiny-byte-level", "messages": USER, "max_tokens": 200, "seed": 1, **body}
    answer = http.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("model", MODELS)
def test_every_answer_to_a_schema_validates(spelling: httpx.Client, model: str) -> None:
    got = chat(spelling, model=model, response_format=NAMED, n=4, logprobs=True, top_logprobs=1)
    for choice in got["choices"]:
        Person.model_validate_json(choice["message"]["content"])
        assert choice["finish_reason"] == "stop"
        spelt = "".join(token["token"] for token in choice["logprobs"]["content"])
        assert spelt == choice["message"]["content"]


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"guided_choice": ["sport", "business"]}, "sport|business"),
        ({"guided_regex": "[a-f]{2,4}-[0-9]"}, "[a-f]{2,4}-[0-9]"),
        ({"guided_json": {"enum": ["x", 1]}}, '"x"|1'),
        ({"guided_json": json.dumps({"const": [1, 2]})}, r"\[1, 2\]"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"regex": "a+b", "json": None}}, "a+b"),
        ({"structured_outputs": {"json": {"const": None}}}, "null"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_vllms_fields_are_served_in_texts_and_chats(
    spelling: httpx.Client, form: dict[str, Any], pattern: str, path: str
) -> None:
    text = {"prompt": "Who?"} if path == "/v1/completions" else {"messages": USER}
    for model in MODELS:
        body = {"model": model, "max_tokens": 60, "n": 2, "seed": 3, **text, **form}
        for choice in spelling.post(path, json=body).json()["choices"]:
            said = choice["text"] if "text" in choice else choice["message"]["content"]
            assert re.fullmatch(pattern, said), said


def test_a_json_object_is_one_even_when_nothing_else_is_said(spelling: httpx.Client) -> None:
    bias = {str(tiny.byte_tokenizer().convert_tokens_to_ids("}")): 50}
    got = chat(spelling, response_format={"type": "json_object"}, logit_bias=bias)
    assert isinstance(json.loads(got["choices"][0]["message"]["content"]), dict)


def test_streams_say_what_whole_answers_say(spelling: httpx.Client) -> None:
    body = {"response_format": NAMED, "n": 2, "temperature": 0.7}
    whole = [choice["message"]["content"] for choice in chat(spelling, **body)["choices"]]
    asked = {"model": "tiny-byte-level", "messages": USER, "max_tokens": 200, "seed": 1, "stream": True}
    texts = ["", ""]
    with spelling.stream("POST", "/v1/chat/completions", json=asked | body) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == whole


@pytest.mark.parametrize(
    ("form", "param", "said"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "x"}},
                }
            },
            "response_format",
            "Invalid type: x",
        ),
        ({"guided_regex": "("}, "guided_regex", "unclosed group"),
        ({"guided_regex": ["a"]}, "guided_regex", "a text"),
        ({"guided_regex": "a" * 70_000}, "guided_regex", "70,000 letters, but this server reads 65,536"),
        ({"guided_choice": []}, "guided_choice", "1 to 1,000 texts"),
        ({"guided_choice": [1]}, "guided_choice", "list of texts"),
        ({"guided_json": "{"}, "guided_json", "no JSON"),
        ({"guided_json": {"$ref": "file:///etc/passwd"}}, "guided_json", "not present in a registry"),
        ({"guided_json": {}, "guided_choice": ["a"]}, "guided_choice", "send one"),
        ({"guided_choice": ["a"], "min_tokens": 3}, "min_tokens", "ends where its form does"),
        ({"guided_choice": ["a"], "ignore_eos": True}, "ignore_eos", "ends where its form does"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs", "json, regex, choice"),
        ({"guided_grammar": "root ::= x"}, None, "guided_grammar is not served"),
    ],
)
def test_a_form_that_cannot_be_kept_is_refused_in_a_sentence(
    spelling: httpx.Client, form: dict[str, Any], param: str | None, said: str
) -> None:
    for path, text in (("completions", {"prompt": "x"}), ("chat/completions", {"messages": USER})):
        answer = spelling.post(f"/v1/{path}", json={"model": "soft", **text, **form})
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert (error["param"], said in error["message"]) == (param, True), error
        assert "\n" not in error["message"]


def test_a_grammar_too_costly_to_follow_ends_its_own_answer_in_a_sentence(spelling: httpx.Client) -> None:
    """What shows only behind the first brace is still the client's doing, and nobody else's."""
    wide = {"type": "object", "properties": {f"w{n}": {"type": "string"} for n in range(1500)}}
    body = {"model": "soft", "messages": USER, "guided_json": wide, "max_tokens": 60}
    answer = spelling.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "cannot be followed" in answer.json()["error"]["message"]
    assert chat(spelling, guided_choice=["a"])["choices"][0]["message"]["content"] == "a"


# -- real clients ----------------------------------------------------------------------------------------


def test_openai_parses_into_a_class(spelling: httpx.Client) -> None:
    with openai.OpenAI(base_url=f"{spelling.base_url}/v1", api_key="none") as client:
        got = client.chat.completions.parse(
            model="soft", messages=USER, response_format=Person, max_tokens=200, seed=2
        )
        assert isinstance(got.choices[0].message.parsed, Person)
        with client.chat.completions.stream(
            model="soft", messages=USER, response_format=Person, max_tokens=200, seed=2
        ) as stream:
            last = stream.get_final_completion()
    assert last.choices[0].message.parsed == got.choices[0].message.parsed


def test_langchain_gives_structured_output(spelling: httpx.Client) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        base_url=f"{spelling.base_url}/v1", api_key="none", model="soft", max_tokens=200, seed=4
    )
    for method in ("json_schema",):
        assert isinstance(model.with_structured_output(Person, method=method).invoke("Who?"), Person)
