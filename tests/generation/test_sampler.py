"""Choosing a token: the cuts of transformers, the penalties of OpenAI, and draws that keep to their seed."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from softprompt.errors import BaseModelError, ConfigError
from softprompt.generation import sampler as module
from softprompt.generation.sampler import Sampler, Sampling, TokenChoice, eligible, token_choice

PROMPT = (3, 3, 7, 11)


def logits_of(seed: int, words: int = 200, scale: float = 3.0) -> Tensor:
    return torch.randn(words, generator=torch.Generator().manual_seed(seed)) * scale


def spread(found: tuple[Tensor | None, Tensor], words: int) -> Tensor:
    """Candidates as probabilities [V]."""
    ids, weights = found
    whole = torch.zeros(words, dtype=torch.float64)
    whole[torch.arange(words) if ids is None else ids] = weights.double()
    return whole / whole.sum()


def by_transformers(logits: Tensor, options: dict[str, Any]) -> Tensor:
    """Probabilities [V] after transformers' own warpers, in its order, in fp64."""
    warpers = [
        ("temperature", transformers.TemperatureLogitsWarper),
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ]
    scores, nothing = logits.double()[None], torch.zeros(1, 0, dtype=torch.long)
    for name, warper in warpers:
        if name in options:
            scores = warper(options[name])(nothing, scores)
    return scores[0].softmax(0)


