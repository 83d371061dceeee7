"""Requests in vLLM's words: what it is asked, and what is made of its answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from library import samples
from softprompt.generation.request import CandidateLogprobs, Event, GenerateRequest, ScoreRequest
from softprompt.generation.sampler import Sampling
from softprompt.generation.scheduler import Scheduler
from softprompt.vllm.sampling import MOST_IDS, choice_of, questions, sampling_fields, summed

CANDIDATES = ((5, 9), (5, 9, 33), (5, 8), (7,), (5, 9))


def request(candidates: tuple[tuple[int, ...], ...], whole: bool) -> ScoreRequest:
    base = tiny.base()
    prefix = samples.prefix(base)
    return ScoreRequest(model=base, prefix=prefix, ids=(4, 40), candidates=candidates, whole=whole)


def scored(asked: ScoreRequest) -> tuple[float, ...]:
    events: list[Event] = []
    Scheduler(asked.model, rows=1).run_all([asked], lambda _, event: events.append(event))
    (found,) = (event for event in events if isinstance(event, CandidateLogprobs))
    return found.values


@pytest.mark.parametrize("whole", [True, False])
def test_answers_to_the_questions_are_the_score(whole: bool) -> None:
    asked = request(CANDIDATES, whole)
    told = []
    for question in questions(asked):
        one = ScoreRequest(
            model=asked.model,
            prefix=asked.prefix,
            ids=(*asked.ids, *question.behind),
            candidates=tuple((token,) for token in question.tokens),
            whole=False,
        )
        told.append((question, dict(zip(question.tokens, scored(one), strict=True))))
    assert summed(asked, told) == pytest.approx(scored(asked), abs=1e-5)


def test_candidates_that_begin_alike_are_asked_for_once() -> None:
    assert [tuple(q) for q in questions(request(CANDIDATES, whole=True))] == [
        ((), (5, 7)),
        ((5,), (9, 8)),
        ((5, 9), (33,)),
    ]
    assert [tuple(q) for q in questions(request(CANDIDATES, whole=False))] == [((), (5, 7))]


def test_many_candidates_are_asked_for_in_parts() -> None:
    many = tuple((n,) for n in range(2 * MOST_IDS + 1))
    assert [len(q.tokens) for q in questions(request(many, whole=False))] == [MOST_IDS, MOST_IDS, 1]


def test_a_token_is_told_as_our_sampler_tells_it() -> None:
    def said(logprob: float, rank: int) -> Any:
        return SimpleNamespace(logprob=logprob, rank=rank)

    told = {8: said(-3.0, 4), 5: said(-0.5, 1), 9: said(-2.0, 2), 3: said(-2.0, 3)}
    choice = choice_of(8, told, 3)
    assert (choice.id, choice.logprob) == (8, -3.0)
    assert choice.top == ((5, -0.5), (3, -2.0), (9, -2.0))  # the lowest id first of equals
    assert choice_of(8, told, 0).top == ()
    assert choice_of(8, None, None).logprob is None


def test_every_wish_reaches_vllm() -> None:
    base = tiny.base()
    sampling = Sampling(
        max_new_tokens=7,
        min_new_tokens=2,
        temperature=0.7,
        top_k=4,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.4,
        logit_bias={5: 2.0},
        seed=3,
        logprobs=2,
    )
    asked = GenerateRequest(
        model=base, prefix=samples.prefix(base), ids=(4, 5), sampling=sampling, row=1, echo=True, room=6
    )
    fields = sampling_fields(asked, {2, 1})
    other = sampling_fields(
        GenerateRequest(model=base, prefix=asked.prefix, ids=(4, 5), sampling=sampling, row=2), {2}
    )
    assert fields.pop("seed") != other["seed"]
    assert fields == {
        "max_tokens": 6,
        "min_tokens": 2,
        "temperature": 0.7,
        "top_k": 4,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "logit_bias": {5: 2.0},
        "stop_token_ids": [1, 2],
        "ignore_eos": True,
        "logprobs": 2,
        "prompt_logprobs": 2,
        "detokenize": False,
    }


def test_a_cold_answer_is_greedy() -> None:
    base = tiny.base()
    asked = GenerateRequest(
        model=base, prefix=samples.prefix(base), ids=(4,), sampling=Sampling(temperature=1e-6)
    )
    fields = sampling_fields(asked, set())
    assert fields["temperature"] == 0
    assert "seed" not in fields
