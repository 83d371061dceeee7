"""Answers: sampling that follows its seed, ends where it should, and never crosses rows."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
import torch

import tiny
from softprompt.base.generate import Request, Sampling, generate
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.errors import BaseModelError, WrongBaseError


def requests(base: Base) -> list[Request]:
    prefixes = [base.prefill_text(text) for text in ("abc", "", "x")]
    return [
        Request(tuple(base.encode(t)), prefixes[i % 3])
        for i, t in enumerate(("hello", "a", "some text", "zz"))
    ]


def endless(base: Base) -> Base:
    """The same base, whose end token never comes."""

    class Endless:
        def __getattr__(self, name: str) -> Any:
            return None if name == "eos_token_id" else getattr(base.tokenizer, name)

        def __call__(self, *args: Any, **options: Any) -> Any:
            return base.tokenizer(*args, **options)

    return dataclasses.replace(base, tokenizer=Endless())


def test_sampling_of_a_row_depends_on_the_seed_not_on_its_batch() -> None:
    base = endless(tiny.base())
    wanted = requests(base)
    sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=4)
    together = generate(base, wanted, sampling)
    assert together == generate(base, wanted, sampling)
    assert together[0] == generate(base, wanted[:1], sampling)[0]
    assert together != generate(base, wanted, Sampling(max_new_tokens=12, temperature=1.0, seed=5))


def test_an_answer_ends_at_its_stop_string_limit_or_length() -> None:
    base = endless(tiny.base())
    wanted = requests(base)
    tokens: list[list[int]] = [[] for _ in wanted]
    full = generate(base, wanted, Sampling(max_new_tokens=20), lambda row, token: tokens[row].append(token))
    assert [len(found) for found in tokens] == [20] * 4
    stop = full[0][5:7]
    stopped = generate(base, wanted, Sampling(max_new_tokens=20, stop=(stop,)))
    assert stopped[0] == full[0][: full[0].index(stop)]
    limited = generate(base, [dataclasses.replace(r, limit=3) for r in wanted], Sampling(max_new_tokens=20))
    assert limited == [base.decode(found[:3]) for found in tokens]


def test_the_end_token_ends_an_answer_and_is_not_part_of_it() -> None:
    base = endless(tiny.base())
    wanted = requests(base)[:1]
    seen: list[int] = []
    generate(base, wanted, Sampling(max_new_tokens=6), lambda row, token: seen.append(token))

    class Ends:
        eos_token_id = seen[3]

        def __getattr__(self, name: str) -> Any:
            return getattr(base.tokenizer, name)

        def __call__(self, *args: Any, **options: Any) -> Any:
            return base.tokenizer(*args, **options)

    first = seen.index(seen[3])
    again: list[int] = []
    ended = dataclasses.replace(base, tokenizer=Ends())
    generate(ended, wanted, Sampling(max_new_tokens=6), lambda row, token: again.append(token))
    assert again == seen[:first]


def test_a_prefix_of_another_base_is_refused() -> None:
    other = tiny.base("llama", seed=1).prefill_text("a")
    with pytest.raises(WrongBaseError, match="tiny-llama-0"):
        generate(tiny.base(), [Request((5,), other)])


def test_a_row_longer_than_the_model_is_refused() -> None:
    base = tiny.base()
    with pytest.raises(BaseModelError, match="holds 512"):
        generate(base, [Request((5,) * 500, base.prefill_text("a"))])


def test_nothing_to_go_on_from_is_refused() -> None:
    base = tiny.base()
    with pytest.raises(BaseModelError, match="no text to go on from"):
        generate(base, [Request((), base.prefill(torch.empty(0, base.width)))])


def test_one_base_answers_while_a_prompt_is_trained_on_it() -> None:
    base = endless(tiny.base())
    wanted, sampling = requests(base), Sampling(max_new_tokens=30)
    expected = generate(base, wanted, sampling)
    done = threading.Event()

    def train() -> None:
        soft = torch.randn(4, base.width).requires_grad_()
        while not done.is_set():
            base.nll([TokenRow((5, 6, 7, 8))], soft).nll.mean().backward()

    thread = threading.Thread(target=train)
    thread.start()
    try:
        answers = [generate(base, wanted, sampling) for _ in range(5)]
    finally:
        done.set()
        thread.join()
    assert answers == [expected] * 5