def by_hand(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Probabilities [V] by sorting everything, in fp64."""
    probabilities = ((logits.double() - logits.max()) / temperature).exp()  # but for a factor
    order = probabilities.sort(descending=True, stable=True).indices.tolist()
    order = order[:top_k] if top_k else order
    total, before, kept = float(probabilities[order].sum()), 0.0, []
    for token in order:
        if before < top_p * total and probabilities[token] >= min_p * probabilities[order[0]]:
            kept.append(token)
        before += float(probabilities[token])
    cut = torch.zeros_like(probabilities)
    cut[kept] = probabilities[kept]
    return cut / cut.sum()


CUTS: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.3, "top_k": 1000},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.6, "top_p": 0.05},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 2.0, "top_k": 40, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    {"temperature": 1.0, "top_p": 0.5, "min_p": 0.3},
]


@pytest.mark.parametrize("options", CUTS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_what_may_be_drawn_is_what_transformers_allows(options: dict[str, Any], seed: int) -> None:
    logits = logits_of(seed)
    found = spread(eligible(logits, Sampling(**options)), len(logits))
    expected = by_transformers(logits, options)
    assert ((found > 0) == (expected > 0)).all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 5.0])  # the nucleus holds all, many or a few
@pytest.mark.parametrize("cut", [(0, 0.95, 0.0), (0, 0.3, 0.0), (1500, 0.9, 0.0), (0, 0.9, 0.2)], ids=str)
def test_a_large_vocabulary_is_cut_as_by_sorting_all_of_it(
    scale: float, cut: tuple[int, float, float]
) -> None:
    top_k, top_p, min_p = cut
    logits = logits_of(1, words=5000, scale=scale)
    sampling = Sampling(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)
    found, expected = spread(eligible(logits, sampling), 5000), by_hand(logits, 0.8, top_k, top_p, min_p)
    assert ((found > 0) == (expected > 0)).all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_looking_at_few_first_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, scale: float, top_p: float
) -> None:
    logits = logits_of(2, words=5000, scale=scale)
    sampling = Sampling(temperature=1.0, top_p=top_p)
    found = []
    for few in (2, 64, 1024, 5000):
        monkeypatch.setattr(module, "_PREFILTER", few)
        found.append(eligible(logits, sampling))
    for ids, weights in found[1:]:
        assert found[0][0] is not None
        assert ids is not None
        assert ids.equal(found[0][0])
        assert weights.equal(found[0][1])


def test_equals_at_the_edge_are_taken_from_the_lowest_id() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, 1.0, 1.0, 2.0])

    def kept(**options: Any) -> list[int]:
        ids, _ = eligible(logits, Sampling(temperature=1.0, **options))
        assert ids is not None
        return ids.tolist()

    assert kept(top_k=1) == [1]
    assert kept(top_k=3) == [1, 2, 5]
    assert kept(top_p=0.01) == [1]
    assert kept(top_p=0.65) == [1, 2, 5]  # the twos hold 0.62
    assert Sampler(Sampling()).sample(logits).id == 1
    assert [token for token, _ in token_choice(torch.zeros(5000), 9, 3).top] == [0, 1, 2]


@pytest.mark.parametrize("penalty", [0.5, 1.2, 3.0])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    logits, said = logits_of(3, words=30), [5, 9, 5]
    chooser = Sampler(Sampling(repetition_penalty=penalty, logit_bias={}), PROMPT)
    for token in said:
        forced = torch.full((30,), -1e4)
        forced[token] = 1e4
        assert chooser.sample(forced).id == token
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([[*PROMPT, *said]]), logits[None])[0]
    torch.testing.assert_close(chooser.adjusted(logits), expected)


def test_presence_and_frequency_count_what_the_answer_said_and_not_the_text() -> None:
    chooser = Sampler(Sampling(presence_penalty=0.5, frequency_penalty=0.25), prompt_ids=[0, 0, 3])
    for token in (1, 2, 1, 1):
        chooser.sample(torch.zeros(4).index_fill(0, torch.tensor([token]), 50.0))
    # token 1 was said three times: 0.5 + 3 * 0.25; token 2 once: 0.5 + 0.25
    assert chooser.adjusted(torch.ones(4)).tolist() == [1.0, -0.25, 0.25, 1.0]


def test_a_token_of_the_text_alone_is_not_yet_present_in_the_answer() -> None:
    chooser = Sampler(Sampling(presence_penalty=2.0, frequency_penalty=2.0, repetition_penalty=2.0), [1])
    assert chooser.adjusted(torch.ones(3)).tolist() == [1.0, 0.5, 1.0]


def test_greedy_choices_follow_penalties_and_bias() -> None:
    logits = torch.tensor([3.0, 2.9, 2.5])
    penalised = Sampler(Sampling(frequency_penalty=0.3))
    assert [penalised.sample(logits).id for _ in range(5)] == [0, 1, 0, 1, 2]  # 3, 2.9, 2.7, 2.6 and 2.5 left
    assert Sampler(Sampling(logit_bias={2: 0.6})).sample(logits).id == 2
    assert Sampler(Sampling(logit_bias={0: -100})).sample(logits).id == 1


def test_penalties_come_before_the_bias_and_the_bias_before_the_temperature() -> None:
    sampling = Sampling(
        temperature=2.0,
        repetition_penalty=2.0,
        presence_penalty=1.0,
        frequency_penalty=0.5,
        logit_bias={1: 3.0, 0: -4},
    )
    chooser = Sampler(sampling, prompt_ids=[1])
    chooser.sample(torch.tensor([-1e4, 1e4, -1e4]))
    adjusted = chooser.adjusted(torch.tensor([1.0, 4.0, 2.0]))
    assert adjusted.tolist() == [1 - 4, 4 / 2 - 1 - 0.5 + 3, 2.0]
    found = spread(eligible(adjusted, sampling), 3)
    torch.testing.assert_close(found, (adjusted.double() / 2).softmax(0), rtol=1e-6, atol=0)


def test_many_different_tokens_are_remembered() -> None:
    chooser = Sampler(Sampling(frequency_penalty=1.0))
    for token in [*range(150), *range(0, 150, 2)]:
        chooser.sample(torch.zeros(200).index_fill(0, torch.tensor([token]), 50.0))
    expected = [-2.0 if i % 2 == 0 else -1.0 for i in range(150)] + [0.0] * 50
    assert chooser.adjusted(torch.zeros(200)).tolist() == expected


def test_text_tokens_that_the_head_does_not_have_are_no_hindrance() -> None:
    chooser = Sampler(Sampling(repetition_penalty=2.0), prompt_ids=[1, 900])
    assert chooser.adjusted(torch.tensor([1.0, 1.0])).tolist() == [1.0, 0.5]


def test_the_logits_given_stay_as_they_are() -> None:
    logits = logits_of(4)
    before = logits.clone()
    for options in (*CUTS, {"repetition_penalty": 2.0, "logit_bias": {3: 5.0}, "logprobs": 4}):
        Sampler(Sampling(**options), PROMPT).sample(logits)
    assert logits.equal(before)


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_log_probabilities_are_the_models_own(count: int) -> None:
    logits = logits_of(5, words=60)
    sampling = Sampling(temperature=0.9, top_k=3, logit_bias={8: 60.0}, presence_penalty=1.0, logprobs=count)
    choice = Sampler(sampling).sample(logits)
    expected = logits.double().log_softmax(0)
    assert choice.id == 8
    assert choice.logprob == pytest.approx(float(expected[8]), abs=1e-5)
    best = expected.topk(min(count, 60))
    assert [token for token, _ in choice.top] == best.indices.tolist()
    assert [value for _, value in choice.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert Sampler(Sampling()).sample(logits) == TokenChoice(int(logits.argmax()), None, ())


def test_the_greedy_token_is_the_first_of_the_likeliest() -> None:
    for seed in range(20):
        logits = logits_of(seed, words=300).round()  # full of ties
        choice = Sampler(Sampling(logprobs=1)).sample(logits)
        assert choice.top == ((choice.id, choice.logprob),)
        assert choice.id == int(logits.argmax())


def test_draws_follow_their_probabilities() -> None:
    logits = torch.tensor([0.0, 3.0, -math.inf, 2.0, 1.0, 2.5])
    sampling = Sampling(temperature=1.5, top_p=0.9)
    chooser, count = Sampler(sampling), 20_000
    seen = torch.zeros(6)
    for _ in range(count):
        seen[chooser.sample(logits).id] += 1
    expected = by_hand(logits, 1.5, 0, 0.9, 0.0)
    assert (expected > 0).sum() == 4
    assert ((seen > 0) == (expected > 0)).all()
    kept = expected > 0
    chi_square = ((seen - count * expected) ** 2)[kept] / (count * expected)[kept]
    assert float(chi_square.sum()) < 16.3  # 3 degrees of freedom: one in a thousand


def test_a_row_draws_by_its_seed_and_number_alone() -> None:
    steps = [logits_of(seed, scale=1.0) for seed in range(30)]

    def drawn(seed: int, row: int) -> list[int]:
        chooser = Sampler(Sampling(temperature=1.0, seed=seed), row=row)
        return [chooser.sample(logits).id for logits in steps]

    alone = drawn(4, 1)
    others = [Sampler(Sampling(temperature=1.0, seed=4), row=row) for row in range(3)]
    together = [[chooser.sample(logits).id for chooser in others] for logits in steps]
    assert [row[1] for row in together] == alone == drawn(4, 1)
    assert len({tuple(drawn(seed, row)) for seed in (4, 5) for row in (0, 1, 2)}) == 6
    assert drawn(10**30, 0) != drawn(-1, 0)  # any whole number will do


def test_a_rounding_of_the_logits_moves_no_draw() -> None:
    logits = logits_of(6, words=2000, scale=0.01)  # near equals: a rounding changes their order
    noise = logits + 1e-6 * logits_of(7, words=2000, scale=1.0)
    assert not logits.argsort().equal(noise.argsort())
    rows = [Sampler(Sampling(temperature=1.0), row=row) for row in range(200) for _ in range(2)]
    same = sum(rows[i].sample(logits).id == rows[i + 1].sample(noise).id for i in range(0, len(rows), 2))
    assert same >= 198


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-9, 1e-5, 1e290])
def test_extreme_temperatures_draw_what_they_should(temperature: float) -> None:
    logits = torch.tensor([1.0, 3.0, -math.inf, 2.999])
    chooser = Sampler(Sampling(temperature=temperature))
    seen = {chooser.sample(logits).id for _ in range(100)}
    assert seen == ({0, 1, 3} if temperature > 1 else {1})


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.5, "logprobs": 3}])
@pytest.mark.parametrize("damage", [{4: math.nan}, {4: math.inf}, {4: math.nan, 0: math.inf}, {4: -math.nan}])
def test_damaged_logits_are_refused(options: dict[str, Any], damage: dict[int, float]) -> None:
    logits = logits_of(8)
    for place, value in damage.items():
        logits[place] = value
    with pytest.raises(BaseModelError, match="gave no finite numbers") as caught:
        Sampler(Sampling(**options), PROMPT).sample(logits)
    assert str(caught.value).count(".") == 1
    with pytest.raises(BaseModelError):
        Sampler(Sampling(**options)).sample(torch.full((20,), -math.inf))


def test_log_probabilities_of_damaged_logits_are_refused() -> None:
    with pytest.raises(BaseModelError, match="gave no finite numbers"):
        token_choice(torch.tensor([1.0, math.nan]), 0, 1)
    huge = torch.tensor([3e38, 1.0])  # finite, until a penalty below 1 raises it
    with pytest.raises(BaseModelError, match="gave no finite numbers"):
        Sampler(Sampling(temperature=1.0, repetition_penalty=0.01), [0]).sample(huge)


@pytest.mark.parametrize("top_p", [5e-324, 1e-12, 1 - 1e-16, math.nextafter(1, 0)])
def test_extreme_shares_leave_what_they_should(top_p: float) -> None:
    ids, _ = eligible(logits_of(10, words=3000, scale=0.1), Sampling(temperature=1.0, top_p=top_p))
    assert ids is not None
    assert len(ids) == (1 if top_p < 0.5 else 3000)


def test_words_ruled_out_by_the_model_stay_so() -> None:
    logits = torch.full((50,), -math.inf)
    logits[7] = 0.5
    sampling = Sampling(temperature=1.0, top_k=9, top_p=0.9, min_p=0.1, repetition_penalty=2.0, logprobs=3)
    chooser = Sampler(sampling, [3])
    for _ in range(5):
        choice = chooser.sample(logits)
        assert (choice.id, choice.logprob, choice.top[0]) == (7, 0.0, (7, 0.0))
        assert [value for _, value in choice.top[1:]] == [-math.inf] * 2


WHOLE = ("max_new_tokens", "top_k", "seed")
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
NUMBERS = ("temperature", "top_p", "min_p", *PENALTIES)
BAD: list[dict[str, Any]] = [
    *({name: value} for name in WHOLE for value in (1.0, "1", True, None, math.nan, [1])),
    *({name: value} for name in NUMBERS for value in ("1", True, None, math.nan, math.inf, -math.inf, [1.0])),
    *({name: value} for name in NUMBERS for value in (10**400, -(10**400))),
    {"max_new_tokens": 0},
    {"max_new_tokens": -(10**5000)},
    {"temperature": -0.1},
    {"top_k": -1},
    {"top_p": 0.0},
    {"top_p": 1.01},
    {"min_p": -0.1},
    {"min_p": 1.1},
    {"repetition_penalty": 0.0},
    {"repetition_penalty": 101.0},
    {"presence_penalty": 2.1},
    {"frequency_penalty": -2.1},
    *({"logprobs": value} for value in (-1, 101, 1.0, "5", True, math.nan)),
    *({"ignore_end": value} for value in (1, 0, None, "true")),
    *({"stop": value} for value in ("", ["a", ""], [1], None, 3, {"a": 1}, {"a"}, [["a"]], b"a")),
    *({"stop_tokens": value} for value in (5, "5", [-1], [1.0], [True], ["1"], None, [None])),
    *({"logit_bias": {5: value}} for value in (101, -101.0, math.nan, math.inf, "1", None, True)),
    *(
        {"logit_bias": value}
        for value in ({"5": 1.0}, {-1: 1.0}, {True: 1.0}, {1.5: 1.0}, 3, None, "ab", [5], [(1, 2, 3)])
    ),
    {"logit_bias": [(1, 2.0), (1, 3.0)]},
    {"stop": ["x" * 10_000, ""]},
    {"logit_bias": {5: "\ud800\n\x1b[31m"}},
]


@pytest.mark.parametrize("options", BAD, ids=lambda options: repr(next(iter(options))))
def test_every_wrong_value_is_one_plain_sentence(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"^{name} must be ") as caught:
        Sampling(**options)
    message = str(caught.value)
    assert message.endswith(".")
    assert len(message) < 200
    assert message.isprintable()
    message.encode()


def test_settings_of_several_values_are_kept_as_tuples_and_equal_when_they_mean_the_same() -> None:
    one = Sampling(stop="a", stop_tokens=[5], logit_bias={7: 1, 3: -2.5})
    other = Sampling(stop=["a"], stop_tokens=(5,), logit_bias=((3, -2.5), (7, 1.0)))
    assert one == other
    assert hash(one) == hash(other)
    assert (one.stop, one.stop_tokens, one.logit_bias) == (("a",), (5,), ((3, -2.5), (7, 1.0)))
    assert dataclasses.replace(one, seed=3).logit_bias == one.logit_bias
    assert Sampling() == Sampling(stop=[], logit_bias={}, stop_tokens=())


@pytest.mark.parametrize("options", [{"logit_bias": {4: 1.0, 5: 1.0}}, {"stop_tokens": [4, 5]}])
def test_tokens_the_model_does_not_have_are_named(options: dict[str, Any]) -> None:
    sampling = Sampling(**options)
    sampling.check_tokens(6)
    with pytest.raises(ConfigError, match=r"names token 5, but the model has 5, counted from 0\.$"):
        sampling.check_tokens(5)
    if "logit_bias" in options:
        with pytest.raises(ConfigError, match="names token 5"):
            Sampler(sampling).sample(torch.zeros(5))


def test_choosing_is_fast_for_a_large_vocabulary() -> None:
    """Bounds ten times what was measured on one slow core, against work that grows with V in Python."""
    logits = logits_of(9, words=150_000)
    bounds: list[tuple[dict[str, Any], float]] = [({}, 5e-4), ({"temperature": 1.0, "top_p": 0.95}, 0.1)]
    for options, bound in bounds:
        chooser = Sampler(Sampling(**options))
        times = []
        for _ in range(9):
            start = time.perf_counter()
            chooser.sample(logits)
            times.append(time.perf_counter() - start)
        assert sorted(times)[4] < bound
