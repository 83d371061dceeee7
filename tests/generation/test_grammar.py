"""Answers held to a grammar: exactly what it allows may come, each row by its own, whoever is beside it."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from generation.asking import Asked, soft, some_ids, until_over
from library import samples
from softprompt.base.lowrank import ridden
from softprompt.base.model import Base
from softprompt.errors import ConfigError
from softprompt.generation.grammar import Grammar
from softprompt.generation.request import Finished
from softprompt.generation.sampler import Sampler, Sampling
from softprompt.generation.scheduler import Scheduler
from softprompt.library.folder import Library
from softprompt.serving.builder import Builder
from softprompt.serving.version import Version, bare

pytest.importorskip("llguidance")

STYLES = ("byte-level", "byte-fallback")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["glad", "sad"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
DRAWN = {"temperature": 1.0, "seed": 5}


def held(
    own: Scheduler, version: Version, grammar: Grammar | None, row: int = 0, tokens: int = 120, **how: Any
) -> Asked:
    sampling = Sampling(**{"max_new_tokens": tokens, **how})
    ids = some_ids(random.Random(row), 3 + row)
    return Asked(own, version.generate(ids, sampling, row=row, grammar=grammar))


# -- what may come -------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [tiny.base(), *map(tiny.byte_base, STYLES)], ids=lambda base: base.name)
def test_a_token_may_come_exactly_where_some_text_of_the_grammar_goes_on_with_it(base: Base) -> None:
    texts = ["ther", "the", "th en", "tar", "therer"]
    grammar, words = Grammar.of_choices(base, texts), int(base.embedding.weight.shape[0])
    special = set(base.tokenizer.all_special_ids)
    pieces = {i: base.decode([i]) for i in range(len(base.tokenizer)) if i not in special}
    for text, length in itertools.product(texts, range(8)):
        state, begun = grammar.state(), text[:length]
        for token in base.encode(begun):
            state.take(token)
        wanted = {
            i for i, piece in pieces.items() if piece and any(t.startswith(begun + piece) for t in texts)
        }
        wanted |= base.end_ids if begun in texts else frozenset()
        found = set(state.allowed(words).nonzero()[:, 0].tolist())
        assert found <= wanted, begun
        # Of two tokens that spell the same, such as a letter and its byte, one may be left out.
        assert {pieces.get(i) for i in found} == {pieces.get(i) for i in wanted}, begun
        assert state.complete == (begun == "th en" or begun == "tar" or begun == "therer")


def test_draws_are_those_of_the_distribution_without_what_is_not_allowed() -> None:
    torch.manual_seed(3)
    logits, allowed = torch.randn(50), torch.rand(50) < 0.3
    ruled_out = torch.where(allowed, logits, torch.tensor(-torch.inf))
    for how in (
        {},
        {"temperature": 0.8},
        {"temperature": 1.0, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.5},
    ):
        for seed in range(20):
            sampling = Sampling(seed=seed, **how)  # type: ignore[arg-type]
            found = Sampler(sampling).sample(logits, allowed=allowed)
            assert found == Sampler(sampling).sample(ruled_out)
    told = Sampler(Sampling(logprobs=1)).sample(logits, allowed=allowed)
    assert told.logprob == pytest.approx(float(logits.log_softmax(0)[told.id]))
    assert told.top[0][0] == int(logits.argmax()), "likelihoods are the model's own"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("how", [{}, DRAWN], ids=["greedy", "drawn"])
def test_every_json_fits_its_schema(style: str, how: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema_rs")
    base = tiny.byte_base(style)
    own, grammar = Scheduler(base), Grammar.of_schema(base, PERSON)
    asked = [held(own, bare(base), grammar, row, **how) for row in range(6)]
    until_over(own, *asked)
    for one in asked:
        assert one.events[-1] == Finished("stop", len(one.request.ids), 0, len(one.tokens))
        jsonschema.validate(PERSON, json.loads(one.text))


def test_an_object_holds_what_its_schema_names_and_no_more() -> None:
    """Pydantic's schemas leave objects open, and a model that may go on seldom ends."""
    base = tiny.byte_base()
    inner = {"properties": {"properties": {"enum": [{"properties": {}}]}}, "required": ["properties"]}
    schema = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    state = Grammar.of_schema(base, schema).state()
    for token in base.encode('{"a": {"properties": {"properties": {}}}}'):
        assert state.allowed(300)[token]
        state.take(token)
    assert state.complete
    both = {
        "allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}],
        "type": "object",
    }
    state = Grammar.of_schema(base, both).state()
    for token in base.encode('{"a": 1, "b": 2}'):
        assert state.allowed(300)[token], "parts that are put together stay open"
        state.take(token)


# -- rows of all kinds, each by its own ------------------------------------------------------------------


