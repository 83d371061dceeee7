"""A base whose layers lie in memory and on disk answers, learns and is named as the plain one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from softprompt.base.copies import in_parts, twin
from softprompt.base.lowrank import ridden
from softprompt.base.model import Base
from softprompt.base.packing import TokenRow
from softprompt.checkpoints.freeze import load_base
from softprompt.checkpoints.prepacked import prepacked
from softprompt.checkpoints.spread import layer_places
from softprompt.config import FullConfig, LoraConfig, MethodConfig
from softprompt.errors import ConfigError, ResourceError
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling
from softprompt.methods.build import Material, build_method

ROWS = [TokenRow((5, 9, 40, 41), 2), TokenRow((7, 8, 30, 31, 32, 50), 4)]


def bytes_of(module: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in {id(p): p for p in module.parameters()}.values())


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def bases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Base]:
    """The same base in memory, and with two of its three layers on disk."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    model = tiny.model(request.param)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    room = bytes_of(model) - bytes_of(layers) + int(1.5 * bytes_of(layers[0])) + 10_000
    plain = load_base(str(folder), dtype="float32", device="cpu")
    notes: list[str] = []
    spread = load_base(str(folder), dtype="float32", device="cpu", memory={"cpu": room}, notify=notes.append)
    assert notes == [f"Spreading {folder} over cpu, disk"]
    assert in_parts(spread)
    assert not in_parts(plain)
    meta = [name for name, p in spread.model.named_parameters() if p.is_meta]
    assert {name.split(".")[2] for name in meta} == {"1", "2"}
    return plain, spread


def test_it_is_the_same_base(bases: tuple[Base, Base]) -> None:
    plain, spread = bases
    assert spread.fingerprint == plain.fingerprint
    assert spread.layout == plain.layout
    assert spread.device == torch.device("cpu")


def test_losses_gradients_and_prefixes_are_the_same(bases: tuple[Base, Base]) -> None:
    plain, spread = bases
    soft = torch.randn(4, plain.width, generator=torch.Generator().manual_seed(0)) * 0.3
    found = []
    for base in bases:
        front = soft.clone().requires_grad_()
        loss = base.nll(ROWS, front).nll.mean()
        found.append((loss.detach(), torch.autograd.grad(loss, front)[0], base.prefill(soft)))
    for mine, expected in zip(found[1][:2], found[0][:2], strict=True):
        torch.testing.assert_close(mine, expected)
    assert found[0][2].digest == found[1][2].digest
    torch.testing.assert_close(spread.nll(ROWS, found[0][2]).nll, plain.nll(ROWS, found[0][2]).nll)


def test_many_answers_at_once_are_the_same(bases: tuple[Base, Base]) -> None:
    said = []
    for base in (*bases, ridden(bases[1]), prepacked(bases[1])):
        prefixes = [base.prefill(base.embed(ids)) for ids in ([5, 6, 7], [40])]
        how = Sampling(max_new_tokens=6, ignore_end=True)
        asked = [
            GenerateRequest(model=base, prefix=prefix, ids=row.ids, sampling=how)
            for prefix in prefixes
            for row in ROWS
        ]
        said.append(generate(asked))
    assert said[0] == said[1] == said[2] == said[3]


def test_a_copy_holds_no_weights_of_its_own(bases: tuple[Base, Base]) -> None:
    _, spread = bases
    copied = twin(spread)
    for (name, mine), theirs in zip(spread.model.named_parameters(), copied.parameters(), strict=True):
        assert mine is theirs, name


@pytest.mark.parametrize("config", [LoraConfig(rank=2), FullConfig()], ids=["lora", "full"])
def test_what_changes_the_weights_is_refused(config: MethodConfig, bases: tuple[Base, Base]) -> None:
    material = Material(lambda k: "", lambda name: torch.empty(0), seed=0)
    with pytest.raises(ConfigError, match="lies on its device"):
        build_method(config, bases[1], material)


def places(memory: dict[str, int], model: Any) -> list[str]:
    found = layer_places(model, memory)
    return [found[f"model.layers.{number}"] for number in range(3)]


def test_layers_fill_one_device_after_the_other() -> None:
    model = tiny.model("llama")
    layer, whole = bytes_of(model.model.layers[0]), bytes_of(model) + 1000
    rest = whole - 3 * layer
    assert places({"cuda:0": whole, "cpu": whole}, model) == ["cuda:0"] * 3
    cards = {"cuda:0": rest + layer, "cuda:1": layer}
    assert places(cards | {"cpu": whole}, model) == ["cuda:0", "cuda:1", "cpu"]
    assert places(cards, model) == ["cuda:0", "cuda:1", "disk"]
    found = layer_places(model, {"cuda:0": rest, "cpu": whole})
    assert found["model.embed_tokens"] == found["model.norm"] == found["lm_head"] == "cuda:0"
    assert set(found.values()) == {"cuda:0", "cpu"}


def test_a_first_device_without_room_for_the_head_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"cuda:0 has no room for the embeddings and the head alone"):
        layer_places(tiny.model("llama"), {"cuda:0": 100, "cpu": 10**9})


def test_a_quantised_base_lies_on_one_device(tmp_path: Path) -> None:
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="A quantised base lies on one device"):
        load_base(str(tmp_path), device="cpu", quantisation="nf4", memory={"cpu": 10**9})
