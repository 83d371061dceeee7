"""KV prefixes: where they start, what of them trains, and that others read them alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

import reference
import tiny
from softprompt.base.looking import most_attended
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.base.turning import picked
from softprompt.config import PrefixTuningConfig, parse
from softprompt.errors import ConfigError
from softprompt.methods.attended import attention_to
from softprompt.methods.build import Material, build_method
from softprompt.methods.prefix_tuning import PrefixTuning
from softprompt.prefix import Prefix

ROWS = [TokenRow(tuple(range(3, 15)), 4), TokenRow((5, 6, 7, 8), 1), TokenRow((9, 4, 30, 31, 7), 2)]


def build(base: Base | None = None, seed: int = 0, **options: Any) -> PrefixTuning:
    material = Material(lambda k: "yes no " * k, lambda name: torch.empty(0), (), seed)
    method = build_method(PrefixTuningConfig(**options), base or tiny.base(), material)
    assert isinstance(method, PrefixTuning)
    return method


def stepped(method: PrefixTuning, steps: int = 3) -> PrefixTuning:
    optimizer = torch.optim.AdamW(method.trainable_parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        method.base.nll(ROWS, method.front()).nll.mean().backward()
        optimizer.step()
    return method


def flat(prefix: Prefix) -> Tensor:
    """PEFT's order: [P, L * 2 * K * D]."""
    sides = torch.stack([t for pair in zip(prefix.keys, prefix.values, strict=True) for t in pair])
    return sides.permute(2, 0, 1, 3).flatten(1)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_step_0_is_the_prompted_model(architecture: str) -> None:
    base = tiny.base(architecture)
    method = build(base, front="Say: {demos:2}")
    prompted = base.embed([*base.start_ids, *base.encode("Say: yes no yes no ")])
    wanted = base.nll(ROWS, prompted).nll
    assert torch.allclose(base.nll(ROWS, method.front()).nll, wanted, atol=1e-5)
    stepped(method)
    assert not torch.allclose(base.nll(ROWS, method.front()).nll, wanted, atol=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox", "qwen3"])
def test_loss_and_gradient_are_those_of_peft(architecture: str) -> None:
    base = tiny.base(architecture)
    method = build(base, front="abcdefg", freeze_first=False)
    wrapped: Any = peft.get_peft_model(
        tiny.model(architecture), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7)
    ).eval()
    weight = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(flat(method.front()))
    wanted = reference.padded_loss(wrapped, ROWS)
    wanted.backward()
    front = method.front()
    sides = [*front.keys, *front.values]
    learnt = method.trainable_parameters()
    found = base.nll(ROWS, front).nll.mean()
    gradients = torch.autograd.grad(found, [*sides, *learnt])
    halves = gradients[: len(sides)]
    ours = flat(Prefix(halves[: len(front.keys)], halves[len(front.keys) :], None, ""))
    assert torch.allclose(found, wanted, rtol=1e-4)
    assert (ours - weight.grad).norm() <= 1e-4 * weight.grad.norm()
    for side, half, own in zip(sides, halves, gradients[len(sides) :], strict=True):
        assert torch.allclose(own, side.detach().std() * half, rtol=1e-4)  # a step is in units of the spread


@pytest.mark.parametrize("frozen", [True, False])
def test_the_first_position_stays_if_it_is_frozen(frozen: bool) -> None:
    method = build(front="abcdefg", freeze_first=frozen)
    before = method.front().detached()
    after = stepped(method).front()
    for old, new in zip((*before.keys, *before.values), (*after.keys, *after.values), strict=True):
        assert torch.equal(old[:, :1], new[:, :1]) is frozen
        assert not torch.equal(old[:, 1:], new[:, 1:])


