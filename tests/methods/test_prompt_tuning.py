"""Soft prompts: where their vectors stand, where they start, and what trains."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import freeze
from softprompt.config import PromptTuningConfig, TextConfig
from softprompt.errors import ConfigError
from softprompt.methods.build import Material, build_method
from softprompt.methods.method import Method

SAVED = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))


def build(front: str = "{soft:4}", base: Base | None = None, seed: int = 0, **options: Any) -> Method:
    material = Material(lambda k: f"demo {k}\n", lambda name: SAVED, (" yes", " no"), seed)
    return build_method(PromptTuningConfig(front=front, **options), base or tiny.base(), material)


def front(method: Method) -> Tensor:
    found = method.front()
    assert isinstance(found, Tensor)
    return found


class WithStart:
    """A tokenizer that sets a start token before every text, as Llama's does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, add_special_tokens: bool = True, **options: Any) -> Any:
        found = self._tokenizer(text, add_special_tokens=False, **options)
        return {"input_ids": [1] * add_special_tokens + found["input_ids"]}


def test_words_stand_around_the_vectors_and_do_not_train() -> None:
    base = tiny.base()
    method = build("ab{soft:4}c{soft:2}", init="random")
    whole = front(method)
    assert whole.shape == (2 + 4 + 1 + 2, base.width)
    assert torch.equal(whole[:2], base.embed(base.encode("ab")))
    assert torch.equal(whole[6:7], base.embed(base.encode("c")))
    (way,) = method.trainable_parameters()
    assert way.shape == (4 + 2, base.width)
    whole.sum().backward()
    assert way.grad is not None
    torch.testing.assert_close(way.grad, base.embedding.weight.std().expand_as(way))
    with torch.no_grad():
        way.add_(1.0)
    moved = (front(method) - whole)[[2, 3, 4, 5, 7, 8]]
    torch.testing.assert_close(moved, base.embedding.weight.std().expand_as(way))
    assert torch.equal(front(method)[[0, 1, 6]], whole[[0, 1, 6]])


def test_one_rate_suits_models_whose_embeddings_differ_in_size() -> None:
    """The first step of Adam has the size of the rate: of the spread, whatever that is."""
    moved = []
    for factor in (1.0, 30.0):
        model = tiny.model("llama")
        with torch.no_grad():
            model.model.embed_tokens.weight *= factor
        base = freeze(model, tiny.tokenizer(), "scaled")
        method = build(base=base, init="vocabulary")
        before = front(method).detach().clone()
        optimizer = torch.optim.AdamW(method.trainable_parameters(), lr=0.15, weight_decay=0.0)
        base.nll([TokenRow((5, 6, 7, 8), 1)], method.front()).nll.mean().backward()
        optimizer.step()
        moved.append(((front(method) - before) / base.embedding.weight.std()).abs().median())
    torch.testing.assert_close(moved[0], torch.tensor(0.15), rtol=0.01, atol=0)
    torch.testing.assert_close(moved[1], moved[0], rtol=0.01, atol=0)


def test_the_tokenizers_start_token_comes_first() -> None:
    base = tiny.base()
    started = dataclasses.replace(base, tokenizer=WithStart(base.tokenizer))
    whole = front(build("a{soft:2}", started, init="random"))
    assert torch.equal(whole[:2], base.embed([1, *base.encode("a")]))


def test_text_init_repeats_the_text_and_leaves_special_tokens_out() -> None:
    base = tiny.base()
    method = build(init="text", init_text="<s>ab</s>")
    a, b = base.embed(base.encode("ab"))
    assert torch.equal(front(method), torch.stack([a, b, a, b]))


def test_label_init_is_the_mean_of_each_labels_tokens_then_sampled_words() -> None:
    base = tiny.base()
    whole = front(build(init="labels"))
    for place, word in enumerate((" yes", " no")):
        torch.testing.assert_close(whole[place], base.embed(base.encode(word)).mean(0))
    table = base.embedding.weight
    assert all((table == vector).all(1).any() for vector in whole[2:])


def test_sampled_words_differ_and_follow_the_seed() -> None:
    a, b, c = (front(build("{soft:30}", init="vocabulary", seed=s)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert len(a.unique(dim=0)) == 30


def test_random_vectors_have_the_scale_of_the_embedding_table() -> None:
    base = tiny.base()
    whole = front(build("{soft:2000}", init="random"))
    torch.testing.assert_close(whole.std(0), base.embedding.weight.std(0), rtol=0.1, atol=0)
    torch.testing.assert_close(whole.mean(0), base.embedding.weight.mean(0), rtol=0, atol=0.03)


def test_a_saved_prompt_can_be_the_start_if_it_is_as_long() -> None:
    assert torch.equal(front(build(init="artifact", init_artifact="other")), SAVED)
    with pytest.raises(ConfigError, match=r"has 4 vectors, but method\.front asks for 5"):
        build("{soft:5}", init="artifact", init_artifact="other")


def test_residual_starts_from_the_same_vectors_trains_more_and_is_folded_away() -> None:
    plain = build(init="vocabulary")
    residual = build(init="vocabulary", reparametrisation="residual", reparametrisation_width=3)
    assert torch.equal(front(plain), front(residual))
    soft, down, up = residual.trainable_parameters()
    assert (down.shape, up.shape) == ((3, 32), (32, 3))
    with torch.no_grad():
        up.normal_()
    assert front(residual).shape == soft.shape
    assert not torch.equal(front(residual), front(plain))
    again = build(init="vocabulary", reparametrisation="residual", reparametrisation_width=3, seed=5)
    again.load_state(residual.state())
    assert torch.equal(front(again), front(residual))


def test_the_master_copy_is_fp32_over_a_bf16_base() -> None:
    base = tiny.base(dtype=torch.bfloat16)
    method = build(base=base, init="vocabulary")
    assert front(method).dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in method.trainable_parameters())


def test_a_front_without_vectors_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to learn"):
        build("only words", init="vocabulary")


def test_text_is_its_words_and_trains_nothing() -> None:
    base = tiny.base()
    material = Material(lambda k: f"demo {k}\n", lambda name: SAVED)
    method = build_method(TextConfig(front="Do: {demos:2}"), base, material)
    assert torch.equal(front(method), base.embed(base.encode("Do: demo 2\n")))
    assert method.trainable_parameters() == []
    with pytest.raises(ConfigError, match="only prompt tuning learns"):
        build_method(TextConfig(front="{soft:2}"), base, material)
