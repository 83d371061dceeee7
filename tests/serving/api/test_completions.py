"""Completions answer as the library does, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from serving.api import house
from softprompt.library.prompt import Prompt


def ask(http: httpx.Client, **body: Any) -> Any:
    answer = http.post("/v1/completions", json={"model": "topics", "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http: httpx.Client, **body: Any) -> Any:
    answer = http.post("/v1/completions", json={"model": "topics", "prompt": "x", **body})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def test_text_goes_through_the_template(http: httpx.Client, prompts: dict[str, Prompt]) -> None:
    got = ask(http, model="free", prompt="rates cut", max_tokens=9)
    assert got["choices"][0]["text"] == prompts["free"].generate("rates cut", max_new_tokens=9)
    request = prompts["free"].request("rates cut")
    usage = got["usage"]
    assert usage["prompt_tokens"] == len(request.ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["virtual_tokens"] == 4


def test_lists_and_n_give_indexed_choices(http: httpx.Client, prompts: dict[str, Prompt]) -> None:
    texts = ["one", "two", "three"]
    got = ask(http, model="free", prompt=texts, n=2, max_tokens=5)
    assert [c["index"] for c in got["choices"]] == list(range(6))
    wanted = [prompts["free"].generate(t, max_new_tokens=5) for t in texts for _ in range(2)]
    assert [c["text"] for c in got["choices"]] == wanted
    assert got["usage"]["prompt_tokens"] == sum(len(prompts["free"].request(t).ids) for t in texts)


def test_token_ids_stand_raw_behind_the_prefix(http: httpx.Client, prompts: dict[str, Prompt]) -> None:
    ids = list(prompts["free"].request("rates cut").ids)
    by_text = ask(http, model="free", prompt="rates cut", max_tokens=6)
    for form in (ids, [ids]):
        assert (
            ask(http, model="free", prompt=form, max_tokens=6)["choices"][0]["text"]
            == (by_text["choices"][0]["text"])
        )


def test_lora_answers_as_its_changed_copy_does(http: httpx.Client, prompts: dict[str, Prompt]) -> None:
    got = ask(http, model="tuned", prompt="rates cut", max_tokens=6)
    assert got["choices"][0]["text"] == prompts["tuned"].generate("rates cut", max_new_tokens=6)


def test_echo_measures_the_text_and_one_token(http: httpx.Client) -> None:
    """What lm-evaluation-harness sends and reads: the text's own tokens, then exactly one."""
    ids = list(range(10, 22))
    for length in (1, 0):
        got = ask(http, prompt=[ids], echo=True, logprobs=1, max_tokens=length)["choices"][0]["logprobs"]
        assert len(got["token_logprobs"]) == len(got["top_logprobs"]) == len(ids) + length
    got = ask(http, prompt=[ids], echo=True, logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    base = house.base()
    prompt = house.prompt("topics", house.TEMPLATE)
    from softprompt.base.packing import TokenRow

    losses = base.nll([TokenRow(tuple(ids))], prompt.prefix).nll.tolist()
    assert [-x for x in got["token_logprobs"][:-1]] == pytest.approx(losses, abs=1e-4)
    pairs = list(zip(got["top_logprobs"], got["token_logprobs"], strict=True))
    assert all(max(top.values()) >= own for top, own in pairs)
    assert got["text_offset"][:3] == [0, 1, 2]


def test_one_token_is_measured_also_if_it_is_the_end(http: httpx.Client) -> None:
    """lm-evaluation-harness takes the last entry for the new token, so it must be there."""
    ends = {"logit_bias": {"2": 100}, "prompt": [10, 11, 12], "model": "free"}
    got = ask(http, **ends, echo=True, logprobs=1, max_tokens=1)["choices"][0]
    assert len(got["logprobs"]["token_logprobs"]) == 4
    assert got["logprobs"]["tokens"][-1] == "</s>"
    assert ask(http, **ends, max_tokens=5)["choices"][0]["text"] == ""


def test_streams_add_up_to_the_whole(http: httpx.Client) -> None:
    whole = ask(http, model="free", prompt=["one", "two"], max_tokens=12)
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none") as client:
        chunks = list(
            client.completions.create(
                model="free",
                prompt=["one", "two"],
                max_tokens=12,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [c["text"] for c in whole["choices"]]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole["usage"]["total_tokens"]


def test_stop_ends_before_it(http: httpx.Client) -> None:
    text = ask(http, model="free", prompt="one", max_tokens=12)["choices"][0]["text"]
    got = ask(http, model="free", prompt="one", max_tokens=12, stop=[text[4:6], "never there"])["choices"][0]
    assert got["text"] == text[: text.index(text[4:6])]
    assert got["finish_reason"] == "stop"


def test_seeds_fix_draws_and_n_differ(http: httpx.Client) -> None:
    drawn = [
        [c["text"] for c in ask(http, model="free", prompt="a", temperature=1.5, seed=5, n=4)["choices"]]
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1


def test_nulls_and_unknown_fields_pass(http: httpx.Client) -> None:
    fields = (
        "n",
        "stop",
        "logprobs",
        "suffix",
        "seed",
        "user",
        "logit_bias",
        "stream",
        "stream_options",
        "top_p",
    )
    ask(http, prompt="a", unheard_of={"x": 1}, **dict.fromkeys(fields))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [[1], "x"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [97]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [5] * 300_000}, "prompt"),
        ({"prompt": "x" * 600}, "prompt"),
        ({"model": "free", "prompt": [5] * 600}, "prompt"),
        ({"model": "free", "max_tokens": 600}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 100, "prompt": ["a", "b"]}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1000}}, "logit_bias"),
        ({"logit_bias": {"97": 1}}, "logit_bias"),
        ({"logprobs": 1000}, "logprobs"),
    ],
)
def test_bad_values_are_refused_by_name(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    if body.get("prompt") == "x" * 600:
        assert ask(http, **body)["usage"]["prompt_tokens"] <= 200  # its template cuts it, as in training
        return
    assert refused(http, **body)["param"] == param


def test_what_is_too_long_is_told_in_numbers(http: httpx.Client) -> None:
    error = refused(http, prompt=[5] * 500, max_tokens=20)
    assert error["code"] == "context_length_exceeded"
    assert "512 positions" in error["message"]
    assert "524" in error["message"]


def test_a_label_is_all_a_job_with_labels_says(http: httpx.Client, prompts: dict[str, Prompt]) -> None:
    got = ask(http, prompt="rates cut", max_tokens=50)
    assert got["choices"][0]["text"] == prompts["topics"].generate("rates cut", max_new_tokens=50)
    assert got["usage"]["completion_tokens"] <= 6
    assert got["choices"][0]["finish_reason"] == "stop"


def test_the_end_may_be_put_off_and_stops_be_tokens(http: httpx.Client) -> None:
    body = {
        "model": "free",
        "prompt": "x",
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 1,
    }
    whole = http.post("/v1/completions", json=body).json()["choices"][0]
    tokens = house.base().encode(whole["text"])
    ended = http.post("/v1/completions", json={**body, "stop_token_ids": [tokens[2]]}).json()["choices"][0]
    assert whole["text"].startswith(ended["text"])
    assert len(ended["text"]) <= 2
    least = {**body, "stop_token_ids": [tokens[2]], "min_tokens": 5}
    assert len(http.post("/v1/completions", json=least).json()["choices"][0]["logprobs"]["tokens"]) >= 5
