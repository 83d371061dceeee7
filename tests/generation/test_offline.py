"""Answers: sampling that follows its seed, ends where it should, and never crosses rows."""

from __future__ import annotations

import copy
import dataclasses
import threading
from typing import Any

import pytest
import torch
import transformers

import tiny
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.errors import BaseModelError, WrongBaseError
from softprompt.generation.offline import generate
from softprompt.generation.request import Event, GenerateRequest, TextDelta
from softprompt.generation.sampler import Sampling

TEXTS = ("hello", "a", "some text", "zz")


def requests(base: Base, sampling: Sampling | None = None, **how: Any) -> list[GenerateRequest]:
    prefixes = [base.prefill_text(text) for text in ("abc", "", "x")]
    sampling = sampling or Sampling()
    return [
        GenerateRequest(
            model=base, prefix=prefixes[i % 3], ids=tuple(base.encode(t)), sampling=sampling, row=i, **how
        )
        for i, t in enumerate(TEXTS)
    ]


def written(wanted: list[GenerateRequest]) -> list[list[int]]:
    """The tokens of every answer."""
    tokens: list[list[int]] = [[] for _ in wanted]

    def told(number: int, event: Event) -> None:
        if isinstance(event, TextDelta):
            tokens[number] += [token.id for token in event.tokens]

    generate(wanted, on_event=told)
    return tokens


def endless(base: Base) -> Base:
    """The same base, whose end token never comes."""

    class Endless:
        def __getattr__(self, name: str) -> Any:
            return None if name == "eos_token_id" else getattr(base.tokenizer, name)

        def __call__(self, *args: Any, **options: Any) -> Any:
            return base.tokenizer(*args, **options)

    model = copy.copy(base.model)
    model.generation_config = None
    return dataclasses.replace(base, model=model, tokenizer=Endless())


def test_sampling_of_a_row_depends_on_the_seed_not_on_its_batch() -> None:
    base = endless(tiny.base())
    wanted = requests(base, Sampling(max_new_tokens=12, temperature=1.0, seed=4))
    together = generate(wanted)
    assert together == generate(wanted)
    assert together == generate(wanted, rows=2)
    assert [together[2]] == generate(wanted[2:3])
    assert together != generate(requests(base, Sampling(max_new_tokens=12, temperature=1.0, seed=5)))


def test_an_answer_ends_at_its_stop_string_limit_or_length() -> None:
    base = endless(tiny.base())
    full = generate(requests(base, Sampling(max_new_tokens=20)))
    tokens = written(requests(base, Sampling(max_new_tokens=20)))
    assert [len(found) for found in tokens] == [20] * 4
    stop = full[0][5:7]
    stopped = generate(requests(base, Sampling(max_new_tokens=20, stop=(stop,))))
    assert stopped[0] == full[0][: full[0].index(stop)]
    limited = generate(requests(base, Sampling(max_new_tokens=20), room=3))
    assert limited == [base.decode(found[:3]) for found in tokens]


def test_the_end_token_ends_an_answer_and_is_not_part_of_it() -> None:
    base = endless(tiny.base())
    (seen,) = written(requests(base, Sampling(max_new_tokens=6))[:1])

    class Ends:
        eos_token_id = seen[3]

        def __getattr__(self, name: str) -> Any:
            return getattr(base.tokenizer, name)

        def __call__(self, *args: Any, **options: Any) -> Any:
            return base.tokenizer(*args, **options)

    first = seen.index(seen[3])
    ended = dataclasses.replace(base, tokenizer=Ends())
    (again,) = written(requests(ended, Sampling(max_new_tokens=6))[:1])
    assert again == seen[:first]


