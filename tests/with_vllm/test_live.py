"""vLLM itself behind the engine, where it is installed: its answers are those of our own engine.

One vLLM with a tiny base, in so little memory that rows are preempted; `make vllm` makes it a place to run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from generation.asking import Asked
from library import samples
from softprompt.base.model import Base
from softprompt.checkpoints.freeze import load_base
from softprompt.errors import ArtifactError, BaseModelError, ConfigError
from softprompt.generation.request import GenerateRequest, ScoreRequest
from softprompt.generation.sampler import Sampling
from softprompt.library.prompt import Prompt
from softprompt.serving.engine import Engine

pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm` makes an environment that has it")
pytestmark = [
    pytest.mark.timeout(600),
]

LABELS = {"sport": "team", "business": "tea", "tech": "bits"}
TEXTS = ["rates cut", "a", "the long awaited final is won by the team that nobody had named before"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = tiny.CONFIGS["llama"]()
    config.hidden_size, config.head_dim = 64, 32  # vLLM's kernels on CPUs take no smaller heads
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.2 / parameter.std())
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return load_base(str(folder), dtype="float32", device="cpu")


def fill(base: Base, library: Path) -> None:
    template = samples.card_values()["template"] | {"labels": LABELS}
    for seed in range(3):
        name, positions = f"soft-{seed}", 1 + 8 * seed
        card = samples.bound(base, "prompt-tuning", positions, name=name, template=template)
        Prompt(base, samples.soft(base, seed, positions), card).save(library)
    pairs = samples.prefix(base)
    card = samples.bound(base, "prefix-tuning", pairs.length, name="pairs", template=template)
    Prompt(base, pairs, card).save(library)
    for seed in range(3):
        samples.lora(base, f"tuned-{seed}", positions=seed, seed=seed).save(library)
    samples.lora(base, "dora", dora=True).save(library)
    samples.full(base, "whole").save(library)


@pytest.fixture(scope="module")
def library(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("with-vllm") / "prompts"
    fill(base, library)
    return library


@pytest.fixture(scope="module")
def engine(base: Base, library: Path) -> Iterator[Engine]:
    from softprompt.vllm.engine import VllmEngine, greatest_rank

    options = {"enforce_eager": True, "block_size": 32, "max_model_len": 256}
    backend = VllmEngine(
        base,
        rows=8,
        kv_memory=10 * 32 * _position(base),
        rank=greatest_rank(base, str(library)),
        options=options,
    )
    with Engine(base, library, backend=backend) as started:
        yield started


@pytest.fixture(scope="module")
def own(base: Base, library: Path) -> Iterator[Engine]:
    with Engine(base, library, pack=False) as started:
        yield started


def _position(base: Base) -> int:
    """Bytes of a position's keys and values."""
    one = base.prefill(samples.soft(base, positions=1))
    return one.nbytes


NAMES = [None, "soft-0", "soft-1", "soft-2", "pairs", "tuned-0", "tuned-1", "tuned-2"]


def test_mixed_answers_are_those_of_our_own_engine_also_after_preemptions(
    engine: Engine, own: Engine
) -> None:
    draw = random.Random(1)
    asks = [(name, draw.choice(TEXTS) * draw.randint(1, 2)) for name in NAMES * 12]
    draw.shuffle(asks)
    how: dict[str, Any] = {"max_new_tokens": 40, "ignore_end": True}
    assert engine.generate(asks, **how) == own.generate(asks, **how)
    assert engine._scheduler.preemptions > 0  # type: ignore[union-attr]


def test_log_probabilities_are_ours_of_answers_echoes_and_candidates(engine: Engine, own: Engine) -> None:
    for name in NAMES:
        told = []
        for one in (engine, own):
            with one.registry.lease(name or one.base.name) as version:
                behind: dict[str, Any] = {
                    "model": version.model,
                    "prefix": version.prefix,
                    "adapter": version.adapter,
                    "ids": (9, 40, 7, 7),
                }
                how = Sampling(max_new_tokens=5, logprobs=3, ignore_end=True)
                written = Asked(one, GenerateRequest(**behind, sampling=how, echo=True)).wait()
                candidates = ((5,), (5, 9), (5, 9, 33), (8, 8))
                scored = [
                    Asked(one, ScoreRequest(**behind, candidates=candidates, whole=whole)).wait()
                    for whole in (True, False)
                ]
            assert written.error is None
            told.append(([*written.heard, *written.said], [s.likelihoods for s in scored]))
        (said, likelihoods), (right, wanted) = told
        assert [t.id for t in said] == [t.id for t in right]
        assert [t.text for t in said] == [t.text for t in right]
        for token, other in zip(said, right, strict=True):
            assert token.logprob == pytest.approx(other.logprob, abs=1e-5)
            assert [n for n, _ in token.top] == [n for n, _ in other.top]
        for found, values in zip(likelihoods, wanted, strict=True):
            assert found == pytest.approx(values, abs=3e-5)


