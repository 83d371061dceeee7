"""Names and texts in, answers out: the same as from the library's own prompts, whoever else is asked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from generation.asking import Asked, some_ids, write
from library import samples
from softprompt.base.model import Base
from softprompt.errors import (
    ArtifactError,
    BaseModelError,
    CancelledJobError,
    ConfigError,
    DataError,
    QueueFullError,
)
from softprompt.generation.sampler import Sampling
from softprompt.library.folder import Library
from softprompt.library.prompt import Prompt, answer_together, load_prompt
from softprompt.serving.engine import Engine
from softprompt.serving.version import Version, bare

LABELS: dict[str, Any] = {
    "front": "{soft:4}",
    "input": "Headline: {text}\nTopic:",
    "target": " {label}",
    "labels": {"sport": "sport", "business": "money", "tech": "bits"},
    "label_column": "label",
    "end_of_text": False,
    "max_tokens": 90,
}
ALIKE = LABELS | {"labels": {"one": "team", "two": "tea", "three": "teapot"}}
"""First tokens do not tell these apart, so whole words are compared."""
CHOICES = LABELS | {"labels": None, "choices": "options", "target": " {choice}"}
FREE = LABELS | {"target": " {summary}", "labels": None, "label_column": None, "input": "Say: {text}\n"}

TEMPLATES: dict[str, dict[str, Any]] = {
    "labels": LABELS,
    "alike": ALIKE,
    "calibrated": LABELS | {"calibrate": True},
    "calibrated-alike": ALIKE | {"calibrate": True, "end_of_text": True},
    "by-length": ALIKE | {"normalise": "length"},
    "scaled": LABELS | {"scaling": {"scale": [0.5, 2.0, 1.5], "shift": [1.0, -1.0, 0.25]}},
    "choices": CHOICES,
    "choices-by-length": CHOICES | {"normalise": "length", "calibrate": True},
    "free": FREE,
}
TEXTS = ["rates cut", "a", "the long awaited final is won by the team that nobody had named before"]
ROWS = [{"text": text, "options": ["yes", "yes sir", "no"][: 2 + n % 2]} for n, text in enumerate(TEXTS)]


def fill(library: Path) -> dict[str, Prompt]:
    """A prompt for every template, and one of every kind."""
    base = tiny.base()
    for seed, (name, template) in enumerate(TEMPLATES.items()):
        card = samples.bound(base, "prompt-tuning", samples.P, name=name, template=template)
        Prompt(base, samples.soft(base, seed), card).save(library)
    samples.lora(base, "tuned", positions=2, dora=True).save(library)
    samples.ia3(base, "vectors", positions=2).save(library)
    samples.full(base, "whole", positions=1).save(library)
    pairs = samples.prefix(base)
    Prompt(base, pairs, samples.bound(base, "prefix-tuning", pairs.length, name="pairs")).save(library)
    return {name: load_prompt(name, base, library) for name in Library(library).names()}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine") / "prompts"


@pytest.fixture(scope="module")
def prompts(library: Path) -> dict[str, Prompt]:
    return fill(library)


@pytest.fixture(scope="module")
def engine(library: Path, prompts: dict[str, Prompt]) -> Iterator[Engine]:
    with Engine(tiny.base(), library, rows=5, chunk=9) as started:
        yield started


# -- answers ---------------------------------------------------------------------------------------


def test_it_generates_what_each_prompt_does(engine: Engine, prompts: dict[str, Prompt]) -> None:
    names = ["free", "tuned", "whole", "pairs", "labels"]
    asks = [(name, text) for text in TEXTS for name in names]
    random.Random(1).shuffle(asks)
    wanted = [prompts[name].generate(text, max_new_tokens=20) for name, text in asks]
    assert engine.generate(asks, max_new_tokens=20) == wanted
    assert any(len(text) > 15 for text in wanted)


def test_a_text_by_itself_asks_the_bare_base(engine: Engine) -> None:
    wanted = answer_together([(None, text) for text in TEXTS], tiny.base(), max_new_tokens=9)
    assert engine.generate(TEXTS, max_new_tokens=9) == wanted
    assert engine.generate([(None, TEXTS[0]), ("tiny-llama-0", TEXTS[1])], max_new_tokens=9) == wanted[:2]


def test_draws_follow_the_seed_and_the_row(engine: Engine, prompts: dict[str, Prompt]) -> None:
    how: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.2, "top_p": 0.9, "seed": 5}
    found = engine.generate([("free", "same")] * 4, **how)
    assert found == prompts["free"].generate(["same"] * 4, **how)
    assert len(set(found)) > 1


@pytest.mark.parametrize(
    "how",
    [
        {"repetition_penalty": 1.5, "frequency_penalty": 0.5},
        {"logit_bias": {40: 90.0}, "stop_tokens": (41,)},
        {"temperature": 1.0, "top_k": 5, "min_p": 0.1, "seed": 9},
    ],
    ids=str,
)
def test_every_way_of_choosing_is_the_librarys(
    engine: Engine, prompts: dict[str, Prompt], how: dict[str, Any]
) -> None:
    wanted = prompts["free"].generate(TEXTS, max_new_tokens=15, **how)
    assert engine.generate([("free", text) for text in TEXTS], max_new_tokens=15, **how) == wanted


def test_answers_end_at_stop_strings_limits_and_labels(engine: Engine, prompts: dict[str, Prompt]) -> None:
    (whole,) = engine.generate([("free", "one")], max_new_tokens=20, ignore_end=True)
    (short,) = engine.generate([("free", "one")], max_new_tokens=20, ignore_end=True, stop=whole[4:6])
    assert short == whole[: whole.index(whole[4:6])]
    (label,) = engine.generate([("labels", "one")], max_new_tokens=20, ignore_end=True)
    assert label == prompts["labels"].generate("one", max_new_tokens=20, ignore_end=True)
    assert 0 < len(label) <= len(" money"), "no label is longer"


@pytest.mark.parametrize(
    "name", ["labels", "alike", "calibrated", "calibrated-alike", "by-length", "tuned", "whole"]
)
def test_it_classifies_texts_as_the_prompt_does(
    engine: Engine, prompts: dict[str, Prompt], name: str
) -> None:
    found = engine.classify([(name, text) for text in TEXTS])
    for shares, text in zip(found, TEXTS, strict=True):
        wanted = prompts[name].classify(text)
        assert list(shares) == list(wanted)
        assert shares == pytest.approx(wanted, abs=1e-5)
    assert sum(found[0].values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["choices", "choices-by-length"])
def test_it_chooses_among_what_a_row_offers(engine: Engine, prompts: dict[str, Prompt], name: str) -> None:
    found = engine.classify([(name, row) for row in ROWS])
    for shares, row in zip(found, ROWS, strict=True):
        assert set(shares) == set(row["options"])
        assert shares == pytest.approx(prompts[name].classify(row), abs=1e-5)


def test_prompts_that_change_the_model_and_those_that_do_not_share_a_batch(engine: Engine) -> None:
    names = ["labels", "tuned", "pairs", "whole", "alike", "calibrated"]
    together = engine.classify([(name, TEXTS[2]) for name in names])
    for shares, name in zip(together, names, strict=True):
        assert shares == pytest.approx(engine.classify([(name, TEXTS[2])])[0], abs=1e-5)


def test_packed_weights_answer_alike(library: Path, prompts: dict[str, Prompt]) -> None:
    asks = [(name, text) for text in TEXTS for name in ("free", "tuned", "whole", None)]
    answers = []
    for pack in (True, False):
        with Engine(tiny.base(), library, pack=pack) as engine:
            answers.append(engine.generate(asks, max_new_tokens=12))
    assert answers[0] == answers[1]


# -- likelihoods -----------------------------------------------------------------------------------


def versions(base: Base) -> list[Version]:
    """The base behind nothing, and behind a soft prompt, which expects a first token."""
    front = samples.soft(base, 3)
    with torch.no_grad():
        return [bare(base), Version("soft", "00", None, base.prefill(front), None, base, 0)]


@pytest.mark.parametrize("chunk", [1, 3, 256])
@pytest.mark.parametrize("front", [0, samples.P])
def test_echoes_tell_the_models_own_log_probabilities(library: Path, front: int, chunk: int) -> None:
    ids = some_ids(random.Random(1), 14)
    with Engine(tiny.base(), library, chunk=chunk) as engine:
        version = versions(engine.base)[front > 0]
        job = version.generate(ids, Sampling(max_new_tokens=5, logprobs=3, ignore_end=True), echo=True)
        plain, one = Asked(engine, bare(engine.base).generate(ids, Sampling())), Asked(engine, job).wait()
        plain.wait()
    everything = [*ids, *one.tokens]
    model, vectors = tiny.model("llama"), samples.soft(tiny.base(), 3)[:front]
    with torch.no_grad():
        embedded = torch.cat([vectors, model.get_input_embeddings()(torch.tensor(everything))])
        shares = model(inputs_embeds=embedded[None]).logits[0].log_softmax(-1)  # [P + T, V]
    told = [*one.heard, *one.said]
    assert [said.id for said in told] == everything
    assert (told[0].logprob is None) == (not front)
    for place, said in enumerate(told[1 - bool(front) :], 1 - bool(front)):
        row = shares[front + place - 1]
        best = row.topk(3)
        assert said.logprob == pytest.approx(float(row[everything[place]]), abs=1e-4)
        assert [token for token, _ in said.top] == best.indices.tolist()
        assert [value for _, value in said.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_an_echo_may_be_all_that_is_asked_for(engine: Engine) -> None:
    ids = some_ids(random.Random(2), 20)
    job = versions(engine.base)[0].generate(ids, Sampling(logprobs=0), echo=True, room=0)
    one = Asked(engine, job).wait()
    assert one.error is None
    assert [said.id for said in one.heard] == list(ids)
    assert one.tokens == []


def test_an_answer_tells_how_likely_its_tokens_were(engine: Engine) -> None:
    ids = some_ids(random.Random(3), 6)
    how: dict[str, Any] = {"temperature": 1.5, "seed": 4, "logprobs": 2, "repetition_penalty": 1.3}
    one = write(engine, versions(engine.base)[0], ids, 8, **how).wait()
    with torch.no_grad():
        shares = tiny.model("llama")(torch.tensor([[*ids, *one.tokens]])).logits[0].log_softmax(-1)
    for place, said in enumerate(one.said, len(ids) - 1):
        assert said.logprob == pytest.approx(float(shares[place, said.id]), abs=1e-4), "before any penalty"


# -- what cannot be --------------------------------------------------------------------------------


def test_what_cannot_be_asked_is_refused_by_name(engine: Engine) -> None:
    with pytest.raises(ArtifactError, match="no prompt called 'lables'; did you mean labels"):
        engine.generate([("lables", "x")])
    with pytest.raises(ConfigError, match="'heat' is no sampling option"):
        engine.generate(["x"], heat=2)
    with pytest.raises(ConfigError, match="free was learnt without labels"):
        engine.classify([("free", "x")])
    with pytest.raises(ConfigError, match="tiny-llama-0 was learnt without labels"):
        engine.classify([(None, "x")])
    with pytest.raises(DataError):
        engine.classify([("choices", {"text": "x"})])
    with pytest.raises(BaseModelError, match="no text to go on from"):
        engine.generate([""])
    with pytest.raises(BaseModelError, match="holds 512"):
        engine.generate(["x" * 600])
    assert all(held.users == 0 for held in engine.registry.loaded()), (
        "a refused request must give back its lease"
    )


def test_more_asks_than_the_queue_holds_wait_for_their_turn(
    library: Path, prompts: dict[str, Prompt]
) -> None:
    with Engine(tiny.base(), library, rows=2, queue=3) as engine:
        found = engine.generate([("free", text) for text in TEXTS * 5], max_new_tokens=4)
    assert found == prompts["free"].generate(TEXTS, max_new_tokens=4) * 5


def test_a_budget_for_one_prompt_at_a_time_is_enough_for_all(
    library: Path, prompts: dict[str, Prompt]
) -> None:
    asks = [(name, text) for text in TEXTS for name in ("free", "labels", "alike", "pairs")]
    one = max(held.nbytes for held in loaded(library, [name for name, _ in asks]))
    with Engine(tiny.base(), library, budget=one) as engine:
        found = engine.generate(asks, max_new_tokens=4)
        counts = engine.registry.counts
    assert found == [prompts[name].generate(text, max_new_tokens=4) for name, text in asks]
    assert counts.bytes <= one
    assert counts.evictions >= 10


def loaded(library: Path, names: list[str]) -> list[Any]:
    with Engine(tiny.base(), library) as engine:
        for name in names:
            engine.registry.lease(name).close()
        return engine.registry.loaded()


# -- life ------------------------------------------------------------------------------------------


def test_it_lives_from_start_to_close(library: Path) -> None:
    engine = Engine(tiny.base(), library)
    assert not engine.alive
    assert engine.start() is engine.start()
    assert engine.alive
    one = write(engine, bare(engine.base), (5, 6), 50)
    engine.close()
    assert not engine.alive
    assert len(one.tokens) == 50, "what was taken on is finished"
    engine.close()
    with pytest.raises(QueueFullError, match="shutting down"):
        engine.generate(["x"])


def test_what_takes_longer_than_the_drain_is_called_off(library: Path) -> None:
    engine = Engine(tiny.base(), library).start()
    one = write(engine, bare(engine.base), (5, 6), 500).until(1)
    engine.close(drain=0)
    assert isinstance(one.error, CancelledJobError)
    assert 0 < len(one.tokens) < 500


def test_a_program_that_fails_does_not_wait_for_its_answers(library: Path) -> None:
    asked: list[Asked] = []

    def fail() -> None:
        with Engine(tiny.base(), library) as engine:
            asked.append(write(engine, bare(engine.base), (5, 6), 500).until(1))
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert isinstance(asked[0].error, CancelledJobError)
