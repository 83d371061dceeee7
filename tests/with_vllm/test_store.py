"""Prompts as files for other processes: whole, in parts, shared, and gone when nobody holds them."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch

import tiny
from library import samples
from softprompt.base.lowrank import LayerChange, LowRank
from softprompt.errors import ArtifactError
from softprompt.library.folder import Library
from softprompt.prefix import Prefix
from softprompt.serving.builder import Builder
from softprompt.vllm.engine import VllmEngine
from softprompt.vllm.slots import heads_of
from softprompt.vllm.store import LoadedPrompts, Store, Stored, read_positions, salt_fits

CPU = torch.device("cpu")


def loaded(root: Path, key: str | None, rank: int = 0, ranks: int = 1) -> dict[str, torch.Tensor]:
    assert key is not None
    return LoadedPrompts(root, 2**20).get(key, partial(heads_of, rank, ranks), CPU)


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_every_rank_reads_its_heads_of_every_layer(tmp_path: Path) -> None:
    prefix = samples.prefix(tiny.base())
    stored = Store(tmp_path).put(prefix)
    assert stored.positions == read_positions(tmp_path, stored.key) == prefix.length
    for rank in range(2):
        found = loaded(tmp_path, stored.key, rank, 2)
        for number, (k, v) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            assert torch.equal(found[f"k.{number}"], k[rank : rank + 1].transpose(0, 1))
            assert torch.equal(found[f"v.{number}"], v[rank : rank + 1].transpose(0, 1))
    assert len(found) == 2 * len(prefix.keys)


def test_a_salt_is_the_digest_and_cannot_be_another(tmp_path: Path) -> None:
    base, store = tiny.base(), Store(tmp_path)
    one, other = (store.put(samples.prefix(base, seed)) for seed in (1, 2))
    assert one.salt != other.salt
    assert one.key is not None
    assert salt_fits(one.key, one.salt)
    assert salt_fits(one.key, f"{one.salt}:7")
    assert not salt_fits(one.key, other.salt)
    assert not salt_fits(one.key, f"{other.salt}:{one.salt}")
    assert not salt_fits(one.key, None)
    assert not salt_fits(one.key, "")


def test_equal_prompts_share_a_file_until_the_last_is_gone(tmp_path: Path) -> None:
    told: list[Stored] = []
    store = Store(tmp_path, told.append)
    first, second = (samples.prefix(tiny.base()) for _ in range(2))
    assert store.put(first) == store.put(second) == store.put(first)
    assert len(files(tmp_path)) == 1
    for left in (1, 0):
        if left:
            del first
        else:
            del second
        gc.collect()
        store.put(Prefix((torch.zeros(1, 0, 2),), (torch.zeros(1, 0, 2),), None, "x"))  # tidies first
        assert len(files(tmp_path)) == left
    assert len([stored for stored in told if stored.positions]) == 2


def test_a_prompt_of_no_positions_has_no_file(tmp_path: Path) -> None:
    bare = tiny.base().prefill_text("")
    stored = Store(tmp_path).put(bare)
    assert (stored.key, stored.positions) == (None, bare.length)
    assert not files(tmp_path)


@pytest.mark.parametrize(
    "key",
    [None, 3, [], "", "../x", "a/b", f"../{'0' * 64}", f"s/{'0' * 63}", f"s/{'0' * 64}", f"/s/{'0' * 64}"],
)
def test_what_is_no_key_names_nothing(tmp_path: Path, key: object) -> None:
    with pytest.raises(ValueError, match=r"no key|no prompt"):
        read_positions(tmp_path, key)


def test_a_damaged_file_is_no_prompt(tmp_path: Path) -> None:
    stored = Store(tmp_path).put(samples.prefix(tiny.base()))
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="no prompt"):
        loaded(tmp_path, stored.key)


def test_the_longest_unused_make_room(tmp_path: Path) -> None:
    prefixes = [samples.prefix(tiny.base(), seed) for seed in range(3)]
    keys = [str(Store(tmp_path).put(prefix).key) for prefix in prefixes]
    held = LoadedPrompts(tmp_path, 2 * prefixes[0].nbytes)
    for key in (keys[0], keys[1], keys[0], keys[2]):
        held.get(key, lambda heads: range(heads), CPU)
    for path in files(tmp_path):
        path.unlink()
    for key, there in zip(keys, (True, False, True), strict=True):
        if there:
            held.get(key, lambda heads: range(heads), CPU)
        else:
            with pytest.raises(ValueError, match="no prompt"):
                held.get(key, lambda heads: range(heads), CPU)


def test_closing_takes_everything_away(tmp_path: Path) -> None:
    prefix, store = samples.prefix(tiny.base()), Store(tmp_path)
    store.put(prefix)
    store.close()
    assert not list(tmp_path.iterdir())


# -- adapters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"rslora": True}], ids=["lora", "rslora"])
def test_peft_reads_an_adapter_as_we_do(tmp_path: Path, settings: dict[str, bool]) -> None:
    base, library = tiny.base(), Library(tmp_path / "prompts")
    prompt = samples.lora(base, "tuned", **settings)
    prompt.save(library.path)
    version = Builder(library, base, base)("tuned")
    stored = Store(tmp_path / "store").put(version.prefix, version.adapter)
    assert stored.adapter is not None
    model = peft.PeftModel.from_pretrained(tiny.model("llama"), str(stored.adapter[1]))
    ids = torch.tensor([[5, 9, 33, 7]])
    with torch.no_grad():
        found = model(ids).logits
        wanted = prompt.base.model(ids).logits
        bare = base.model(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert (found - bare).abs().max() > 1e-2


def test_the_adapter_of_zeros_changes_nothing(tmp_path: Path) -> None:
    base = tiny.base()
    _, folder = Store(tmp_path).zero_adapter("model.layers.0.self_attn.q_proj", 32, 32)
    model = peft.PeftModel.from_pretrained(tiny.model("llama"), str(folder))
    ids = torch.tensor([[5, 9, 33, 7]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, base.model(ids).logits, atol=1e-6, rtol=1e-6)


def test_an_adapter_that_scales_is_refused(tmp_path: Path) -> None:
    prefix = samples.prefix(tiny.base())
    change = LayerChange(torch.ones(1, 32), torch.ones(32, 1), torch.ones(32))
    with pytest.raises(ValueError, match="DoRA"):
        Store(tmp_path).put(prefix, LowRank({"model.layers.0.self_attn.q_proj": change}))


def test_vectors_that_scale_are_refused_for_what_they_are_and_not_for_their_rank(tmp_path: Path) -> None:
    """They have no rank, so that a server that was started for more ranks would not help."""
    base = tiny.base()
    name = "model.layers.0.self_attn.q_proj"
    change = LayerChange(torch.ones(0, 32), torch.ones(32, 0), torch.ones(32), of_bias=True)
    adapter = LowRank({name: change})
    version = SimpleNamespace(adapter=adapter, prefix=samples.prefix(base), model=base, name="vectors")
    engine = object.__new__(VllmEngine)
    engine._base, engine._rank, engine._refused, engine._longest = base, 0, {}, 64
    engine._store = Store(tmp_path)
    with pytest.raises(ArtifactError, match=r"vectors cannot be served .* as IA3 and DoRA do"):
        engine.admit(version)  # type: ignore[arg-type]


def test_another_adapter_is_another_salt(tmp_path: Path) -> None:
    prefix, store = samples.prefix(tiny.base()), Store(tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    adapters = [LowRank({name: LayerChange(torch.ones(1, 32), torch.ones(32, 1) * n)}) for n in (1, 2)]
    salts = [store.put(replace(prefix), adapter).salt for adapter in (None, *adapters)]
    assert len(set(salts)) == 3


def test_a_prefix_that_holds_states_is_refused(tmp_path: Path) -> None:
    base, store = tiny.base("lfm2"), Store(tmp_path)
    with pytest.raises(ValueError, match="layers that keep a state, which vLLM's blocks do not hold"):
        store.put(base.prefill_text("abc").detached())
    assert not files(tmp_path)