def test_it_classifies_as_our_own_engine_does(engine: Engine, own: Engine) -> None:
    asks = [(name, text) for name in ("soft-1", "pairs") for text in TEXTS]
    for found, wanted in zip(engine.classify(asks), own.classify(asks), strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


def test_stop_strings_penalties_and_seeds(engine: Engine, own: Engine) -> None:
    text = own.generate([("soft-1", TEXTS[0])], max_new_tokens=30, ignore_end=True)[0]
    wishes: list[dict[str, Any]] = [
        {"stop": text[len(text) // 2]},
        {"repetition_penalty": 1.3},
        {"logit_bias": {40: 5.0}},
        {"stop": text[1:2], "min_new_tokens": 8},
    ]
    for wish in wishes:
        how = {"max_new_tokens": 20, "ignore_end": True, **wish}
        assert engine.generate([("soft-1", TEXTS[0])], **how) == own.generate([("soft-1", TEXTS[0])], **how)
    drawn = [
        engine.generate([("soft-1", "a")] * 3, temperature=1.0, seed=5, ignore_end=True) for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1


def test_a_replaced_prompt_answers_at_once(base: Base, engine: Engine, own: Engine, library: Path) -> None:
    def answers(one: Engine) -> list[str]:
        return one.generate([("changing", text) for text in TEXTS], max_new_tokens=9)

    found = []
    for seed in (11, 12):
        card = samples.bound(base, "prompt-tuning", 3, name="changing")
        Prompt(base, samples.soft(base, seed, 3), card).save(library, overwrite=True)
        found.append(answers(engine))
        assert found[-1] == answers(own)
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("name", "why"), [("dora", "DoRA"), ("whole", "the whole model"), ("nobody", "listed")]
)
def test_what_vllm_cannot_serve_is_refused_by_name(engine: Engine, name: str, why: str) -> None:
    with pytest.raises(ArtifactError, match=f"{name}.*{why}"):
        engine.generate([(name, "a")])


def test_a_text_of_no_tokens_is_refused(engine: Engine) -> None:
    with (
        engine.registry.lease("soft-1") as version,
        pytest.raises(BaseModelError, match="at least one token"),
    ):
        engine.submit(version.generate((), Sampling()), lambda event: None)


def test_a_cancelled_request_ends_and_disturbs_nobody(engine: Engine, own: Engine) -> None:
    with engine.registry.lease("soft-1") as version:
        long = Asked(engine, version.generate((5, 9), Sampling(max_new_tokens=200, ignore_end=True)))
        long.until(1)
        long.handle.cancel()
        assert type(long.wait().error).__name__ == "CancelledJobError"
    assert engine.generate(TEXTS, max_new_tokens=5) == own.generate(TEXTS, max_new_tokens=5)


@pytest.mark.parametrize("fault", ["salt", "no salt", "key", "no placeholders"])
def test_what_would_be_answered_wrongly_fails_alone(engine: Engine, own: Engine, fault: str) -> None:
    """Requests as somebody might send them to vLLM itself, beside sound ones."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    from softprompt.vllm.store import PARAMETER

    backend: Any = engine._scheduler
    with engine.registry.lease("soft-1") as version:
        stored = backend._store.put(version.prefix)
        ids = [5] * (9 if fault != "no placeholders" else 1) + [9, 33]
        key = "s/" + "0" * 64 if fault == "key" else stored.key
        salt = {"salt": "0" * 64, "no salt": None}.get(fault, key.partition("/")[2])
        prompt = TokensPrompt(prompt_token_ids=ids, **({} if salt is None else {"cache_salt": salt}))
        extra = {"kv_transfer_params": {PARAMETER: key}}

        async def ask() -> Any:
            how = SamplingParams(max_tokens=3, temperature=0, extra_args=extra, detokenize=False)
            async for output in backend._llm.generate(prompt, how, f"bad-{fault}"):
                last = output
            return last.outputs[0]

        failing = asyncio.run_coroutine_threadsafe(ask(), backend._loop)
        sound = [("soft-1", text) for text in TEXTS]
        assert engine.generate(sound, max_new_tokens=5) == own.generate(sound, max_new_tokens=5)
        try:
            ended = failing.result(60)
        except Exception:
            return
        assert ended.finish_reason == "error"
        assert not ended.token_ids


def test_engine_arguments_that_prompts_could_not_be_served_with_are_refused(base: Base) -> None:
    from softprompt.vllm.engine import VllmEngine

    for name in ("speculative_config", "kv_transfer_config", "no_such_thing"):
        with pytest.raises(ConfigError, match=name):
            VllmEngine(base, options={name: {"method": "ngram"}})


def test_the_connector_refuses_what_it_could_not_answer_rightly() -> None:
    from types import SimpleNamespace

    from softprompt.vllm.connector import _refuse

    def config(**changes: Any) -> Any:
        parallel = SimpleNamespace(decode_context_parallel_size=changes.get("dcp", 1))
        cache = SimpleNamespace(cache_dtype=changes.get("dtype", "auto"))
        return SimpleNamespace(
            speculative_config=changes.get("drafts"), parallel_config=parallel, cache_config=cache
        )

    one: Any = SimpleNamespace(kv_cache_groups=[1])
    _refuse(config(), one)
    for changes, why in (
        ({"drafts": 1}, "drafts"),
        ({"dcp": 2}, "context"),
        ({"dtype": "fp8_e4m3"}, "rounds"),
    ):
        with pytest.raises(ValueError, match=why):
            _refuse(config(**changes), one)
    two: Any = SimpleNamespace(kv_cache_groups=[1, 2])
    with pytest.raises(ValueError, match="different kinds of memory"):
        _refuse(config(), two)


def test_our_api_stands_in_front_of_it(engine: Engine, own: Engine) -> None:
    from fastapi.testclient import TestClient

    from softprompt.serving.api.app import create_app
    from softprompt.serving.service import Service

    body = {"model": "soft-1", "prompt": TEXTS, "max_tokens": 6, "temperature": 0, "logprobs": 1}
    row = {"model": "pairs", "input": TEXTS}
    told = []
    for one in (engine, own):
        client = TestClient(create_app(Service(one)), base_url="http://127.0.0.1")
        answer = client.post("/v1/completions", json=body).json()
        shares = client.post("/v1/classify", json=row).json()
        told.append(([c["text"] for c in answer["choices"]], answer["usage"], shares))
    (texts, usage, shares), (own_texts, own_usage, own_shares) = told
    assert (texts, usage) == (own_texts, own_usage)
    assert str(shares.keys()) == str(own_shares.keys())