def test_every_end_that_the_generation_settings_name_ends_an_answer() -> None:
    base = endless(tiny.base())
    (seen,) = written(requests(base, Sampling(max_new_tokens=12))[:1])
    model = copy.copy(tiny.base().model)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=[2, seen[3]], pad_token_id=0, max_new_tokens=12, do_sample=False
    )
    ended = dataclasses.replace(tiny.base(), model=model)
    ids = [*ended.opening("abc"), *ended.encode(TEXTS[0])]
    theirs = model.generate(torch.tensor([ids]), use_cache=False)[0, len(ids) :].tolist()
    assert theirs == seen[: len(theirs)]
    (found,) = written(requests(ended, Sampling(max_new_tokens=12))[:1])
    assert [*found, seen[3]] == theirs
    (on,) = written(requests(ended, Sampling(max_new_tokens=12, ignore_end=True))[:1])
    assert on == seen


def test_a_prefix_of_another_base_is_refused() -> None:
    other = tiny.base("llama", seed=1).prefill_text("a")
    with pytest.raises(WrongBaseError, match="tiny-llama-0"):
        generate([GenerateRequest(model=tiny.base(), prefix=other, ids=(5,))])


def test_a_row_longer_than_the_model_is_refused() -> None:
    base = tiny.base()
    with pytest.raises(BaseModelError, match="holds 512"):
        generate([GenerateRequest(model=base, prefix=base.prefill_text("a"), ids=(5,) * 500)])


def test_nothing_to_go_on_from_is_refused() -> None:
    base = tiny.base()
    with pytest.raises(BaseModelError, match="no text to go on from"):
        generate([GenerateRequest(model=base, prefix=base.prefill(torch.empty(0, base.width)), ids=())])


def test_one_base_answers_while_a_prompt_is_trained_on_it() -> None:
    base = endless(tiny.base())
    wanted = requests(base, Sampling(max_new_tokens=30))
    expected = generate(wanted)
    done = threading.Event()

    def train() -> None:
        soft = torch.randn(4, base.width).requires_grad_()
        while not done.is_set():
            base.nll([TokenRow((5, 6, 7, 8))], soft).nll.mean().backward()

    thread = threading.Thread(target=train)
    thread.start()
    try:
        answers = [generate(wanted) for _ in range(5)]
    finally:
        done.set()
        thread.join()
    assert answers == [expected] * 5


def test_an_answer_has_its_least_length_as_in_transformers() -> None:
    """Neither the end token nor a stop token comes before it; what is told of likelihoods is not changed."""
    base = tiny.base()
    ids = tuple(base.encode("hello"))
    plain = requests(endless(base), Sampling(max_new_tokens=12))[0]
    plain = dataclasses.replace(plain, prefix=base.prefill_text(""), ids=ids)
    stop = written([plain])[0][2]
    sampling = Sampling(max_new_tokens=12, stop_tokens=[stop], ignore_end=True)
    short = dataclasses.replace(plain, sampling=sampling)
    assert len(written([short])[0]) <= 2
    long = dataclasses.replace(plain, sampling=dataclasses.replace(sampling, min_new_tokens=6))
    found = written([long])[0]
    with torch.no_grad():
        wanted = base.model.generate(
            torch.tensor([ids]),
            min_new_tokens=6,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=[stop],
            pad_token_id=0,
        )[0, len(ids) :].tolist()
    assert found == wanted[: len(found)]
    assert len(found) >= 6
    assert wanted[len(found) :] in ([], [stop])


def test_stops_are_not_looked_for_before_the_least_length() -> None:
    base = endless(tiny.base())
    (free, *_) = requests(base, Sampling(max_new_tokens=12))
    text = generate([free])[0]
    stopping = Sampling(max_new_tokens=12, stop=text[1])
    assert generate([dataclasses.replace(free, sampling=stopping)])[0] == text[: text.index(text[1])]
    least = dataclasses.replace(free, sampling=dataclasses.replace(stopping, min_new_tokens=4))
    longer = generate([least])[0]
    assert longer.startswith(text[:4])
    again = text.find(text[1], 4)
    assert longer == (text if again < 0 else text[:again])