def kinds(frozen: Base, folder: Path) -> list[Version]:
    """The bare base, a soft prompt, a KV prefix, an adapter and a fine-tuned copy."""
    served = ridden(frozen)
    samples.lora(frozen, "tuned", positions=2).save(folder)
    samples.full(frozen, "whole", positions=1).save(folder)
    built = Builder(Library(folder), frozen, served)
    pairs = Version("pairs", "01", None, samples.prefix(frozen, 5), None, served, 0)
    return [bare(served), soft(served), pairs, built("tuned"), built("whole")]


def test_each_row_follows_its_own_grammar_in_any_company(tmp_path: Path) -> None:
    base = tiny.byte_base()
    grammars = [
        Grammar.of_regex(base, "[a-f]{4,9}!"),
        Grammar.of_choices(base, ["sport", "business", "tech"]),
        Grammar.of_schema(base, PERSON),
        None,
    ]
    wanted = []
    cases = list(enumerate(itertools.product(kinds(base, tmp_path), grammars)))
    for row, (version, grammar) in cases:
        own = Scheduler(version.model)
        wanted.append(held(own, version, grammar, row, tokens=60, **(DRAWN if row % 2 else {})))
        until_over(own, wanted[-1])
    own = Scheduler(cases[0][1][0].model, rows=20)
    found = [held(own, v, g, row, tokens=60, **(DRAWN if row % 2 else {})) for row, (v, g) in cases]
    until_over(own, *found)
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    for (_, (_, grammar)), one in zip(cases, found, strict=True):
        assert one.error is None
        if grammar is grammars[0]:
            assert re.fullmatch("[a-f]{4,9}!", one.text)
        if grammar is grammars[1]:
            assert one.text in {"sport", "business", "tech"}


def test_a_row_that_makes_room_goes_on_in_its_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    from softprompt.generation import batch

    monkeypatch.setattr(batch, "_HEADROOM", 1)
    base = tiny.byte_base()
    grammar = Grammar.of_regex(base, "([a-z]{5} ){20}")
    plenty, short = Scheduler(base), Scheduler(base, room=400, rows=6)
    wanted = [held(plenty, bare(base), grammar, row, tokens=150, **DRAWN) for row in range(6)]
    until_over(plenty, *wanted)
    found = [held(short, bare(base), grammar, row, tokens=150, **DRAWN) for row in range(6)]
    until_over(short, *found)
    assert [one.text for one in found] == [one.text for one in wanted]
    assert all(re.fullmatch("([a-z]{5} ){20}", one.text) for one in found)


def test_an_answer_that_is_cut_is_a_beginning_and_says_so() -> None:
    base = tiny.byte_base()
    own = Scheduler(base)
    one = held(own, bare(base), Grammar.of_regex(base, "[a-c]{30}"), tokens=7)
    until_over(own, one)
    assert isinstance(one.events[-1], Finished)
    assert one.events[-1].reason == "length"
    assert re.fullmatch("[a-c]{7,14}", one.text)


# -- what cannot be followed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "nonsense"}, "Invalid type: nonsense"),
        ({"type": "array", "uniqueItems": True}, "Unimplemented keys"),
        ({"$ref": "http://localhost:1/x.json"}, "not present in a registry"),
        ({"$ref": "#"}, "cannot be followed"),
        ({"type": "string", "pattern": "(?=x)"}, "look-around"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_in_a_sentence(schema: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        Grammar.of_schema(tiny.byte_base(), schema)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")


def test_a_vocabulary_without_the_letters_is_refused() -> None:
    with pytest.raises(ConfigError, match="none that this model's tokens can spell"):
        Grammar.of_regex(tiny.base(), "[äöü]+")


def test_what_a_grammar_may_cost_is_bounded() -> None:
    """Nobody's schema takes the engine's thread, or memory, for long."""
    base = tiny.byte_base()
    bombs: list[Any] = [
        {"type": "array", "items": {"type": "string"}, "minItems": 10**6},
        {"type": "string", "minLength": 10**5, "maxLength": 10**6},
        {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
        {"type": "string", "pattern": "^(.*a){40}$"},
        {"enum": [f"w{n}" for n in range(6000)]},
        {"type": "object", "properties": {f"w{n}": {"type": "string"} for n in range(1500)}},
        {"allOf": [{"anyOf": [{"properties": {f"k{i}{j}": {}}} for j in range(8)]} for i in range(6)]},
    ]
    for bomb in bombs:
        begun = time.process_time()
        try:
            state = Grammar.of_schema(base, bomb).state()
        except ConfigError:
            continue
        finally:
            assert time.process_time() - begun < 3, bomb
        slowest = 0.0
        draw = random.Random(0)
        for _ in range(30):
            begun = time.process_time()
            may = state.allowed(300).nonzero()[:, 0].tolist()
            try:
                state.take(draw.choice(may))
            except ConfigError:
                break
            slowest = max(slowest, time.process_time() - begun)
            if state.complete:
                break
        assert slowest < 0.5, bomb