@pytest.mark.parametrize(("positions", "text"), [(5, "cdefg"), (7, "abcdefg"), (10, "efgabcdefg")])
def test_a_length_keeps_the_end_of_a_text_or_repeats_it(positions: int, text: str) -> None:
    base = tiny.base()
    method = build(base, front="abcdefg", positions=positions)
    wanted = base.prefill_text(text)
    assert method.front().length == positions
    assert torch.allclose(flat(method.front()), flat(wanted), atol=1e-5)


def test_a_random_start_lies_where_the_models_own_keys_and_values_do() -> None:
    base = tiny.base()
    method = build(base, init="random", positions=40, projection_width=64)
    own, found = flat(base.prefill(base.embed(list(range(4, 44))))), flat(method.front().detached())
    assert found.shape == own.shape
    assert 0.5 < float(found.std() / own.std()) < 2
    other = flat(build(base, seed=1, init="random", positions=40, projection_width=64).front().detached())
    assert not torch.allclose(found, other)
    before = base.nll(ROWS, method.front()).nll.mean().item()
    assert base.nll(ROWS, stepped(method, 10).front()).nll.mean().item() < before


@pytest.mark.parametrize("options", [{"front": "abcd"}, {"init": "random", "positions": 4}], ids=str)
def test_state_goes_out_and_comes_back(options: dict[str, Any]) -> None:
    method = stepped(build(**options))
    kept = {name: tensor.clone() for name, tensor in method.state().items()}
    wanted = flat(method.front()).detach()
    assert not torch.equal(flat(stepped(method).front()), wanted)
    method.load_state(kept)
    assert torch.equal(flat(method.front()), wanted)


def test_masters_are_fp32_over_a_bf16_base() -> None:
    method = build(tiny.base(dtype=torch.bfloat16), front="abcd")
    assert {p.dtype for p in method.trainable_parameters()} == {torch.float32}


def test_nothing_to_start_from_or_to_learn_is_said() -> None:
    with pytest.raises(ConfigError, match="no words whose keys and values"):
        build(front="")
    with pytest.raises(ConfigError, match="nothing to learn"):
        build(front="a")
    with pytest.raises(ConfigError, match="only prompt tuning learns soft tokens"):
        build(front="a {soft:3}")


@pytest.mark.parametrize("looks", [True, False])
def test_a_length_nobody_gave_is_bounded_and_told(looks: bool) -> None:
    base, told = tiny.base(), list[str]()
    material = Material(lambda k: "yes no " * k, lambda name: torch.empty(0), note=told.append)
    if looks:
        material = replace(material, looks=lambda prefix: attention_to(base, prefix, ROWS))
    found = {}
    for front in ("yes no", "{demos:8}"):
        method = build_method(PrefixTuningConfig(front=front, most=10), base, material)
        found[front] = method.front()
    short, long = found.values()
    assert isinstance(short, Prefix)
    assert isinstance(long, Prefix)
    assert (short.length, long.length) == (6, 10)
    which = "those that rows look at most" if looks else "the last ones"
    assert told == [
        "The prefix takes 6 of the 6 positions of its text, all.",
        f"The prefix takes 10 of the 56 positions of its text, {which}.",
    ]
    whole = base.prefill(base.embed(base.encode("yes no " * 8)))
    if looks:
        kept = picked(base, whole, most_attended(attention_to(base, whole, ROWS), 10))
    else:
        kept = base.prefill(base.embed(base.encode("yes no " * 8)[-10:]))
    assert all(torch.equal(k, w.float()) for k, w in zip(long.keys, kept.keys, strict=True))


def test_only_a_length_nobody_gave_is_bounded() -> None:
    about = {"input": "{t}", "target": "{l}"}

    def most(**method: Any) -> int | None:
        found = parse({"data": about, "method": {"kind": "prefix-tuning", **method}}).method
        assert isinstance(found, PrefixTuningConfig)
        return found.most

    assert most() == 64
    assert most(most=9) == 9
    assert most(positions=21) is None
    assert most(positions="none") is None  # the whole text, whatever its length
    assert most(init="artifact", init_artifact="other") is None
