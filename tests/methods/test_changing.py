"""Methods that change the model, LoRA and full fine-tuning: same numbers as others, base untouched."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

import reference
import tiny
from softprompt.base.copies import Change, linear_layers
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import freeze
from softprompt.config import FullConfig, LoraConfig
from softprompt.errors import BaseModelError, ConfigError, WrongBaseError
from softprompt.methods.build import Material, build_method
from softprompt.methods.full import replaced
from softprompt.methods.lora import adapted
from softprompt.methods.method import Method

ROWS = [TokenRow(tuple(range(3, 15)), 4), TokenRow((5, 6, 7, 8), 1), TokenRow((9, 4, 30, 31, 7), 2)]
KINDS = [{}, {"rslora": True}, {"dora": True}, {"targets": ["q_proj", "down_proj"], "rank": 3}]


def build(config: LoraConfig | FullConfig, base: Base | None = None, seed: int = 0) -> Method:
    material = Material(lambda k: f"demo {k}\n", lambda name: torch.empty(0), (), seed)
    return build_method(config, base or tiny.base(), material)


def mean_loss(method: Method) -> Tensor:
    return method.base.nll(ROWS, method.front()).nll.mean()


def stepped(method: Method, steps: int = 2, rate: float = 0.02) -> Method:
    """A few steps of training, so that nothing is at its start any more."""
    optimizer = torch.optim.AdamW(method.trainable_parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        mean_loss(method).backward()
        optimizer.step()
    return method


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - wanted).norm() <= tolerance * wanted.norm())


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_adapters_give_the_loss_and_gradient_of_peft(options: dict[str, Any]) -> None:
    method = stepped(build(LoraConfig(**options)))
    settings = LoraConfig(**options)
    theirs = peft.get_peft_model(
        tiny.model("llama"),
        peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=settings.targets,
            use_rslora=settings.rslora,
            use_dora=settings.dora,
            task_type="CAUSAL_LM",
        ),
    ).eval()
    named = dict(theirs.named_parameters())
    ours = method.state()
    assert {f"base_model.model.{name}" for name in ours} == {n for n, p in named.items() if p.requires_grad}
    with torch.no_grad():
        for name, tensor in ours.items():
            named[f"base_model.model.{name}"].copy_(tensor)
    wanted = reference.padded_loss(theirs, ROWS)
    wanted.backward()
    for parameter in method.trainable_parameters():
        parameter.grad = None
    found = mean_loss(method)
    found.backward()
    assert close(found, wanted)
    for name, parameter in zip(ours, method.trainable_parameters(), strict=True):
        assert parameter.grad is not None
        assert close(parameter.grad, named[f"base_model.model.{name}"].grad)


def test_linear_layers_of_a_models_own_making_are_layers_and_routers_are_none() -> None:
    torch.manual_seed(0)
    about = transformers.FalconConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.AutoModelForCausalLM.from_config(about)
    falcon = freeze(model, tiny.tokenizer(), "tiny-falcon")
    kinds = {name.rsplit(".", 1)[-1] for name in linear_layers(falcon)}
    assert kinds == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    method = stepped(build(LoraConfig(rank=2), falcon))
    assert len(method.trainable_parameters()) == 2 * len(linear_layers(falcon))
    routed = linear_layers(tiny.base("qwen3-next"))
    assert not [name for name in routed if name.endswith("mlp.gate")]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_fresh_adapters_change_nothing_and_trained_ones_do(architecture: str) -> None:
    base = tiny.base(architecture)
    method = build(LoraConfig(rank=4), base)
    plain = base.nll(ROWS, method.front()).nll
    assert torch.allclose(method.base.nll(ROWS, method.front()).nll, plain, atol=1e-5)
    stepped(method)
    assert not torch.allclose(method.base.nll(ROWS, method.front()).nll, plain, atol=1e-2)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_full_fine_tuning_has_the_gradient_of_transformers(architecture: str) -> None:
    method = build(FullConfig(), tiny.base(architecture))
    theirs = tiny.model(architecture)
    wanted = reference.padded_loss(theirs, ROWS)
    wanted.backward()
    found = mean_loss(method)
    found.backward()
    assert close(found, wanted)
    named = dict(theirs.named_parameters())
    assert list(method.state()) == list(named)
    for name, parameter in zip(method.state(), method.trainable_parameters(), strict=True):
        assert parameter.grad is not None
        if named[name].grad.norm() > 1e-6:  # a bias that no softmax notices has none but rounding
            assert close(parameter.grad, named[name].grad), name


@pytest.mark.parametrize("config", [LoraConfig(dora=True), FullConfig()], ids=lambda c: str(c.kind))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_base_stays_as_it_is_byte_for_byte(config: LoraConfig | FullConfig, dtype: torch.dtype) -> None:
    base = tiny.base(dtype=dtype)
    before = {name: p.clone() for name, p in base.model.state_dict().items()}
    modules = [type(module) for module in base.model.modules()]
    wanted = base.nll(ROWS, base.embed(base.encode("ab"))).nll
    method = stepped(build(config, base))
    assert [type(module) for module in base.model.modules()] == modules
    assert all(torch.equal(before[name], p) for name, p in base.model.state_dict().items())
    assert not any(p.requires_grad for p in base.model.parameters())
    assert torch.equal(base.nll(ROWS, base.embed(base.encode("ab"))).nll, wanted)
    assert method.base is not base


@pytest.mark.parametrize("config", [LoraConfig(rank=4), FullConfig()], ids=lambda c: str(c.kind))
def test_a_change_makes_the_same_model_again(config: LoraConfig | FullConfig) -> None:
    base = tiny.base("qwen3")
    method = stepped(build(config, base))
    change = method.change()
    assert change is not None
    again = {"lora": adapted, "full": replaced}[change.kind](base, change)
    front = method.front()
    assert torch.allclose(again.nll(ROWS, front).nll, method.base.nll(ROWS, front).nll, atol=1e-6)
    assert not any(p.requires_grad for p in again.model.parameters())


@pytest.mark.parametrize("config", [LoraConfig(rank=4), FullConfig()], ids=lambda c: str(c.kind))
def test_state_goes_out_and_comes_back(config: LoraConfig | FullConfig) -> None:
    method = stepped(build(config))
    kept = {name: tensor.clone() for name, tensor in method.state().items()}
    wanted = mean_loss(method).detach()
    stepped(method)
    assert not torch.allclose(mean_loss(method), wanted)
    method.load_state(kept)
    assert torch.equal(mean_loss(method).detach(), wanted)


def test_steps_smaller_than_a_rounding_are_not_lost() -> None:
    base = tiny.base(dtype=torch.bfloat16)
    method = build(FullConfig(), base)
    name = next(name for name in method.state() if "down_proj" in name)
    master = method.state()[name]
    assert master.dtype == torch.float32
    start = master.clone()
    stepped(method, steps=20, rate=1e-5)
    rounded_away = (start + 1e-5).to(torch.bfloat16).float() == start
    assert rounded_away.float().mean() > 0.9
    assert (master - start).abs().median() > 1e-4 / 2


def test_seeds_draw_adapters_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one, other, again = (next(iter(build(LoraConfig(), seed=s).state().values())) for s in (0, 1, 0))
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_prefix_of_the_base_is_refused_by_its_copy() -> None:
    base = tiny.base()
    prefix = base.prefill_text("ab")
    with pytest.raises(WrongBaseError):
        build(LoraConfig(), base).base.prefill(prefix)


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="no such linear layer; it has down_proj, gate_proj"):
        build(LoraConfig(targets=["query_key_value"]))
    with pytest.raises(ConfigError, match="only prompt tuning learns soft tokens"):
        build(LoraConfig(front="{soft:3}"))
    change = build(LoraConfig(rank=4)).change()
    assert change is not None
    with pytest.raises(BaseModelError, match="The adapter does not fit tiny-gpt2"):
        adapted(tiny.base("gpt2"), change)
    with pytest.raises(BaseModelError, match="The weights are not of tiny-gpt2"):
        replaced(tiny.base("gpt2"), Change("full", {}, dict(tiny.model("llama").named_parameters())))
